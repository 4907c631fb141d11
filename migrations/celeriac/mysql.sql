-- The tables of Celeriac's Django app as its migration 0001_initial makes them with Django 3.2 to 6.0.
-- Every statement commits. The tables get their names all at once, so that an interrupted process
-- leaves none of them behind under its name.
DROP TABLE IF EXISTS `celeriac_chord_new`, `celeriac_chordmember_new`;
CREATE TABLE `celeriac_chord_new` (
    `group_id` varchar(255) NOT NULL PRIMARY KEY,
    `unlock_id` varchar(255) NOT NULL,
    `message` longtext NOT NULL,
    `applied_at` datetime(6) NOT NULL,
    `expires_at` datetime(6) NOT NULL,
    `unlock_at` datetime(6) NULL,
    `unlocks` integer NOT NULL,
    `problem` longtext NULL,
    `done_at` datetime(6) NULL
);
CREATE TABLE `celeriac_chordmember_new` (
    `id` bigint AUTO_INCREMENT NOT NULL PRIMARY KEY,
    `task_id` varchar(255) NOT NULL,
    `group_id` varchar(255) NOT NULL,
    `is_final` bool NOT NULL,
    `value` longtext NULL,
    `created_at` datetime(6) NOT NULL,
    CONSTRAINT `celeriac_chordmember_task_group` UNIQUE (`task_id`, `group_id`)
);
CREATE INDEX `celeriac_chord_expires_at_60aed532`
    ON `celeriac_chord_new` (`expires_at`);
CREATE INDEX `celeriac_chord_unlock_at_7da2fcca`
    ON `celeriac_chord_new` (`unlock_at`);
CREATE INDEX `celeriac_chordmember_group`
    ON `celeriac_chordmember_new` (`group_id`, `is_final`);
RENAME TABLE
    `celeriac_chord_new` TO `celeriac_chord`,
    `celeriac_chordmember_new` TO `celeriac_chordmember`;
