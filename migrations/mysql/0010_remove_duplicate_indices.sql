-- Django-celery-results 2.1 made these beside the unique indexes; they may be missing.
DROP INDEX `django_cele_group_i_299b0d_idx`
    ON `django_celery_results_chordcounter`;
DROP INDEX `django_cele_group_i_3cddec_idx`
    ON `django_celery_results_groupresult`;
DROP INDEX `django_cele_task_id_7f8fca_idx`
    ON `django_celery_results_taskresult`;
