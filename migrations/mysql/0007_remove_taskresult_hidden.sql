ALTER TABLE `django_celery_results_taskresult` DROP COLUMN `hidden`;
