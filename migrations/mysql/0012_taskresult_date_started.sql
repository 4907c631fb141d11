ALTER TABLE `django_celery_results_taskresult` ADD COLUMN `date_started` datetime(6) NULL;
