"""Compares Celeriac with django-db on a real worker, and kills the daemon: `make demo`.

    python -m demo.demo

Every number is measured in this run. Both ways of storing results have the same server, the same
tasks and the same worker settings: Celery's defaults, with `result_extended`. PostgreSQL is private
and has its default durability; it logs every statement and records the time of every commit. If it
is not installed, SQLite is used, and these two are not measured. With `KEEP=1`, Django's admin
stays open.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from celery import Celery
from celery.utils import uuid

from benches.statements import cost, waits
from benches.workers import cpu_seconds
from harness.broker import DEAD, RESULTS, Broker
from harness.daemon import CONSUMING, binary
from harness.database import TABLE, Database, Databases
from harness.processes import Failure, Process, let_children_have_signals, wait_until
from harness.project import SITE, Project
from harness.services import (
    HOST,
    PrivatePostgreSQL,
    Service,
    free_port,
    port_is_open,
    private,
    service,
)

WAYS = ("django-db", "celeriac://")
TASK = "demo.tasks.price"
CONCURRENCY = 4
#: How long django-db is to be busy, which determines the number of tasks, within these limits.
SECONDS = 20
FEWEST, MOST = 300, 5_000
#: The Python of the virtual environment, which runs the worker too.
PYTHON = Path(sys.executable)
#: The node name that `Project.worker` sets.
NODE = "worker@test"
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
#: How long to wait for progress; slow machines need a while.
PATIENCE_SECONDS = 90


def heading(text: str) -> None:
    print(f"\n{text}\n", flush=True)


def step(text: str) -> None:
    print(f"  {text}", flush=True)


class Progress:
    """A line that is rewritten on a terminal, and otherwise printed now and then."""

    def __init__(self) -> None:
        self._rewrites = sys.stdout.isatty()
        self._every = 0.2 if self._rewrites else 10.0
        self._next = time.monotonic() + self._every

    def show(self, text: str) -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + self._every
            if self._rewrites:
                print(f"\r    {text}\033[K", end="", flush=True)
            else:
                print(f"    {text}", flush=True)

    def end(self) -> None:
        if self._rewrites:
            print("\r\033[K", end="", flush=True)


@dataclass(frozen=True)
class Figures:
    """The cost of a way of storing results; None for what was not measured."""

    rows_per_second: float
    worker_cpu_seconds: float
    daemon_cpu_seconds: float | None
    statements: float | None
    lag_seconds: float | None


@dataclass(frozen=True)
class Shop:
    """A Django project with a running worker, and the daemon if results go through it."""

    project: Project
    database: Database
    broker: Broker
    app: Celery
    worker: Process
    daemon: Process | None
    server: PrivatePostgreSQL | None

    def send(self, queue: str, tasks: int) -> dict[str, str]:
        """Sends tasks to a queue that has no consumer yet; returns their articles by task id."""
        sent = {uuid(): f"article {number}" for number in range(tasks)}
        with self.app.connection_for_write() as connection:
            with self.app.amqp.Producer(connection) as producer:
                for task_id, article in sent.items():
                    self.app.send_task(
                        TASK,
                        (article,),
                        task_id=task_id,
                        queue=queue,
                        producer=producer,
                        ignore_result=False,
                    )
        return sent

    def consume(self, queue: str) -> None:
        """Makes the worker consume a queue."""
        self.app.control.add_consumer(queue, destination=[NODE])

    def wait_for_rows(self, before: int, rows: int, of: int) -> None:
        """Waits for this many rows more than `before`, and shows the progress as a part of `of`."""
        progress = Progress()
        stored = 0
        with self.database.connect() as connection:
            # `waits` does not recognise this program's statements if psycopg prepares them.
            if self.server:
                connection.prepare_threshold = None
            cursor = connection.cursor()

            def are_more() -> bool:
                nonlocal stored
                last = stored
                cursor.execute(f"select count(*) from {TABLE}")
                stored = cursor.fetchone()[0] - before
                return stored > last

            watched = self.daemon or self.worker
            while stored < rows:
                watched.wait_while_alive(are_more, "new row", PATIENCE_SECONDS)
                progress.show(f"{stored:,} of {of:,} rows")
        progress.end()

    def statements(self) -> int | None:
        """How many statements PostgreSQL has received so far, except those of `waits`."""
        if self.server is None:
            return None
        done = cost(self.server, self.database)
        return done.statements + done.transactions - waits(self.server, self.database)

    def lag_seconds(self, sent: dict[str, str]) -> float | None:
        """The median time from the end of a task to the commit of its row."""
        if self.server is None:
            return None
        rows = self.database.query(
            "select task_id, result, extract(epoch from pg_xact_commit_timestamp(xmin)) "
            f"from {TABLE}"
        )
        return statistics.median(
            float(committed) - json.loads(result)["ended"]
            for task_id, result, committed in rows
            if task_id in sent
        )

    def warm_up(self) -> float:
        """Runs the first tasks and returns the number per second."""
        tasks = 15 * CONCURRENCY
        self.send("warm-up", tasks)
        began = time.perf_counter()
        self.consume("warm-up")
        self.wait_for_rows(0, tasks, tasks)
        return tasks / (time.perf_counter() - began)

    def measure(self, tasks: int) -> Figures:
        """Runs this many tasks, all of which are in a queue before the first one begins."""
        before = self.database.count()
        sent = self.send("measured", tasks)
        processes = [process for process in (self.worker, self.daemon) if process]
        statements = self.statements()
        cpu = [cpu_seconds(process) for process in processes]
        began = time.perf_counter()
        self.consume("measured")
        self.wait_for_rows(before, tasks, tasks)
        seconds = time.perf_counter() - began
        used = [cpu_seconds(process) - at_first for process, at_first in zip(processes, cpu)]
        more = self.statements()
        return Figures(
            tasks / seconds,
            used[0] / tasks,
            used[1] / tasks if self.daemon else None,
            (more - statements) / tasks if statements is not None else None,
            self.lag_seconds(sent),
        )

    def survive(self, tasks: int) -> None:
        """Kills the daemon while tasks are running, starts it again, and checks every row."""
        assert self.daemon
        before = self.database.count()
        sent = self.send("killed", tasks)
        step(f"sent {tasks:,} tasks")
        self.consume("killed")
        self.wait_for_rows(before, tasks // 3, tasks)
        pid = self.daemon.pid
        self.daemon.kill()
        stored = self.database.count() - before
        step(f"killed the daemon (kill -9 {pid}) when {stored:,} of {tasks:,} rows were stored")
        waiting = 0

        def worker_goes_on() -> bool:
            nonlocal waiting
            waiting = self.broker.depth(RESULTS)
            return waiting >= (tasks - stored) // 2

        self.worker.wait_while_alive(worker_goes_on, "results in RabbitMQ", PATIENCE_SECONDS)
        step(f"the worker went on without it: {waiting:,} results wait in RabbitMQ")
        self.daemon.start()
        self.daemon.wait_for(CONSUMING)
        step("started the daemon again")
        self.wait_for_rows(before, tasks, tasks)
        wait_until(lambda: not self.broker.depth(RESULTS), "an empty queue of results", 60)
        self.check(sent)

    def check(self, sent: dict[str, str]) -> None:
        """Compares the rows with the tasks that were sent."""
        rows = [
            row
            for row in self.database.query(f"select task_id, status, result from {TABLE}")
            if row[0] in sent
        ]
        ids = {row[0] for row in rows}
        right = sum(
            status == "SUCCESS" and json.loads(result)["article"] == sent[task_id]
            for task_id, status, result in rows
        )
        found = {
            "tasks sent": len(sent),
            "rows": len(rows),
            "with the right result": right,
            "missing": len(sent.keys() - ids),
            "duplicated": len(rows) - len(ids),
            "dead letters": self.broker.depth(DEAD),
        }
        print()
        for what, number in found.items():
            step(f"{what:<24}{number:>8,}")
        if list(found.values()) != [len(sent)] * 3 + [0] * 3:
            raise Failure("rows are missing or wrong after the daemon was killed: this is a bug")

    def keep_open(self, folder: Path, stack: ExitStack) -> None:
        """Leaves Django's admin open until Ctrl-C."""
        password = secrets.token_hex(4)
        self.project.env |= {
            "DJANGO_SUPERUSER_USERNAME": "admin",
            "DJANGO_SUPERUSER_PASSWORD": password,
            "DJANGO_SUPERUSER_EMAIL": "admin@example.org",
        }
        self.project.manage("createsuperuser", "--noinput")
        self.project.manage("send_demo")
        step("sent a few more: a failure, retries, a custom state, a chain, a group and a chord")
        address = f"{HOST}:{free_port()}"
        # Without DEBUG, runserver serves style sheets only with this option.
        command = ["manage.py", "runserver", "--insecure", "--noreload", address]
        site = Process(
            "Django",
            [self.project.python, *command],
            folder / "django.log",
            env=self.project.env,
            cwd=SITE,
        )
        stack.callback(site.kill)
        site.start()
        port = int(address.rpartition(":")[2])
        site.wait_while_alive(lambda: port_is_open(port), "open port", 60)
        print()
        step(f"address   http://{address}/admin/django_celery_results/taskresult/")
        step("user      admin")
        step(f"password  {password}")
        print()
        step(f"Press Ctrl-C to stop everything (or run `kill {os.getpid()}`).")
        try:
            while all(process.is_alive() for process in (site, self.worker, self.daemon)):
                time.sleep(0.5)
        except KeyboardInterrupt:
            return
        raise Failure("Django, the worker or the daemon ended by itself")


