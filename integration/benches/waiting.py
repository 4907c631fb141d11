"""Measures how long `delay().get()` takes with each result backend, and what waiting costs.

    python -m benches.waiting [--calls N] [--readers N] [--rate N] [--seconds N] [--python PATH]
                              [--redis URL] [BACKEND…]

First, one caller sends a task that returns at once to a real worker of two processes and waits for
its result, again and again, with one backend after another. Then many processes wait with
`celeriac://` for results that never come, while those of others are stored at a rate; the CPU time
of the readers is read from /proc. Redis is measured if it answers and the Python has its client.
"""

from __future__ import annotations

import argparse
import json
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

from benches.workers import cpu_seconds
from harness import environments, results
from harness.broker import RESULTS, Broker, connect
from harness.daemon import Daemon
from harness.database import Databases
from harness.processes import Failure, Process, descendants, end_on_terminate, wait_until
from harness.project import SITE, Project
from harness.services import service

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
took, sent = [], []
for _ in range(int(sys.argv[1])):
    started = time.perf_counter()
    sent.append(add.delay(1, 2))
    assert sent[-1].get(timeout=60) == 3
    took.append(time.perf_counter() - started)
if app.backend.as_uri().startswith("redis"):
    for result in sent:
        result.forget()
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


def can_use_redis(python: Path, url: str) -> bool:
    parts = urlsplit(url)
    try:
        socket.create_connection((parts.hostname, parts.port or 6379), 1).close()
    except OSError:
        return False
    client = subprocess.run([python, "-c", "import redis"], capture_output=True, check=False)
    return client.returncode == 0


def call(project: Project, backend: str, calls: int, log: Path) -> list[float]:
    """The seconds that each call takes."""
    project.env["RESULT_BACKEND"] = backend
    worker = project.worker(log, result_backend=backend)
    worker.start()
    try:
        worker.wait_for(" ready.")
        done = subprocess.run(
            [project.python, "-c", CALLS, str(calls + WARM_UP)],
            cwd=SITE,
            env=project.env,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise Failure(f"{backend}: {done.stderr}")
        return json.loads(done.stdout)[WARM_UP:]
    finally:
        worker.kill()


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
    parser.add_argument("--readers", type=int, default=50, help="processes that wait")
    parser.add_argument("--rate", type=int, default=500, help="results per second that pass them")
    parser.add_argument("--seconds", type=int, default=20, help="how long they do")
    parser.add_argument("--python", type=Path, help="the project's interpreter")
    parser.add_argument("--redis", default="redis://127.0.0.1:6379/9", help="a database of Redis")
    parser.add_argument("backends", nargs="*", metavar="BACKEND", help=", ".join(BACKENDS))
    options = parser.parse_args()
    if unknown := set(options.backends) - set(BACKENDS):
        parser.error(f"{', '.join(unknown)} is not measured: choose from {', '.join(BACKENDS)}")
    end_on_terminate()

    python = options.python or environments.python("celery-5.7")
    folder = Path(tempfile.mkdtemp(prefix="celeriac-bench-"))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        rabbitmq = stack.enter_context(service("rabbitmq"))
        postgresql = stack.enter_context(service("postgresql"))
        mariadb = stack.enter_context(service("mariadb"))
        migrating = environments.python("celery-5.7")
        databases = Databases(migrating, postgresql, mariadb, folder)
        broker, database = Broker(rabbitmq.create()), databases.migrated("postgresql")
        settings = {
            "TASK_TRACK_STARTED": "off",
            "DJANGO_SETTINGS_MODULE": "shop.settings",
            "PYTHONPATH": str(environments.PACKAGE),
        }
        project = Project(python, database.url, broker.url, settings)
        daemon = Daemon(folder / "celeriac.log", broker.url, database.url)
        stack.callback(daemon.kill)
        daemon.start_consuming()

        print(f"{options.calls} calls of delay().get(), one after another")
        print(f"{'backend':<14}{'median':>12}{'99 %':>12}")
        for backend in options.backends or BACKENDS:
            if backend == REDIS and not can_use_redis(python, options.redis):
                print(f"{backend:<14}  there is no server, or no client in {python}")
                continue
            url = options.redis if backend == REDIS else backend
            took = call(project, url, options.calls, folder / "worker.log")
            last = statistics.quantiles(took, n=100)[-1]
            median = statistics.median(took)
            print(f"{backend:<14}{median * 1e3:>9.1f} ms{last * 1e3:>9.1f} ms", flush=True)

        project.env["RESULT_BACKEND"] = "celeriac://"
        command = [python, "-c", READERS, str(options.readers)]
        log = folder / "readers.log"
        readers = Process("readers", command, log, env=project.env, cwd=SITE)
        stack.callback(readers.kill)
        readers.start()
        wait_until(lambda: len(descendants(readers.pid)) == options.readers, "readers", 60)
        time.sleep(5)
        print(f"\n{options.readers} processes wait for other results than those that are stored")
        print(f"{'stored':>14}{'CPU of a reader':>20}{'for each result':>20}")
        before_any = 0.0
        for rate in (0, options.rate):
            cpu, clock = cpu_seconds(readers), time.monotonic()
            sent = publish(broker, rate, options.seconds)
            time.sleep(1)
            share = (cpu_seconds(readers) - cpu) / (time.monotonic() - clock) / options.readers
            cost = (share - before_any) * options.seconds / sent * 1e6 if sent else 0.0
            before_any = before_any or share
            each = f"{cost:.0f} µs" if sent else ""
            print(f"{rate:>12}/s{share:>18.2%} {each:>20}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
