CREATE INDEX "django_celery_results_taskresult_date_done_49edada6"
    ON "django_celery_results_taskresult" ("date_done");
CREATE INDEX "django_celery_results_taskresult_status_cbbed23a"
    ON "django_celery_results_taskresult" ("status");
CREATE INDEX "django_celery_results_taskresult_status_cbbed23a_like"
    ON "django_celery_results_taskresult" ("status" varchar_pattern_ops);
CREATE INDEX "django_celery_results_taskresult_task_name_90987df3"
    ON "django_celery_results_taskresult" ("task_name");
CREATE INDEX "django_celery_results_taskresult_task_name_90987df3_like"
    ON "django_celery_results_taskresult" ("task_name" varchar_pattern_ops);
