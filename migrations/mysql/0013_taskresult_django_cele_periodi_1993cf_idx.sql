CREATE INDEX `django_cele_periodi_1993cf_idx`
    ON `django_celery_results_taskresult` (`periodic_task_name`);
