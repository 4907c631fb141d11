"""Measures one worker with each way of storing results, on the same tasks in the same run.

    python -m benches.workers [--tasks N] [--concurrency N] [--track-started] [BACKEND…]

The tasks are in a queue before the worker begins to consume it, and return at once, so that the
cost of storing is measured. The time ends with the last task. CPU time is that of the worker and
its pool, read from /proc; PostgreSQL, RabbitMQ and the daemon run on the same machine, so their
work lowers the tasks per second. With `rpc://` and `celeriac://` a daemon stores the rows in
PostgreSQL meanwhile; `disabled://` stores nothing and shows the cost of everything else.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from celery import Celery

from benches.servers import servers
from harness import environments
from harness.broker import RESULTS, Broker
from harness.daemon import Daemon
from harness.database import Database
from harness.processes import Process, descendants, end_on_terminate, wait_until
from harness.project import SITE, Project

DIRECT = "celeriac://?started=direct"
BACKENDS = ("django-db", "rpc://", "celeriac://", DIRECT, "disabled://")
TASK = "shop.tasks.price"
QUEUE = "bench"
NODE = "bench@test"
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


def cpu_seconds(process: Process) -> float:
    """The CPU time of a process and its descendants, including children that have ended."""
    ticks = 0
    for pid in (process.pid, *descendants(process.pid)):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += sum(map(int, fields[11:15]))
    return ticks / TICKS_PER_SECOND


def publish(app: Celery, queue: str, tasks: int) -> None:
    with app.connection_for_write() as connection, app.amqp.Producer(connection) as producer:
        for number in range(tasks):
            app.send_task(
                TASK,
                (f"article {number}",),
                {"quantity": number % 10},
                queue=queue,
                reply_to=RESULTS,
                producer=producer,
                ignore_result=False,
            )


class Worker:
    """One worker, which begins with the tasks when it is told to."""

    def __init__(
        self, project: Project, app: Celery, backend: str, concurrency: int, log: Path
    ) -> None:
        self._app = app
        self._control = app.control
        celery = project.python.parent / "celery"
        options = ["--concurrency", str(concurrency), "--hostname", NODE, "--queues", "warm-up"]
        self.process = Process(
            f"Celery worker ({backend})",
            [celery, "-A", "shop", "--result-backend", backend, "worker", *options],
            log,
            env=project.env,
            cwd=SITE,
        )

    def _done(self) -> int:
        """How many tasks have ended."""
        stats = self._control.inspect([NODE], timeout=5).stats()
        active = self._control.inspect([NODE], timeout=5).active()
        if not stats or active is None:
            return 0
        return stats[NODE]["total"].get(TASK, 0) - len(active[NODE])

    def run(self, tasks: int, warm_up: int) -> tuple[float, float]:
        """Returns the seconds and the CPU seconds that the tasks take."""
        self.process.start()
        wait_until(lambda: self._control.ping([NODE], timeout=1), "the worker", 60)
        publish(self._app, "warm-up", warm_up)
        wait_until(lambda: self._done() >= warm_up, "the first tasks", 60)
        publish(self._app, QUEUE, tasks)
        cpu, clock = cpu_seconds(self.process), time.perf_counter()
        self._control.add_consumer(QUEUE, destination=[NODE])
        wait_until(lambda: self._done() >= warm_up + tasks, "all tasks to be over", 600, 0.1)
        return time.perf_counter() - clock, cpu_seconds(self.process) - cpu


def wait_for_rows(database: Database, rows: int) -> None:
    wait_until(lambda: database.count() >= rows, f"{rows} rows", 120, 0.2)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=10_000)
    parser.add_argument("--concurrency", type=int, default=4, help="processes of the pool")
    parser.add_argument("--track-started", action="store_true", help="store STARTED as well")
    parser.add_argument("backends", nargs="*", metavar="BACKEND", help=", ".join(BACKENDS))
    options = parser.parse_args()
    if unknown := set(options.backends) - set(BACKENDS):
        parser.error(f"{', '.join(unknown)} is not measured: choose from {', '.join(BACKENDS)}")
    end_on_terminate()

    states = "STARTED and SUCCESS" if options.track_started else "SUCCESS"
    print(f"{options.tasks} tasks on a prefork pool of {options.concurrency}, storing {states}")
    print(f"{'backend':<28}{'tasks':>10}{'CPU/task':>14}{'to django-db':>14}{'to rpc://':>12}")
    python = environments.python("celery-5.7")
    rates: dict[str, float] = {}
    warm_up = 10 * options.concurrency
    with ExitStack() as stack:
        used = stack.enter_context(servers())
        rabbitmq, databases, folder = used.rabbitmq, used.databases, used.folder
        for backend in options.backends or BACKENDS:
            broker, database = Broker(rabbitmq.create()), databases.migrated("postgresql")
            settings = {"TASK_TRACK_STARTED": "on" if options.track_started else "off"}
            project = Project(python, database.url, broker.url, settings)
            app = Celery(broker=broker.url)
            worker = Worker(project, app, backend, options.concurrency, folder / "worker.log")
            with ExitStack() as run:
                run.callback(app.close)
                run.callback(worker.process.kill)
                if backend not in ("django-db", "disabled://"):
                    daemon = Daemon(folder / "celeriac.log", broker.url, database.url)
                    run.callback(daemon.kill)
                    daemon.start_consuming()
                seconds, cpu = worker.run(options.tasks, warm_up)
                if backend != "disabled://":
                    wait_for_rows(database, options.tasks + warm_up)
            rates[backend] = rate = options.tasks / seconds

            def ratio(peer: str, rate: float = rate) -> str:
                return f"{rate / rates[peer]:.2f}x" if peer in rates else ""

            print(
                f"{backend:<28}{rate:>8.0f}/s{cpu / options.tasks * 1e6:>11.0f} µs"
                f"{ratio('django-db'):>14}{ratio('rpc://'):>12}",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
