CREATE TABLE "new__django_celery_results_taskresult" (
    "id" integer NOT NULL PRIMARY KEY AUTOINCREMENT,
    "task_id" varchar({length}) NOT NULL UNIQUE,
    "status" varchar(50) NOT NULL,
    "content_type" varchar(128) NOT NULL,
    "content_encoding" varchar(64) NOT NULL,
    "result" text NULL,
    "date_done" datetime NOT NULL,
    "traceback" text NULL,
    "hidden" bool NOT NULL,
    "meta" text NULL,
    "task_args" text NULL,
    "task_kwargs" text NULL,
    "task_name" varchar({length}) NULL
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
    "hidden",
    "meta",
    "task_args",
    "task_kwargs",
    "task_name"
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
    "hidden",
    "meta",
    "task_args",
    "task_kwargs",
    "task_name"
FROM "django_celery_results_taskresult";
DROP TABLE "django_celery_results_taskresult";
ALTER TABLE "new__django_celery_results_taskresult" RENAME TO "django_celery_results_taskresult";
CREATE INDEX "django_celery_results_taskresult_status_cbbed23a"
    ON "django_celery_results_taskresult" ("status");
CREATE INDEX "django_celery_results_taskresult_date_done_49edada6"
    ON "django_celery_results_taskresult" ("date_done");
CREATE INDEX "django_celery_results_taskresult_hidden_cd77412f"
    ON "django_celery_results_taskresult" ("hidden");
CREATE INDEX "django_celery_results_taskresult_task_name_90987df3"
    ON "django_celery_results_taskresult" ("task_name");
