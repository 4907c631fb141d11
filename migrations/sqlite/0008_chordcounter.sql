CREATE TABLE "django_celery_results_chordcounter" (
    "id" integer NOT NULL PRIMARY KEY AUTOINCREMENT,
    "group_id" varchar({length}) NOT NULL UNIQUE,
    "sub_tasks" text NOT NULL,
    "count" integer unsigned NOT NULL CHECK ("count" >= 0)
);
