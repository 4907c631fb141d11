"""Deletes expired rows, beside somebody who writes, with `celeriac cleanup` and with Celery's own.

    python -m benches.cleanup [--rows N] [--batch N] [--pause DURATION] [ENGINE…]

N rows have expired, and a tenth as many have not. Meanwhile a writer stores a new row and changes
one of the old ones, again and again with a short rest, each in a transaction of its own, and its
longest wait is what the cleanup costs others. Without any cleanup, the same writer's longest wait
stands beside it. The peer is the task `celery.backend_cleanup` with django-celery-results, on the
same rows and with the same writer. The figures are those of one run, in which both take turns.
"""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pymysql

from harness import environments
from harness.daemon import binary
from harness.database import TABLE, Database, Databases
from harness.processes import end_on_terminate
from harness.project import SITE, Project, clean_environment
from harness.services import service

ENGINES = ("postgresql", "mariadb", "sqlite")

#: How long the writer works without a cleanup, and rests between two transactions, in seconds.
ALONE_SECONDS = 5
REST_SECONDS = 0.005

#: MySQL's number of the error.
DEADLOCK = 1213

CLEANUP = """
import time
from shop.celery import app
began = time.perf_counter()
app.tasks["celery.backend_cleanup"]()
print(time.perf_counter() - began)
"""

COLUMNS = (
    "task_id, status, content_type, content_encoding, result, meta, task_name, worker, date_done, "
    "date_created"
)


def fill(database: Database, rows: int) -> None:
    """Rows that have expired and such that have not, by the database itself."""
    old, new, text, cast = {
        "postgresql": (
            "now() - interval '2 days' + n * interval '1 ms'", "now()",
            "repeat('x', 400)", "cast(n as text)",
        ),
        "mariadb": (
            "utc_timestamp(6) - interval 2 day + interval n * 1000 microsecond",
            "utc_timestamp(6)", "repeat('x', 400)", "cast(n as char)",
        ),
        "sqlite": (
            "strftime('%Y-%m-%d %H:%M:%f', 'now', '-2 days', (n / 1000.0) || ' seconds')",
            "strftime('%Y-%m-%d %H:%M:%f', 'now')", "printf('%400s', '')", "cast(n as text)",
        ),
    }[database.engine]
    with database.connect() as connection:
        cursor = connection.cursor()
        cursor.execute("create table number (n integer)")
        cursor.execute("begin")
        cursor.execute("insert into number values (1)")
        have = 1
        while have < rows:
            cursor.execute(
                f"insert into number select n + {have} from number where n <= {rows - have}"
            )
            have = min(2 * have, rows)
        for prefix, done, where in (("'old-'", old, ""), ("'new-'", new, f"where n <= {rows // 10}")):
            mysql = database.engine == "mariadb"
            task_id = f"concat({prefix}, {cast})" if mysql else f"{prefix} || {cast}"
            cursor.execute(
                f"insert into {TABLE} ({COLUMNS}) select {task_id}, 'SUCCESS', 'application/json', "
                f"'utf-8', {text}, '{{}}', 'shop.tasks.pay', 'worker@host', {done}, {done} "
                f"from number {where}"
            )
        cursor.execute("commit")
        cursor.execute("drop table number")
        if database.engine == "postgresql":
            cursor.execute(f"vacuum analyze {TABLE}")


@dataclass
class Writer:
    """Somebody who writes one row after the other until the block ends."""

    database: Database
    rows: int
    waits: list[float] = field(default_factory=list)
    deadlocks: int = 0

    def __enter__(self) -> Writer:
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    @property
    def longest(self) -> float:
        """In milliseconds."""
        return max(self.waits) * 1000

    @staticmethod
    def _execute(cursor: Any, statement: str, task_id: str) -> bool:
        """False where InnoDB has chosen it to end a deadlock; then it is tried again, as lanes do."""
        try:
            cursor.execute(statement, (task_id,))
        except pymysql.err.OperationalError as error:
            if error.args[0] != DEADLOCK:
                raise
            return False
        return True

    def _run(self) -> None:
        mark = "?" if self.database.engine == "sqlite" else "%s"
        now = "utc_timestamp(6)" if self.database.engine == "mariadb" else "current_timestamp"
        insert = (
            f"insert into {TABLE} ({COLUMNS}) values ({mark}, 'SUCCESS', 'application/json', "
            f"'utf-8', 'null', '{{}}', 'shop.tasks.pay', 'worker@host', {now}, {now})"
        )
        update = f"update {TABLE} set date_done = {now}, worker = 'other' where task_id = {mark}"
        chance = random.Random(7)
        with self.database.connect() as connection:
            cursor = connection.cursor()
            while not self._is_over.is_set():
                for statement, task_id in (
                    (insert, f"fresh-{time.monotonic_ns()}"),
                    (update, f"old-{chance.randrange(1, self.rows + 1)}"),
                ):
                    began = time.perf_counter()
                    while not self._execute(cursor, statement, task_id):
                        self.deadlocks += 1
                    self.waits.append(time.perf_counter() - began)
                time.sleep(REST_SECONDS)


