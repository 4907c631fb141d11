"""Records the captures in `tests/data/golden/`: what workers publish, and what
django-celery-results stores for the same tasks, for each version of Celery and each serializer.

    make captures [CAPTURES=NAME…]                      (without a name: all of them)
    python -m captures.make_captures [--list] [NAME…]

A part of the zoo runs twice with the same task ids. One worker has `rpc://` and sends events: its
messages and the events of its clients become `NAME.messages.jsonl.gz`, one message per line in the
order of arrival, in the format of `celeriac capture`. The other has `django-db`: its rows become
`NAME.rows.json.gz`, an object of columns for each task id. The id of a case is
`task_id_of("golden", CASE)`; see `zoo/shop/zoo/cases.py`.

Tracebacks contain the paths of files, so run this in a clone in `/srv/celeriac`. Celery 4.4 needs
Python 3.9, for these captures only: the one given with `--python3.9`, or one in PATH or pyenv.
Celery 5.2 needs the Python of the environments to be older than 3.12.

The messages in `kombu-compression.messages.jsonl.gz` are published by kombu: the same bodies
without compression and then with each of its compressions.

The key and the certificate of the signed captures are created if they do not exist. They protect
nothing, because both are stored next to the captures.
"""

from __future__ import annotations

import argparse
import base64
import datetime
import gzip
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import amqp
import kombu
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from harness import environments, results
from harness.broker import EVENT_EXCHANGE, RESULTS, Broker, connect, drain, open_channel
from harness.daemon import REPOSITORY
from harness.database import Database
from harness.parity import PROCESSES, RUN_SECONDS, Side
from harness.processes import Failure, end_on_terminate, wait_until
from harness.project import Project
from harness.services import PostgreSQL, RabbitMQ, say, service

GOLDEN = REPOSITORY / "tests" / "data" / "golden"
KEY = GOLDEN / "worthless-test-key.pem"
CERTIFICATE = GOLDEN / "worthless-test-certificate.pem"

#: The name of the run; all task ids are derived from it.
RUN = "golden"

#: How long a worker must be silent to count as done. Some tasks wait for three seconds.
QUIET_SECONDS = 5

#: The environment of each version of Celery.
ENVIRONMENTS = {
    "4.4.7": "captures/celery-4.4",
    "5.2.7": "celery-5.2",
    "5.4.0": "celery-5.4",
    "5.6.3": "celery-5.6",
    "5.7.0": "celery-5.7",
}
OLD = "4.4.7"
NEWEST = "5.7.0"


@dataclass(frozen=True)
class Capture:
    celery: str
    serializer: str
    extended: bool = True
    pickle_protocol: int | None = None

    @property
    def name(self) -> str:
        protocol = self.pickle_protocol or ""
        plain = "" if self.extended else "-plain"
        return f"celery-{self.celery}-{self.serializer}{protocol}{plain}"

    @property
    def is_signed(self) -> bool:
        return self.serializer == "auth"

    @property
    def cases(self) -> str:
        """The option that selects the cases to run; see `zoo/shop/zoo/golden.py`."""
        if self.is_signed:
            return "--signed"
        return "--golden" if self.celery == NEWEST and self.extended else "--few"

    def settings(self) -> dict[str, str]:
        """The variables that `zoo/shop/settings.py`, kombu and Celery read."""
        settings = {
            "RESULT_SERIALIZER": self.serializer,
            "RESULT_EXTENDED": "on" if self.extended else "off",
            "EVENT_SERIALIZER": self.serializer,
            # Only with one serializer, because they add little to the worker's events.
            "TASK_SEND_SENT_EVENT": "on" if self.serializer == "json" else "off",
            "ACCEPT_CONTENT": "json,msgpack,yaml,pickle",
        }
        if self.pickle_protocol:
            settings["PICKLE_PROTOCOL"] = str(self.pickle_protocol)
        if self.is_signed:
            settings |= {
                "TASK_SERIALIZER": "auth",
                "ACCEPT_CONTENT": "auth",
                "SECURITY_KEY": str(KEY),
                "SECURITY_CERTIFICATE": str(CERTIFICATE),
            }
        return settings


CAPTURES = [
    *(
        Capture(celery, serializer)
        for celery in ENVIRONMENTS
        for serializer in ("json", "msgpack", "yaml", "pickle", "auth")
        # 5.4 compares a naive time with an aware one for every certificate, which fails.
        if (celery, serializer) != ("5.4.0", "auth")
    ),
    Capture(NEWEST, "pickle", pickle_protocol=2),
    Capture(NEWEST, "pickle", pickle_protocol=5),
    Capture(NEWEST, "json", extended=False),
]
COMPRESSION = "kombu-compression"


# Messages ------------------------------------------------------------------------------------


