ALTER TABLE "django_celery_results_taskresult" ADD COLUMN "worker" varchar(100) NULL;
CREATE INDEX "django_celery_results_taskresult_worker_f8711389"
    ON "django_celery_results_taskresult" ("worker");