def ours(database: Database, options: argparse.Namespace) -> float:
    """Seconds that `celeriac cleanup` takes, its start included."""
    command = [
        str(binary()), "cleanup", "--database", database.url, "--cleanup-batch",
        str(options.batch), "--cleanup-pause", options.pause, "--json",
    ]
    began = time.perf_counter()
    done = subprocess.run(
        command, env=clean_environment(), capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise SystemExit(f"celeriac cleanup failed:\n{done.stderr}")
    return time.perf_counter() - began


def theirs(project: Project) -> float:
    """Seconds that Celery's task takes, without the start of Django."""
    done = subprocess.run(
        [project.python, "manage.py", "shell", "--no-imports", "-c", CLEANUP],
        cwd=SITE, env=project.env, capture_output=True, text=True, check=False,
    )
    if done.returncode != 0:
        raise SystemExit(f"Celery's cleanup failed:\n{done.stderr}")
    return float(done.stdout.split()[-1])


def left(database: Database) -> int:
    return database.query(f"select count(*) from {TABLE} where task_id like 'old-%' "
                          "and worker <> 'other'")[0][0]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=200_000, help="rows that have expired")
    parser.add_argument("--batch", type=int, default=1_000, help="--cleanup-batch")
    parser.add_argument("--pause", default="100ms", help="--cleanup-pause")
    parser.add_argument("engines", nargs="*", metavar="ENGINE", help=", ".join(ENGINES))
    options = parser.parse_args()
    if unknown := set(options.engines) - set(ENGINES):
        parser.error(f"no engine is called {', '.join(unknown)}: choose from {', '.join(ENGINES)}")
    end_on_terminate()
    print(f"{options.rows} expired rows, batches of {options.batch} and pauses of {options.pause}; "
          "the longest wait of a writer beside it")
    print(f"{'database':<12}{'no cleanup':>12}{'celeriac':>13}{'wait':>10}"
          f"{'the peer':>13}{'wait':>11}{'rows':>8}{'waits':>8}")
    python = environments.python("celery-5.7")
    folder = Path(tempfile.mkdtemp(prefix="celeriac-bench-"))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        postgresql = stack.enter_context(service("postgresql"))
        mariadb = stack.enter_context(service("mariadb"))
        databases = Databases(python, postgresql, mariadb, folder)
        for engine in options.engines or ENGINES:
            found = {}
            for name in ("ours", "theirs"):
                database = databases.migrated(engine)
                if engine == "sqlite":
                    # As Celeriac leaves the file, for both: otherwise readers would wait as well.
                    database.query("pragma journal_mode = wal")
                fill(database, options.rows)
                if name == "ours":
                    with Writer(database, options.rows) as alone:
                        time.sleep(ALONE_SECONDS)
                with Writer(database, options.rows) as writer:
                    if name == "ours":
                        seconds = ours(database, options)
                    else:
                        seconds = theirs(Project(python, database.url, "amqp://nobody"))
                if rest := left(database):
                    raise SystemExit(f"{rest} expired rows are left by {name}")
                found[name] = options.rows / seconds, writer.longest
                if writer.deadlocks:
                    print(f"  {name}: the writer met {writer.deadlocks} deadlocks")
            (our_rate, our_wait), (their_rate, their_wait) = found["ours"], found["theirs"]
            print(f"{engine:<12}{alone.longest:>9.0f} ms{our_rate:>11.0f}/s{our_wait:>7.0f} ms"
                  f"{their_rate:>11.0f}/s{their_wait:>8.0f} ms{our_rate / their_rate:>7.2f}x"
                  f"{our_wait / their_wait:>7.2f}x", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
