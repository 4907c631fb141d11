"""The servers that most benchmarks use."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from harness import environments
from harness.database import Databases
from harness.services import RabbitMQ, service


@dataclass(frozen=True)
class Servers:
    """RabbitMQ, new databases on every engine, and a temporary folder."""

    rabbitmq: RabbitMQ
    databases: Databases
    folder: Path


@contextmanager
def servers() -> Iterator[Servers]:
    """Uses the servers that run already or starts private ones, and removes the folder at the end.
    """
    folder = Path(tempfile.mkdtemp(prefix="celeriac-bench-"))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        rabbitmq = stack.enter_context(service("rabbitmq"))
        postgresql = stack.enter_context(service("postgresql"))
        mariadb = stack.enter_context(service("mariadb"))
        databases = Databases(environments.python("celery-5.7"), postgresql, mariadb, folder)
        yield Servers(rabbitmq, databases, folder)
