CREATE TABLE `django_celery_results_groupresult` (
    `id` integer AUTO_INCREMENT NOT NULL PRIMARY KEY,
    `group_id` varchar({length}) NOT NULL UNIQUE,
    `date_created` datetime(6) NOT NULL,
    `date_done` datetime(6) NOT NULL,
    `content_type` varchar(128) NOT NULL,
    `content_encoding` varchar(64) NOT NULL,
    `result` longtext NULL
);
DROP INDEX `django_celery_results_taskresult_date_created_099f3424`
    ON `django_celery_results_taskresult`;
DROP INDEX `django_celery_results_taskresult_date_done_49edada6`
    ON `django_celery_results_taskresult`;
DROP INDEX `django_celery_results_taskresult_status_cbbed23a`
    ON `django_celery_results_taskresult`;
DROP INDEX `django_celery_results_taskresult_task_name_90987df3`
    ON `django_celery_results_taskresult`;
DROP INDEX `django_celery_results_taskresult_worker_f8711389`
    ON `django_celery_results_taskresult`;
CREATE INDEX `django_cele_task_na_08aec9_idx`
    ON `django_celery_results_taskresult` (`task_name`);
CREATE INDEX `django_cele_status_9b6201_idx`
    ON `django_celery_results_taskresult` (`status`);
CREATE INDEX `django_cele_worker_d54dd8_idx`
    ON `django_celery_results_taskresult` (`worker`);
CREATE INDEX `django_cele_date_cr_f04a50_idx`
    ON `django_celery_results_taskresult` (`date_created`);
CREATE INDEX `django_cele_date_do_f59aad_idx`
    ON `django_celery_results_taskresult` (`date_done`);
CREATE INDEX `django_cele_date_cr_bd6c1d_idx`
    ON `django_celery_results_groupresult` (`date_created`);
CREATE INDEX `django_cele_date_do_caae0e_idx`
    ON `django_celery_results_groupresult` (`date_done`);
