ALTER TABLE `django_celery_results_taskresult` ADD COLUMN `task_args` longtext NULL;
ALTER TABLE `django_celery_results_taskresult` ADD COLUMN `task_kwargs` longtext NULL;
ALTER TABLE `django_celery_results_taskresult` ADD COLUMN `task_name` varchar({length}) NULL;