def postgresql_is_installed() -> bool:
    return bool([*Path("/usr/lib/postgresql").glob("*/bin/postgres")] or shutil.which("postgres"))


@contextmanager
def open_shop(
    way: str,
    server: PrivatePostgreSQL | None,
    rabbitmq: Service,
    databases: Databases,
    folder: Path,
) -> Iterator[Shop]:
    """Sets up a shop with its own database and virtual host."""
    step(f"{way}: a new database, and a worker of {CONCURRENCY} processes")
    database = databases.migrated("postgresql" if server else "sqlite")
    broker = Broker(rabbitmq.create())
    settings = {
        "CELERIAC_BIN": str(binary()),
        "DJANGO_SETTINGS_MODULE": "demo.settings",
        "PYTHONPATH": str(SITE.parent),
        "RESULT_BACKEND": way,
        "TASK_TRACK_STARTED": "off",
    }
    project = Project(PYTHON, database.url, broker.url, settings)
    options = ["--concurrency", str(CONCURRENCY), "--loglevel", "WARNING"]
    worker = project.worker(folder / f"worker-{way.rstrip(':/')}.log", *options)
    daemon = project.daemon(folder / "daemon.log") if way == "celeriac://" else None
    with ExitStack() as stack:
        app = stack.enter_context(Celery(broker=broker.url))
        if daemon:
            stack.callback(daemon.kill)
            daemon.start()
            daemon.wait_for(CONSUMING)
        stack.callback(worker.kill)
        worker.start()
        worker.wait_while_alive(
            lambda: app.control.ping([NODE], timeout=1), "answer", PATIENCE_SECONDS
        )
        yield Shop(project, database, broker, app, worker, daemon, server)


