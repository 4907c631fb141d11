"""Measures how long `delay().get()` takes with each result backend, and what waiting costs.

    python -m benches.waiting [--calls N] [--chords SIZE:CALLS,…] [--readers N] [--rates N,N…] [--seconds N] [--redis URL]
                              [BACKEND…]

First, one caller sends a task that returns at once to a real worker of two processes and waits for
its result, again and again, with one backend after another. The same caller then sends chords and waits
for their bodies, with the backends that have chords. Then many processes wait with
`celeriac://` for results that never come, while those of others are stored at a rate, and one more
caller waits for its own results; the CPU time of the readers is read from /proc. Redis is measured
if it answers.
"""

from __future__ import annotations

import argparse
import json
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import urlsplit

from benches.servers import servers
from benches.workers import cpu_seconds
from harness import environments, results
from harness.broker import RESULTS, Broker, connect
from harness.daemon import Daemon
from harness.probe import Probe
from harness.processes import Failure, Process, descendants, end_on_terminate, wait_until
from harness.project import SITE, Project

REDIS = "redis://"
BACKENDS = ("django-db", "celeriac://", REDIS, "rpc://")
WARM_UP = 20

CALLS = """
import json, sys, time, django
django.setup()
from celery.signals import before_task_publish
from shop.celery import app, send_results_to_celeriac
from shop.tasks import add

before_task_publish.disconnect(send_results_to_celeriac)
hinted = 0.0
if app.backend.as_uri().startswith("celeriac"):
    from celeriac.hints import Hints

    deliver = Hints._deliver

    def note(self, ids):
        global hinted
        if sent[-1].id in ids:
            hinted = time.perf_counter()
        deliver(self, ids)

    Hints._deliver = note
took, sent, sending, reading = [], [], [], []
for _ in range(int(sys.argv[1])):
    started = time.perf_counter()
    sent.append(add.delay(1, 2))
    sending.append(time.perf_counter() - started)
    assert sent[-1].get(timeout=60) == 3
    ended = time.perf_counter()
    took.append(ended - started)
    reading.append(ended - hinted)
if app.backend.as_uri().startswith("redis"):
    for result in sent:
        result.forget()
print(json.dumps([took, sending, reading]))
"""

CHORDS = """
import json, sys, time, django
django.setup()
from celery import chord
from celery.signals import before_task_publish
from shop.celery import send_results_to_celeriac
from shop.tasks import add, total

before_task_publish.disconnect(send_results_to_celeriac)
took = []
for _ in range(int(sys.argv[2])):
    started = time.perf_counter()
    result = chord(add.s(number, 1) for number in range(int(sys.argv[1])))(total.s())
    result.get(timeout=120, interval=0.01)
    took.append(time.perf_counter() - started)
print(json.dumps(took))
"""

READERS = """
import os, sys, time, django
django.setup()
from celery import uuid
from shop.celery import app

app.backend
for _ in range(int(sys.argv[1])):
    if not os.fork():
        app.AsyncResult(uuid()).get()
time.sleep(3600)
"""


def answers(url: str) -> bool:
    parts = urlsplit(url)
    try:
        socket.create_connection((parts.hostname, parts.port or 6379), 1).close()
    except OSError:
        return False
    return True


def quantiles(took: list[float]) -> str:
    """The median and the 99th percentile as two columns."""
    last = statistics.quantiles(took, n=100)[-1]
    return f"{statistics.median(took) * 1e3:>9.1f} ms{last * 1e3:>9.1f} ms"


@contextmanager
def worker(project: Project, backend: str, log: Path) -> Iterator[None]:
    project.env["RESULT_BACKEND"] = backend
    worker = project.worker(log, result_backend=backend)
    worker.start()
    try:
        worker.wait_for(" ready.")
        yield
    finally:
        worker.kill()


