"""A virtual host, and Django projects that use it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from harness.broker import Broker
from harness.database import Databases
from harness.environments import INTEGRATION, PACKAGE
from harness.project import Project, clean_environment
from harness.services import RabbitMQ


@pytest.fixture
def broker(rabbitmq: RabbitMQ) -> Broker:
    return Broker(rabbitmq.create())


@pytest.fixture
def make_project(
    python: dict[str, Path], broker: Broker, databases: Databases
) -> Callable[..., Project]:
    """Makes projects with `celeriac://`, whose programs can import the harness."""

    def make(version: str = "celery-5.7", engine: str = "postgresql", **settings: str) -> Project:
        database = databases.empty(engine) if version == "oldest" else databases.migrated(engine)
        if version == "oldest":
            databases.migrate(database, python[version])
        settings = {
            "RESULT_BACKEND": "celeriac://",
            "PYTHONPATH": f"{PACKAGE}:{INTEGRATION}",
            **settings,
        }
        return Project(python[version], database.url, broker.url, settings)

    return make


@pytest.fixture
def without_django(tmp_path: Path) -> dict[str, str]:
    """The environment of a process that cannot import Django, and finds modules in `tmp_path`."""
    for name in ("django", "django_celery_results"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('not installed here')\n")
    return clean_environment() | {"PYTHONPATH": f"{tmp_path}:{PACKAGE}", "C_FORCE_ROOT": "1"}
