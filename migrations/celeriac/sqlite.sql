-- The tables of Celeriac's Django app as its migration 0001_initial makes them with Django 3.2 to 6.0.
CREATE TABLE "celeriac_chord" (
    "group_id" varchar(255) NOT NULL PRIMARY KEY,
    "unlock_id" varchar(255) NOT NULL,
    "message" text NOT NULL,
    "applied_at" datetime NOT NULL,
    "expires_at" datetime NOT NULL,
    "unlock_at" datetime NULL,
    "unlocks" integer NOT NULL,
    "problem" text NULL,
    "done_at" datetime NULL
);
CREATE TABLE "celeriac_chordmember" (
    "id" integer NOT NULL PRIMARY KEY AUTOINCREMENT,
    "task_id" varchar(255) NOT NULL,
    "group_id" varchar(255) NOT NULL,
    "is_final" bool NOT NULL,
    "value" text NULL,
    "created_at" datetime NOT NULL,
    CONSTRAINT "celeriac_chordmember_task_group" UNIQUE ("task_id", "group_id")
);
CREATE INDEX "celeriac_chord_expires_at_60aed532"
    ON "celeriac_chord" ("expires_at");
CREATE INDEX "celeriac_chord_unlock_at_7da2fcca"
    ON "celeriac_chord" ("unlock_at");
CREATE INDEX "celeriac_chordmember_group"
    ON "celeriac_chordmember" ("group_id", "is_final");
