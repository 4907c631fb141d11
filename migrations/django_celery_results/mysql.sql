-- The tables of django-celery-results 2.6 as its last migration, 0014_alter_taskresult_status, leaves
-- them with Django 4.1 to 6.0. {length} is the setting DJANGO_CELERY_RESULTS_TASK_ID_MAX_LENGTH.
-- Every statement commits. The tables get their names all at once, so that an interrupted process
-- leaves none of them behind under its name.
DROP TABLE IF EXISTS `django_celery_results_taskresult_new`, `django_celery_results_chordcounter_new`, `django_celery_results_groupresult_new`;
CREATE TABLE `django_celery_results_taskresult_new` (
    `id` integer AUTO_INCREMENT NOT NULL PRIMARY KEY,
    `task_id` varchar({length}) NOT NULL UNIQUE,
    `status` varchar(50) NOT NULL,
    `content_type` varchar(128) NOT NULL,
    `content_encoding` varchar(64) NOT NULL,
    `result` longtext NULL,
    `date_done` datetime(6) NOT NULL,
    `traceback` longtext NULL,
    `meta` longtext NULL,
    `task_args` longtext NULL,
    `task_kwargs` longtext NULL,
    `task_name` varchar({length}) NULL,
    `worker` varchar(100) NULL,
    `date_created` datetime(6) NOT NULL,
    `periodic_task_name` varchar(255) NULL,
    `date_started` datetime(6) NULL
);
CREATE TABLE `django_celery_results_chordcounter_new` (
    `id` integer AUTO_INCREMENT NOT NULL PRIMARY KEY,
    `group_id` varchar({length}) NOT NULL UNIQUE,
    `sub_tasks` longtext NOT NULL,
    `count` integer UNSIGNED NOT NULL CHECK (`count` >= 0)
);
CREATE TABLE `django_celery_results_groupresult_new` (
    `id` integer AUTO_INCREMENT NOT NULL PRIMARY KEY,
    `group_id` varchar({length}) NOT NULL UNIQUE,
    `date_created` datetime(6) NOT NULL,
    `date_done` datetime(6) NOT NULL,
    `content_type` varchar(128) NOT NULL,
    `content_encoding` varchar(64) NOT NULL,
    `result` longtext NULL
);
CREATE INDEX `django_cele_task_na_08aec9_idx`
    ON `django_celery_results_taskresult_new` (`task_name`);
CREATE INDEX `django_cele_status_9b6201_idx`
    ON `django_celery_results_taskresult_new` (`status`);
CREATE INDEX `django_cele_worker_d54dd8_idx`
    ON `django_celery_results_taskresult_new` (`worker`);
CREATE INDEX `django_cele_date_cr_f04a50_idx`
    ON `django_celery_results_taskresult_new` (`date_created`);
CREATE INDEX `django_cele_date_do_f59aad_idx`
    ON `django_celery_results_taskresult_new` (`date_done`);
CREATE INDEX `django_cele_date_cr_bd6c1d_idx`
    ON `django_celery_results_groupresult_new` (`date_created`);
CREATE INDEX `django_cele_date_do_caae0e_idx`
    ON `django_celery_results_groupresult_new` (`date_done`);
CREATE INDEX `django_cele_periodi_1993cf_idx`
    ON `django_celery_results_taskresult_new` (`periodic_task_name`);
RENAME TABLE
    `django_celery_results_taskresult_new` TO `django_celery_results_taskresult`,
    `django_celery_results_chordcounter_new` TO `django_celery_results_chordcounter`,
    `django_celery_results_groupresult_new` TO `django_celery_results_groupresult`;
