ALTER TABLE "django_celery_results_taskresult" ADD COLUMN "task_args" text NULL;
ALTER TABLE "django_celery_results_taskresult" ADD COLUMN "task_kwargs" text NULL;
ALTER TABLE "django_celery_results_taskresult" ADD COLUMN "task_name" varchar({length}) NULL;
