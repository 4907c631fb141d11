-- The tables of django-celery-results 2.6 as its last migration, 0014_alter_taskresult_status, leaves
-- them with Django 4.1 to 6.0. {length} is the setting DJANGO_CELERY_RESULTS_TASK_ID_MAX_LENGTH.
CREATE TABLE "django_celery_results_taskresult" (
    "id" integer NOT NULL PRIMARY KEY AUTOINCREMENT,
    "task_id" varchar({length}) NOT NULL UNIQUE,
    "status" varchar(50) NOT NULL,
    "content_type" varchar(128) NOT NULL,
    "content_encoding" varchar(64) NOT NULL,
    "result" text NULL,
    "date_done" datetime NOT NULL,
    "traceback" text NULL,
    "meta" text NULL,
    "task_args" text NULL,
    "task_kwargs" text NULL,
    "task_name" varchar({length}) NULL,
    "date_created" datetime NOT NULL,
    "worker" varchar(100) NULL,
    "periodic_task_name" varchar(255) NULL,
    "date_started" datetime NULL
);
CREATE TABLE "django_celery_results_chordcounter" (
    "id" integer NOT NULL PRIMARY KEY AUTOINCREMENT,
    "sub_tasks" text NOT NULL,
    "count" integer unsigned NOT NULL CHECK ("count" >= 0),
    "group_id" varchar({length}) NOT NULL UNIQUE
);
CREATE TABLE "django_celery_results_groupresult" (
    "id" integer NOT NULL PRIMARY KEY AUTOINCREMENT,
    "group_id" varchar({length}) NOT NULL UNIQUE,
    "date_created" datetime NOT NULL,
    "date_done" datetime NOT NULL,
    "content_type" varchar(128) NOT NULL,
    "content_encoding" varchar(64) NOT NULL,
    "result" text NULL
);
CREATE INDEX "django_cele_task_na_08aec9_idx"
    ON "django_celery_results_taskresult" ("task_name");
CREATE INDEX "django_cele_status_9b6201_idx"
    ON "django_celery_results_taskresult" ("status");
CREATE INDEX "django_cele_worker_d54dd8_idx"
    ON "django_celery_results_taskresult" ("worker");
CREATE INDEX "django_cele_date_cr_f04a50_idx"
    ON "django_celery_results_taskresult" ("date_created");
CREATE INDEX "django_cele_date_do_f59aad_idx"
    ON "django_celery_results_taskresult" ("date_done");
CREATE INDEX "django_cele_date_cr_bd6c1d_idx"
    ON "django_celery_results_groupresult" ("date_created");
CREATE INDEX "django_cele_date_do_caae0e_idx"
    ON "django_celery_results_groupresult" ("date_done");
CREATE INDEX "django_cele_periodi_1993cf_idx"
    ON "django_celery_results_taskresult" ("periodic_task_name");
