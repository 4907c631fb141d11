"""The tables of django-celery-results and of Celeriac as the database's catalog describes them."""

from __future__ import annotations

import re
from typing import Any

from harness.database import Database

APP = "django_celery_results"
TABLES = tuple(f"{APP}_{name}" for name in ("taskresult", "groupresult", "chordcounter"))
CHORDS_APP = "celeriac"
CHORD_TABLES = tuple(f"{CHORDS_APP}_{name}" for name in ("chord", "chordmember"))
RECORDS = "django_migrations"

POSTGRESQL = {
    "columns": """
        select relname, attname, format_type(atttypid, atttypmod), attnotnull, attidentity,
            pg_get_expr(adbin, adrelid), attstorage, collname
        from pg_attribute join pg_class on pg_class.oid = attrelid
            left join pg_attrdef on adrelid = attrelid and adnum = attnum
            left join pg_collation on pg_collation.oid = attcollation
        where relname = any({tables}) and attnum > 0 and not attisdropped
        order by relname, attnum""",
    "constraints": """
        select relname, conname, pg_get_constraintdef(pg_constraint.oid)
        from pg_constraint join pg_class on pg_class.oid = conrelid
        where relname = any({tables}) order by relname, conname""",
    "indexes": """
        select tablename, indexname, indexdef from pg_indexes
        where tablename = any({tables}) order by tablename, indexname""",
    "sequences": """
        select sequencename, data_type::text, start_value, min_value, max_value, increment_by,
            cycle, cache_size
        from pg_sequences where split_part(sequencename, '_id_seq', 1) = any({tables})
        order by sequencename""",
}


def catalog(database: Database, *more: str) -> dict[str, Any]:
    """Everything that the catalog says about the tables of both apps and `more`, if they exist."""
    tables = (*TABLES, *CHORD_TABLES, *more)
    if database.engine == "postgresql":
        names = "array['" + "','".join(tables) + "']"
        return {
            name: database.query(query.format(tables=names)) for name, query in POSTGRESQL.items()
        }
    if database.engine == "sqlite":
        names = "'" + "','".join(tables) + "'"
        # The SQL text itself, because Django reads it too.
        query = f"select type, name, sql from sqlite_master where tbl_name in ({names})"
        return {name: (kind, sql) for kind, name, sql in database.query(query)}
    there = {name for (name,) in database.query("show tables")}
    made = {name: database.query(f"show create table {name}")[0][1] for name in there & {*tables}}
    return {name: re.sub(r" AUTO_INCREMENT=\d+", "", sql) for name, sql in made.items()}


def recorded(database: Database) -> list[tuple[str, str]]:
    """The recorded migrations of both apps with their names, each app's in order."""
    apps = f"'{APP}', '{CHORDS_APP}'"
    return database.query(f"select app, name from {RECORDS} where app in ({apps}) order by app, id")
