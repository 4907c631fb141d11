CREATE TABLE "django_celery_results_taskresult" (
    "id" integer NOT NULL PRIMARY KEY AUTOINCREMENT,
    "task_id" varchar({length}) NOT NULL UNIQUE,
    "status" varchar(50) NOT NULL,
    "content_type" varchar(128) NOT NULL,
    "content_encoding" varchar(64) NOT NULL,
    "result" text NULL,
    "date_done" datetime NOT NULL,
    "traceback" text NULL,
    "hidden" bool NOT NULL,
    "meta" text NULL
);
CREATE INDEX "django_celery_results_taskresult_hidden_cd77412f"
    ON "django_celery_results_taskresult" ("hidden");