def show(tasks: int, figures: list[Figures]) -> None:
    """Prints the table."""

    def line(name: str, cells: list[str]) -> None:
        step(f"{name:<44}" + "".join(f"{cell:>14}" for cell in cells))

    def cell(value: float | None, scale: float, form: str) -> str:
        return "–" if value is None else format(value * scale, form)

    print()
    line(f"{tasks:,} tasks", list(WAYS))
    for name, field, scale, form in (
        ("rows stored a second", "rows_per_second", 1, ",.0f"),
        ("SQL statements per task", "statements", 1, ".2f"),
        ("CPU of the worker per task, ms", "worker_cpu_seconds", 1e3, ".2f"),
        ("CPU of the daemon per task, ms", "daemon_cpu_seconds", 1e3, ".2f"),
        ("from a task's end to its row, median, ms", "lag_seconds", 1e3, ".1f"),
    ):
        line(name, [cell(getattr(figure, field), scale, form) for figure in figures])


def run(folder: Path) -> None:
    """Runs the demo and then cleans up, which no signal interrupts."""
    with ExitStack() as stack:
        try:
            show_all(folder, stack)
        finally:
            for number in ENDING:
                signal.signal(number, signal.SIG_IGN)
            print("\nStopping and removing what was started and created…", flush=True)


def show_all(folder: Path, stack: ExitStack) -> None:
    heading("1. The same tasks with each result backend")
    load, processors = os.getloadavg()[0], os.cpu_count() or 1
    if load > processors:
        step(f"this machine is busy already (load {load:.0f} on {processors} processors):")
        step("the demo takes longer, and rates are lower than on an idle machine")
    server = None
    if postgresql_is_installed():
        step("starting a private PostgreSQL")
        options = {
            "fsync": "on",
            "log_line_prefix": "db=%d ",
            "log_statement": "all",
            "track_commit_timestamp": "on",
        }
        server = stack.enter_context(private("postgresql", **options))
    else:
        step("using SQLite, as PostgreSQL is not installed; statements and the times of rows can")
        step("only be measured on PostgreSQL")
    rabbitmq = stack.enter_context(service("rabbitmq"))
    databases = Databases(PYTHON, server, None, folder)
    figures = []
    with open_shop(WAYS[0], server, rabbitmq, databases, folder) as shop:
        rate = shop.warm_up()
        tasks = max(FEWEST, min(MOST, 100 * round(rate * SECONDS / 100)))
        figures.append(shop.measure(tasks))
    shop = stack.enter_context(open_shop(WAYS[1], server, rabbitmq, databases, folder))
    shop.warm_up()
    figures.append(shop.measure(tasks))
    show(tasks, figures)
    heading("2. The daemon is killed while tasks run")
    shop.survive(tasks)
    if os.environ.get("KEEP") == "1":
        heading("3. The rows in Django's admin")
        shop.keep_open(folder, stack)


def end_in_order() -> None:
    """Makes signals raise KeyboardInterrupt, except those that we were started to ignore."""

    def unwind(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    for number in ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, unwind)
    let_children_have_signals()


def main() -> int:
    end_in_order()
    folder = Path(tempfile.mkdtemp(prefix="celeriac-demo-"))
    try:
        run(folder)
    except Failure as failure:
        print(
            f"\nThe demo failed: {failure}\n\n"
            f"The logs of the worker, the daemon and Django are in {folder}.\n"
            "If the RabbitMQ on this machine is the cause, use a private one:\n"
            "    make demo CELERIAC_TEST_PRIVATE=1",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print("\nThe demo was interrupted; what it had started is stopped.", flush=True)
        shutil.rmtree(folder)
        return 130
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
