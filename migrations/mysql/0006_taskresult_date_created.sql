ALTER TABLE `django_celery_results_taskresult` ADD COLUMN `date_created` datetime(6) DEFAULT '1970-01-01 00:00:00' NOT NULL;
ALTER TABLE `django_celery_results_taskresult` ALTER COLUMN `date_created` DROP DEFAULT;
UPDATE `django_celery_results_taskresult` SET `date_created` = `date_done`;
CREATE INDEX `django_celery_results_taskresult_date_created_099f3424`
    ON `django_celery_results_taskresult` (`date_created`);
