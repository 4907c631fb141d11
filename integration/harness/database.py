"""A database with Django's tables, used with plain SQL.

SQL is faster than Django for waiting and counting, because it needs no new process each time.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import psycopg
import pymysql

from harness.project import Project
from harness.services import MariaDB, PostgreSQL, unique_name

ENGINES = ("postgresql", "mariadb", "sqlite")

TABLE = "django_celery_results_taskresult"


class Database:
    """One database, given by its URL."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.engine = {"postgres": "postgresql", "mysql": "mariadb"}.get(
            urlsplit(url).scheme, "sqlite"
        )

    def connect(self) -> AbstractContextManager[Any]:
        """An autocommit connection that is closed at the end of the `with` block."""
        parts = urlsplit(self.url)
        name = unquote(parts.path[1:])
        if self.engine == "sqlite":
            return closing(sqlite3.connect(name, timeout=30, isolation_level=None))
        if self.engine == "postgresql":
            return closing(psycopg.connect(self.url, autocommit=True))
        return closing(
            pymysql.connect(
                host=parts.hostname,
                port=parts.port or 3306,
                user=unquote(parts.username or "root"),
                password=unquote(parts.password or ""),
                database=name,
                autocommit=True,
            )
        )

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        with self.connect() as connection:
            cursor = connection.cursor()
            cursor.execute(sql)
            return list(cursor.fetchall())

    def execute(self, sql: str) -> None:
        with self.connect() as connection:
            connection.cursor().execute(sql)

    def rows(self) -> dict[str, dict[str, Any]]:
        """All rows by task id, as columns by name, without the primary key."""
        with self.connect() as connection:
            cursor = connection.cursor()
            cursor.execute(f"select * from {TABLE}")
            names = [column[0] for column in cursor.description]
            rows = [dict(zip(names, values, strict=True)) for values in cursor.fetchall()]
        for row in rows:
            del row["id"]
        return {row["task_id"]: row for row in rows}

    def count(self) -> int:
        return self.query(f"select count(*) from {TABLE}")[0][0]

    def statuses(self) -> dict[str, str]:
        return dict(self.query(f"select task_id, status from {TABLE}"))

    def forget(self, task_id: str) -> None:
        """Deletes one row."""
        mark = "?" if self.engine == "sqlite" else "%s"
        with self.connect() as connection:
            connection.cursor().execute(f"delete from {TABLE} where task_id = {mark}", (task_id,))

    def row(self, task_id: str) -> dict[str, Any] | None:
        """One row as columns by name, or None, also if the database cannot store such an id."""
        mark = "?" if self.engine == "sqlite" else "%s"
        with self.connect() as connection:
            cursor = connection.cursor()
            try:
                cursor.execute(f"select * from {TABLE} where task_id = {mark}", (task_id,))
            except (psycopg.DataError, UnicodeEncodeError):
                return None
            values = cursor.fetchone()
            names = [column[0] for column in cursor.description]
        return dict(zip(names, values, strict=True)) if values else None

    def lock(self, connection: Any) -> None:
        """Blocks all other writers until `connection` is closed."""
        statements = {
            "postgresql": ["begin", f"lock table {TABLE} in access exclusive mode"],
            "mariadb": [f"lock tables {TABLE} write"],
            "sqlite": ["begin exclusive"],
        }
        cursor = connection.cursor()
        for statement in statements[self.engine]:
            cursor.execute(statement)


class Databases:
    """New databases with Django's tables, copied from one that is migrated once for each engine.

    `templates` are the URLs of databases that are already migrated, by engine.
    """

    def __init__(
        self,
        python: Path,
        postgresql: PostgreSQL,
        mariadb: MariaDB,
        folder: Path,
        templates: Mapping[str, str] | None = None,
    ) -> None:
        self._python = python
        self._servers = {"postgresql": postgresql, "mariadb": mariadb}
        self._folder = folder
        self._templates = dict(templates or {})

    def empty(self, engine: str) -> Database:
        """A database without tables."""
        if engine == "sqlite":
            return Database(f"sqlite:///{self._folder / unique_name()}.sqlite3")
        return Database(self._servers[engine].create())

    def migrate(self, database: Database, python: Path | None = None) -> None:
        Project(python or self._python, database.url, "amqp://nobody").migrate()

    def templates(self) -> dict[str, str]:
        """The URLs of the migrated databases, by engine."""
        with ThreadPoolExecutor() as all_at_once:
            return dict(zip(ENGINES, all_at_once.map(self._template, ENGINES), strict=True))

    def _template(self, engine: str) -> str:
        if engine not in self._templates:
            template = self.empty(engine)
            self.migrate(template)
            self._templates[engine] = template.url
        return self._templates[engine]

    def migrated(self, engine: str) -> Database:
        template_url = self._template(engine)
        if engine != "sqlite":
            return Database(self._servers[engine].copy(template_url))
        fresh = self.empty(engine)
        shutil.copy(urlsplit(template_url).path[1:], urlsplit(fresh.url).path[1:])
        return fresh