def line_of(message: amqp.Message) -> dict[str, Any]:
    """A message as a line of a capture."""
    properties = dict(message.properties)
    headers = properties.pop("application_headers", None) or {}
    return {
        "exchange": message.delivery_info["exchange"],
        "routing_key": message.delivery_info["routing_key"],
        "redelivered": message.delivery_info["redelivered"],
        "properties": properties,
        "headers": headers,
        "body_b64": base64.b64encode(bytes(message.body or b"")).decode(),
    }


class Tap:
    """Consumes all results and events of a virtual host from one queue."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._error: BaseException | None = None
        self._last = time.monotonic()
        self.lines: list[dict[str, Any]] = []

    def __enter__(self) -> Tap:
        self._broker.declare(RESULTS, {})
        with self._broker.channel() as channel:
            channel.exchange_declare(EVENT_EXCHANGE, "topic", durable=True, auto_delete=False)
        self._broker.bind(RESULTS, EVENT_EXCHANGE, "#")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._error:
            raise self._error

    def is_quiet(self) -> bool:
        """Whether there have been no messages about tasks for a while."""
        return time.monotonic() - self._last > QUIET_SECONDS

    def _run(self) -> None:
        try:
            connection = connect(self._broker.url, confirm=False)
            open_channel(connection).basic_consume(RESULTS, no_ack=True, callback=self._take)
            while not self._stop.is_set():
                drain(connection, seconds=0.1)
            connection.close()
        except BaseException as error:  # raised again in `__exit__`
            self._error = error

    def _take(self, message: amqp.Message) -> None:
        line = line_of(message)
        self.lines.append(line)
        if not line["routing_key"].startswith("worker."):
            self._last = time.monotonic()


# Files ---------------------------------------------------------------------------------------


def write(name: str, text: str) -> None:
    """Compresses without a timestamp, so that the same text gives the same file."""
    (GOLDEN / f"{name}.gz").write_bytes(gzip.compress(text.encode(), 9, mtime=0))


def write_messages(name: str, lines: Iterable[Mapping[str, Any]]) -> None:
    write(f"{name}.messages.jsonl", "".join(f"{json.dumps(line)}\n" for line in lines))


def write_rows(name: str, rows: Mapping[str, Mapping[str, Any]]) -> None:
    def column(value: object) -> str:
        assert isinstance(value, datetime.datetime)
        return value.isoformat(timespec="microseconds")

    text = json.dumps(dict(sorted(rows.items())), default=column, indent=0)
    write(f"{name}.rows.json", f"{text}\n")


def make_certificate() -> None:
    """Creates a key and a self-signed certificate that is valid for a hundred years."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Celeriac"),
            x509.NameAttribute(NameOID.COMMON_NAME, "for tests only"),
        ]
    )
    start = datetime.datetime(2024, 6, 10, tzinfo=datetime.timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start.replace(year=start.year + 100))
        .sign(key, hashes.SHA256())
    )
    KEY.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    CERTIFICATE.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


# Runs ----------------------------------------------------------------------------------------


@dataclass
class Maker:
    rabbitmq: RabbitMQ
    postgresql: PostgreSQL
    pythons: Mapping[str, Path]
    templates: Mapping[str, str]
    logs: Path

    def make(self, capture: Capture) -> str:
        """Makes one capture and describes it."""
        python, settings = self.pythons[capture.celery], capture.settings()
        database = Database(self.postgresql.copy(self.templates[capture.celery]))
        truth = Project(python, database.url, self.rabbitmq.create(), settings)
        broker = Broker(self.rabbitmq.create())
        # Clients use the project's result backend, as in production; only the worker has `rpc://`.
        stock = Project(python, database.url, broker.url, settings)
        side = Side(truth, database, self.logs / f"{capture.name} django-db.log")
        with ThreadPoolExecutor() as other, Tap(broker) as tap:
            true_side = other.submit(side.play, RUN, capture.cases)
            self._publish_over_rpc(capture, stock, tap, true_side.done)
            cases = true_side.result()
        write_messages(capture.name, tap.lines)
        rows = database.rows()
        write_rows(capture.name, rows)
        return report(capture, cases, tap.lines, rows)

    def _publish_over_rpc(
        self, capture: Capture, stock: Project, tap: Tap, is_over: Callable[[], bool]
    ) -> None:
        """Runs the worker until neither it nor the other worker has anything left to do."""
        worker = stock.worker(
            self.logs / f"{capture.name} rpc.log",
            *("--queues", "celery,other", "--concurrency", str(PROCESSES), "--task-events"),
            result_backend="rpc://",
        )
        try:
            worker.start()
            worker.wait_for("ready.")
            stock.manage("zoo", RUN, capture.cases)
            worker.wait_while_alive(
                lambda: is_over() and tap.is_quiet(), "end of the zoo", RUN_SECONDS
            )
            worker.stop()
        finally:
            worker.kill()
        wait_until(tap.is_quiet, "the last message", 60)


