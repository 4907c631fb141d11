CREATE TABLE `django_celery_results_taskresult` (
    `id` integer AUTO_INCREMENT NOT NULL PRIMARY KEY,
    `task_id` varchar({length}) NOT NULL UNIQUE,
    `status` varchar(50) NOT NULL,
    `content_type` varchar(128) NOT NULL,
    `content_encoding` varchar(64) NOT NULL,
    `result` longtext NULL,
    `date_done` datetime(6) NOT NULL,
    `traceback` longtext NULL,
    `hidden` bool NOT NULL,
    `meta` longtext NULL
);
CREATE INDEX `django_celery_results_taskresult_hidden_cd77412f`
    ON `django_celery_results_taskresult` (`hidden`);