def execute(project: Project, backend: str, program: str, *arguments: object) -> Any:
    """What a program prints as JSON, which calls tasks of a worker with this backend."""
    done = subprocess.run(
        [project.python, "-c", program, *map(str, arguments)],
        cwd=SITE,
        env=project.env,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise Failure(f"{backend}: {done.stderr}")
    return json.loads(done.stdout)


def call(project: Project, backend: str, calls: int, log: Path) -> list[list[float]]:
    """The seconds that each call takes, and of these the seconds to send the task and those from the
    hint to the result."""
    with worker(project, backend, log):
        took = execute(project, backend, CALLS, calls + WARM_UP)
    return [part[WARM_UP:] for part in took]


def measure_chords(project: Project, backends: Iterable[str], sizes: str, options: Any) -> None:
    print("\nchords: from sending the header to the body's result")
    print(f"{'members':>14}{'backend':>14}{'median':>12}{'slowest':>12}")
    for size, calls in (map(int, pair.split(":")) for pair in sizes.split(",")):
        for backend in backends:
            if backend == "rpc://" or (backend == REDIS and not answers(options.redis)):
                continue
            url = options.redis if backend == REDIS else backend
            with worker(project, url, options.folder / "worker.log"):
                execute(project, url, CHORDS, 10, 3)
                took = execute(project, url, CHORDS, size, calls)
            median, slowest = statistics.median(took) * 1e3, max(took) * 1e3
            print(f"{size:>14}{backend:>14}{median:>9.1f} ms{slowest:>9.1f} ms", flush=True)


def publish(broker: Broker, rate: int, seconds: float) -> int:
    """Publishes results at this rate; returns their number."""
    connection, sent = connect(broker.url, confirm=False), 0
    channel = connection.channel()
    started = time.monotonic()
    while (passed := time.monotonic() - started) < seconds:
        while sent < rate * passed:
            message = results.row(results.columns(results.new_id()))
            channel.basic_publish(message.to_amqp(), routing_key=RESULTS)
            sent += 1
        time.sleep(0.01)
    connection.close()
    return sent


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=300)
    parser.add_argument("--chords", default="10:30,200:5,2000:1", help="sizes of chords and calls")
    parser.add_argument("--readers", type=int, default=50, help="processes that wait")
    parser.add_argument("--rates", default="0,500,2000", help="results per second that pass them")
    parser.add_argument("--seconds", type=int, default=20, help="how long they do")
    parser.add_argument("--redis", default="redis://127.0.0.1:6379/9", help="a database of Redis")
    parser.add_argument("backends", nargs="*", metavar="BACKEND", help=", ".join(BACKENDS))
    options = parser.parse_args()
    if unknown := set(options.backends) - set(BACKENDS):
        parser.error(f"{', '.join(unknown)} is not measured: choose from {', '.join(BACKENDS)}")
    end_on_terminate()

    python = environments.python("celery-5.7")
    with ExitStack() as stack:
        used = stack.enter_context(servers())
        rabbitmq, databases, folder = used.rabbitmq, used.databases, used.folder
        broker, database = Broker(rabbitmq.create()), databases.migrated("postgresql")
        settings = {
            "TASK_TRACK_STARTED": "off",
            "DJANGO_SETTINGS_MODULE": "shop.settings",
            "PYTHONPATH": str(environments.PACKAGE),
        }
        project = Project(python, database.url, broker.url, settings)
        probe = Probe()
        daemon = Daemon(folder / "celeriac.log", broker.url, database.url, *probe.options)
        stack.callback(daemon.kill)
        daemon.start_consuming()

        def writes() -> tuple[float, float]:
            """The seconds of all writes of the daemon so far, and their number."""
            name = "database_write_duration_seconds"
            return tuple(probe.value(f"{name}_{one}", queue=RESULTS) for one in ("sum", "count"))

        print(f"{options.calls} calls of delay().get(), one after another")
        print(f"{'backend':<14}{'median':>12}{'99 %':>12}")
        for backend in options.backends or BACKENDS:
            if backend == REDIS and not answers(options.redis):
                print(f"{backend:<14}  no server answers at {options.redis}")
                continue
            url = options.redis if backend == REDIS else backend
            before = writes()
            took, sending, reading = call(project, url, options.calls, folder / "worker.log")
            print(f"{backend:<14}{quantiles(took)}", flush=True)
            if backend == "celeriac://":
                seconds, count = (now - then for now, then in zip(writes(), before, strict=True))
                print(f"{'':<14}of which: sending {statistics.median(sending) * 1e3:.1f} ms, "
                      f"the database's write {seconds / count * 1e3:.1f} ms, "
                      f"from the hint to the result {statistics.median(reading) * 1e3:.1f} ms")

        options.folder = folder
        measure_chords(project, options.backends or BACKENDS, options.chords, options)

        project.env["RESULT_BACKEND"] = "celeriac://"
        command = [python, "-c", READERS, str(options.readers)]
        log = folder / "readers.log"
        readers = Process("readers", command, log, env=project.env, cwd=SITE)
        stack.callback(readers.kill)
        readers.start()
        wait_until(lambda: len(descendants(readers.pid)) == options.readers, "readers", 60)
        time.sleep(5)
        print(f"\n{options.readers} processes wait for other results than those that are stored")
        print(f"{'stored':>14}{'CPU of all':>16}{'get() of one more':>22}{'99 %':>12}")
        for rate in map(int, options.rates.split(",")):
            cpu, clock = cpu_seconds(readers), time.monotonic()
            publishing = Thread(target=publish, args=(broker, rate, options.seconds))
            publishing.start()
            calls = max(options.calls // 3, 100)
            took, *_ = call(project, "celeriac://", calls, folder / "worker.log")
            publishing.join()
            share = (cpu_seconds(readers) - cpu) / (time.monotonic() - clock)
            print(f"{rate:>12}/s{share:>10.0%} core{'':>10}{quantiles(took)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