def report(
    capture: Capture,
    cases: Mapping[str, Iterable[str]],
    lines: list[dict[str, Any]],
    rows: Mapping[str, object],
) -> str:
    """Describes a capture, and names the cases whose tasks have a row but no message."""
    told = {line["properties"]["correlation_id"] for line in lines if not line["exchange"]}
    named = {task_id: case for case, ends in cases.items() for task_id in ends}
    silent = sorted(named.get(task_id, task_id) for task_id in rows if task_id not in told)
    events = sum(line["exchange"] == EVENT_EXCHANGE for line in lines)
    files = [GOLDEN / f"{capture.name}.{kind}.gz" for kind in ("messages.jsonl", "rows.json")]
    size = sum(file.stat().st_size for file in files)
    return (
        f"{capture.name}: {len(lines) - events} results, {events} events, {len(rows)} rows, "
        f"{size // 1024} KiB; {len(silent)} rows without a message: {' '.join(silent)}"
    )


def make_compressed(broker: Broker) -> str:
    """Publishes the same messages without compression and then with each compression."""
    task_id = "5a2b8f54-3c0f-4c53-9d0e-0f4f6d1f7c11"
    bodies = [
        (results.body(task_id), "json"),
        (results.body(task_id, result="crème brûlée 🥬 " * 5000), "json"),
        (results.body(task_id, result=list(range(1000))), "msgpack"),
    ]
    with Tap(broker) as tap:
        with kombu.Connection(broker.url) as connection, connection.Producer() as producer:
            for compression in (None, "gzip", "bzip2", "lzma", "zstd", "brotli"):
                for body, serializer in bodies:
                    producer.publish(
                        body,
                        routing_key=RESULTS,
                        serializer=serializer,
                        compression=compression,
                        correlation_id=task_id,
                    )
        wait_until(tap.is_quiet, "the last message", 60)
    write_messages(COMPRESSION, tap.lines)
    return f"{COMPRESSION}: {len(tap.lines)} results"


def find_old_python() -> Path:
    """Finds a Python that Celery 4.4 runs on and that has the `zoneinfo` module."""
    of_pyenv = Path.home().glob(".pyenv/versions/3.9.*/bin/python")
    for candidate in (shutil.which("python3.9"), *of_pyenv):
        command = [candidate, "-c", ""]
        # pyenv can have a shim for a Python that is not installed.
        if candidate and subprocess.run(command, capture_output=True, check=False).returncode == 0:
            return Path(candidate)
    raise Failure("Celery 4.4 needs Python 3.9: install it, or name it with `--python3.9`")


def make_all(captures: Iterable[Capture], old_python: Path | None, with_compressed: bool) -> None:
    captures = list(captures)
    GOLDEN.mkdir(parents=True, exist_ok=True)
    if not (KEY.exists() and CERTIFICATE.exists()):
        make_certificate()
    pythons = {
        celery: environments.python(
            ENVIRONMENTS[celery],
            *([old_python or find_old_python()] if celery == OLD else []),
        )
        for celery in {capture.celery: None for capture in captures}
    }
    with ExitStack() as stack:
        rabbitmq = stack.enter_context(service("rabbitmq"))
        if with_compressed:
            say(make_compressed(Broker(rabbitmq.create())))
        postgresql = stack.enter_context(service("postgresql"))
        templates = {celery: postgresql.create() for celery in pythons}
        for celery, python in pythons.items():
            Project(python, templates[celery], "amqp://nobody").migrate()
        logs = Path(tempfile.mkdtemp(prefix="celeriac_captures_"))
        maker = Maker(rabbitmq, postgresql, pythons, templates, logs)
        # A run spends much of its time waiting.
        with ThreadPoolExecutor(max_workers=2) as two:
            try:
                for told in two.map(maker.make, captures):
                    say(told)
            except BaseException:
                two.shutdown(cancel_futures=True)
                say(f"the logs of the workers are in {logs}")
                raise
        shutil.rmtree(logs)


def main() -> int:
    parser = argparse.ArgumentParser(description="Records the captures of real workers again.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="captures (default: all)")
    parser.add_argument("--list", action="store_true", help="print their names")
    parser.add_argument("--python3.9", type=Path, dest="old_python", metavar="PATH")
    options = parser.parse_args()
    by_name = {capture.name: capture for capture in CAPTURES}
    known = [*by_name, COMPRESSION]
    if options.list:
        print("\n".join(known))
        return 0
    names = options.names or known
    if unknown := set(names) - set(known):
        parser.error(f"unknown capture: {', '.join(sorted(unknown))}; `--list` has them all")
    end_on_terminate()
    try:
        wanted = [by_name[name] for name in names if name in by_name]
        make_all(wanted, options.old_python, COMPRESSION in names)
    except Failure as failure:
        say("\n".join([f"make_captures.py: {failure}", *getattr(failure, "__notes__", [])]))
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
