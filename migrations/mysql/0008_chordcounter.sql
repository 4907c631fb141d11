CREATE TABLE `django_celery_results_chordcounter` (
    `id` integer AUTO_INCREMENT NOT NULL PRIMARY KEY,
    `group_id` varchar({length}) NOT NULL UNIQUE,
    `sub_tasks` longtext NOT NULL,
    `count` integer UNSIGNED NOT NULL CHECK (`count` >= 0)
);
