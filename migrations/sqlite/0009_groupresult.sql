CREATE TABLE "django_celery_results_groupresult" (
    "id" integer NOT NULL PRIMARY KEY AUTOINCREMENT,
    "group_id" varchar({length}) NOT NULL UNIQUE,
    "date_created" datetime NOT NULL,
    "date_done" datetime NOT NULL,
    "content_type" varchar(128) NOT NULL,
    "content_encoding" varchar(64) NOT NULL,
    "result" text NULL
);
CREATE TABLE "new__django_celery_results_chordcounter" (
    "id" integer NOT NULL PRIMARY KEY AUTOINCREMENT,
    "sub_tasks" text NOT NULL,
    "count" integer unsigned NOT NULL CHECK ("count" >= 0),
    "group_id" varchar({length}) NOT NULL UNIQUE
);
INSERT INTO "new__django_celery_results_chordcounter" (
    "id",
    "sub_tasks",
    "count",
    "group_id"
)
SELECT
    "id",
    "sub_tasks",
    "count",
    "group_id"
FROM "django_celery_results_chordcounter";
DROP TABLE "django_celery_results_chordcounter";
ALTER TABLE "new__django_celery_results_chordcounter" RENAME TO "django_celery_results_chordcounter";
CREATE TABLE "new__django_celery_results_taskresult" (
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
    "worker" varchar(100) NULL
);
INSERT INTO "new__django_celery_results_taskresult" (
    "id",
    "task_id",
    "status",
    "content_type",
    "content_encoding",
    "result",
    "date_done",
    "traceback",
    "meta",
    "task_args",
    "task_kwargs",
    "task_name",
    "date_created",
    "worker"
)
SELECT
    "id",
    "task_id",
    "status",
    "content_type",
    "content_encoding",
    "result",
    "date_done",
    "traceback",
    "meta",
    "task_args",
    "task_kwargs",
    "task_name",
    "date_created",
    "worker"
FROM "django_celery_results_taskresult";
DROP TABLE "django_celery_results_taskresult";
ALTER TABLE "new__django_celery_results_taskresult" RENAME TO "django_celery_results_taskresult";
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
