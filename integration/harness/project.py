"""The Django project in `zoo/` with a database and a broker: its commands and workers."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.processes import Failure, Process

SITE = Path(__file__).resolve().parent.parent / "zoo"

#: Prefixes of variables that the project and the daemon must not inherit from the caller.
FOREIGN = (
    "ACCEPT_CONTENT",
    "CELERY_",
    "CELERIAC_",
    "DATABASE_URL",
    "DJANGO_",
    "EVENT_",
    "USE_TZ",
    "TIME_ZONE",
    "PYTHONPATH",
    "PICKLE_PROTOCOL",
    "RESULT_",
    "SECURITY_",
    "TASK_",
)


def clean_environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith(FOREIGN)}


class Worker(Process):
    """A Celery worker."""

    #: Celery's signal handler raises an exception, which Python ignores if the signal arrives while
    #: a destructor runs.
    SECOND_SIGNAL_SECONDS = 15


class Project:
    """A Django project; `settings` are the variables that `zoo/shop/settings.py` reads."""

    def __init__(
        self, python: Path, database: str, broker: str, settings: Mapping[str, str] | None = None
    ) -> None:
        self.python = python
        self.settings = dict(settings or {})
        self.env = clean_environment() | {
            "DATABASE_URL": database,
            "CELERY_BROKER_URL": broker,
            # Several versions of Python import the same files.
            "PYTHONDONTWRITEBYTECODE": "1",
            # Tests can run as root, which Celery refuses if workers accept pickle.
            "C_FORCE_ROOT": "1",
            **self.settings,
        }

    def execute(self, program: str) -> str:
        """Runs a program in Python, which must end well and print no errors; returns its output."""
        done = subprocess.run(
            [str(self.python), "-c", program],
            cwd=SITE,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert not done.stderr, done.stderr
        return done.stdout

    def manage(self, *arguments: str) -> str:
        done = subprocess.run(
            [str(self.python), "manage.py", *arguments],
            cwd=SITE,
            env=self.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        if done.returncode != 0:
            raise Failure(f"manage.py {' '.join(arguments)} failed:\n{done.stderr or done.stdout}")
        return done.stdout

    def migrate(self) -> None:
        self.manage("migrate", "--verbosity", "0")

    def rows(self) -> dict[str, dict[str, Any]]:
        """Every result as the ORM and as `AsyncResult` return it, by task id."""
        return json.loads(self.manage("rows"))

    def tables(self) -> dict[str, Any]:
        """The rows of all three tables, and what Celery's result classes read from them."""
        return json.loads(self.manage("tables"))

    def daemon(self, log: Path, *options: str) -> Process:
        """`manage.py celeriac run`, not yet started: the daemon with the project's settings."""
        command = [self.python, "manage.py", "celeriac", "run", *options]
        return Process("celeriac", command, log, env=self.env, cwd=SITE)

    def worker(
        self, log: Path, *more_options: str, result_backend: str | None = None
    ) -> Process:
        """A Celery worker, not yet started, with the project's result backend if no other is given.
        """
        celery = self.python.parent / "celery"
        backend = ["--result-backend", result_backend] if result_backend else []
        options = ["--concurrency", "2", "--hostname", "worker@test", "--loglevel", "INFO"]
        options += more_options
        return Worker(
            f"Celery worker ({result_backend or 'django-db'})",
            [celery, "-A", "shop", *backend, "worker", *options],
            log,
            env=self.env,
            cwd=SITE,
        )
