"""Counts the SQL statements and row versions per task, for each way of storing results.

    python -m benches.statements [--tasks N] [--concurrency N]

A worker runs tasks that start and succeed, and STARTED is stored too. A private PostgreSQL logs
every statement with its database, and its statistics give the number of row versions written.
"live" is a daemon that stores while the worker is working, "backlog" one that starts after the
worker has finished. The statements that begin and end transactions are counted separately.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from celery import Celery

from benches.workers import publish
from harness import environments
from harness.broker import EVENTS, RESULTS, Broker
from harness.daemon import Daemon
from harness.database import TABLE, Database, Databases
from harness.processes import end_on_terminate, wait_until
from harness.project import Project
from harness.services import PrivatePostgreSQL, private, service

#: A line of the log: the database, and the first word of the statement.
STATEMENT = re.compile(r"^db=(\S*) LOG:  (?:statement|execute [^:]*): *(\w+)", re.MULTILINE)
TRANSACTION = {"BEGIN", "COMMIT", "ROLLBACK", "SAVEPOINT", "RELEASE", "START"}


@dataclass(frozen=True)
class Way:
    """A result backend, and the options of the daemon if it needs one."""

    name: str
    backend: str
    options: tuple[str, ...] | None = None
    backlog: bool = False


WAYS = (
    Way("django-db", "django-db"),
    Way("celeriac://, live", "celeriac://", ()),
    Way("celeriac:// and events, live", "celeriac://", ("--events",)),
    Way("celeriac://, backlog", "celeriac://", (), backlog=True),
    Way("celeriac:// and events, backlog", "celeriac://", ("--events",), backlog=True),
)


@dataclass
class Cost:
    statements: int
    transactions: int
    written: int


def cost(server: PrivatePostgreSQL, database: Database) -> Cost:
    """What has been done in a database so far."""
    name = urlsplit(database.url).path[1:]
    words = [
        word.upper()
        for found, word in STATEMENT.findall(server.process.log.read_text(errors="replace"))
        if found == name
    ]
    of_transactions = sum(word in TRANSACTION for word in words)
    return Cost(len(words) - of_transactions, of_transactions, written(database))


def written(database: Database) -> int:
    """The number of row versions that were written to the table of task results."""
    [(versions,)] = database.query(
        f"select n_tup_ins + n_tup_upd from pg_stat_user_tables where relname = '{TABLE}'"
    )
    return versions


def wait_for_statistics(database: Database) -> None:
    """Waits because sessions report their statistics only when they end or are idle."""
    last = -1

    def is_quiet() -> bool:
        nonlocal last
        before, last = last, written(database)
        return before == last

    wait_until(is_quiet, "the statistics to come to rest", 30, 1.5)


def measure(
    way: Way,
    tasks: int,
    concurrency: int,
    server: PrivatePostgreSQL,
    broker: Broker,
    databases: Databases,
    python: Path,
    folder: Path,
) -> Cost:
    """Runs the tasks, counting from when the worker and the daemon are ready."""
    database = databases.migrated("postgresql")
    settings = {"RESULT_BACKEND": way.backend, "TASK_TRACK_STARTED": "on"}
    project = Project(python, database.url, broker.url, settings)
    worker = project.worker(folder / "worker.log", "-E", "--concurrency", str(concurrency))
    daemon = Daemon(folder / "celeriac.log", broker.url, database.url, *(way.options or ()))
    queues = [RESULTS, EVENTS] if way.options else [RESULTS]
    with ExitStack() as stack:
        stack.callback(worker.kill)
        stack.callback(daemon.kill)
        if way.options is not None:
            # The queues must exist before the first message.
            daemon.start()
            daemon.wait_for_consuming(len(queues))
            if way.backlog:
                daemon.stop()
        with Celery(broker=broker.url) as app:
            publish(app, "celery", tasks)
        before = cost(server, database)
        worker.start()
        if way.backlog:
            wait_until(lambda: broker.depth(RESULTS) >= 2 * tasks, "all results", 600, 0.5)
            worker.stop()
            daemon.start()
        succeeded = f"select count(*) from {TABLE} where status = 'SUCCESS'"
        wait_until(lambda: database.query(succeeded)[0][0] >= tasks, "all rows", 600, 0.5)
        worker.stop()
        if way.options is not None:
            wait_until(lambda: not any(map(broker.depth, queues)), "empty queues", 60)
            daemon.stop()
        wait_for_statistics(database)
        after = cost(server, database)
    # The statements of the waits above are ours and are recognised by their text.
    return Cost(
        after.statements - before.statements - waits(server, database),
        after.transactions - before.transactions,
        after.written - before.written,
    )


def waits(server: PrivatePostgreSQL, database: Database) -> int:
    """How many statements of this program were run in a database."""
    name = urlsplit(database.url).path[1:]
    log = server.process.log.read_text(errors="replace")
    return len(
        re.findall(rf"^db={name} LOG:  statement: select (?:count|n_tup_ins)", log, re.MULTILINE)
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=2_000)
    parser.add_argument("--concurrency", type=int, default=4, help="processes of the pool")
    options = parser.parse_args()
    end_on_terminate()
    python = environments.python("celery-5.7")
    folder = Path(tempfile.mkdtemp(prefix="celeriac-bench-"))
    print(f"{options.tasks} tasks with STARTED and SUCCESS, per task:")
    print(f"{'':<32}{'statements':>12}{'of transactions':>17}{'rows written':>14}")
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        rabbitmq = stack.enter_context(service("rabbitmq"))
        mariadb = stack.enter_context(service("mariadb"))
        server = stack.enter_context(private("postgresql"))
        assert isinstance(server, PrivatePostgreSQL)
        databases = Databases(python, server, mariadb, folder)
        databases.migrated("postgresql")
        with Database(server.url).connect() as connection:
            for setting in ("log_statement = 'all'", "log_line_prefix = 'db=%d '"):
                connection.cursor().execute(f"alter system set {setting}")
            connection.cursor().execute("select pg_reload_conf()")
        for way in WAYS:
            broker = Broker(rabbitmq.create())
            found = measure(
                way, options.tasks, options.concurrency, server, broker, databases, python, folder
            )
            numbers = [
                number / options.tasks
                for number in (found.statements, found.transactions, found.written)
            ]
            columns = f"{numbers[0]:>12.3f}{numbers[1]:>17.3f}{numbers[2]:>14.3f}"
            print(f"{way.name:<32}{columns}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
