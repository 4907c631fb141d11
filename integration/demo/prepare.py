"""Explains `make demo`, and prepares what it needs before the build.

Standard library only. It reports here what is missing, and not after a build of several minutes.
"""

from __future__ import annotations

import os
import shutil
import sys

PLAN = """\
The demo of Celeriac. It needs about two minutes. The first time, some minutes more to make a
virtual environment and to build the daemon with optimisations.

  1. It sends the same tasks to a Celery worker that stores results with django-db, and then to one
     with celeriac://. It compares rows a second, SQL statements, CPU time and how late rows are.
  2. It kills the daemon with SIGKILL while tasks run, starts it again, and looks for every row.

It uses the RabbitMQ on this machine, in a virtual host of its own, or starts a private one. It
starts a private PostgreSQL if that is installed, and uses SQLite otherwise. At the end it stops and
removes all that it started and created. With `make demo KEEP=1`, Django's admin stays open until
Ctrl-C.
"""


def prepare() -> None:
    from harness import environments
    from harness.services import RabbitMQ, executable, say

    say("Looking for RabbitMQ")
    private = os.environ.get("CELERIAC_TEST_PRIVATE") == "1"
    url = os.environ.get(RabbitMQ.variable, RabbitMQ.standard)
    if not private and (found := RabbitMQ.find(url)):
        found.close()
    else:
        executable("rabbitmq-server", "rabbitmq-server", ["/usr/sbin"])
    environments.python("celery-5.7")


def main() -> int:
    print(PLAN, flush=True)
    if not sys.platform.startswith("linux"):
        return problem("the demo runs on Linux only: use `docker compose up --build` instead")
    if sys.version_info < (3, 11):
        return problem(
            "the demo needs Python 3.11 or later: name one, as in `make demo PYTHON=python3.12`"
        )
    if shutil.which("cargo") is None:
        return problem("`cargo` is missing: install Rust as https://rustup.rs says")
    from harness.processes import Failure

    try:
        prepare()
    except Failure as failure:
        return problem(str(failure))
    except KeyboardInterrupt:
        return 130
    return 0


def problem(text: str) -> int:
    print(f"The demo cannot begin: {text}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
