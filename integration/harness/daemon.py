"""`celeriac run` as a child process."""

from __future__ import annotations

import os
from pathlib import Path

from harness.processes import Failure, Process
from harness.project import clean_environment

REPOSITORY = Path(__file__).resolve().parent.parent.parent

#: The user documentation of the program.
DOCUMENTS = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]

#: The message that is logged when a lane begins to consume.
CONSUMING = "consuming"


def binary() -> Path:
    """The path in `CELERIAC_BIN`, or the newest build of Cargo."""
    if named := os.environ.get("CELERIAC_BIN"):
        path = Path(named).resolve()
        if not path.exists():
            raise Failure(f"CELERIAC_BIN names {path}, which does not exist: build it first")
        return path
    built = [REPOSITORY / "target" / profile / "celeriac" for profile in ("release", "debug")]
    built = [path for path in built if path.exists()]
    if not built:
        raise Failure("there is no celeriac to test: run `cargo build` or set CELERIAC_BIN")
    return max(built, key=lambda path: path.stat().st_mtime)


class Daemon(Process):
    """A daemon whose settings are given as flags and whose log is JSON lines."""

    def __init__(self, log: Path, broker: str, database: str, *options: str) -> None:
        command = [binary(), "run", "--broker", broker, "--database", database]
        super().__init__(
            "celeriac",
            [*command, "--log-format", "json", *options],
            log,
            env=clean_environment(),
        )

    def start_consuming(self) -> None:
        self.start()
        self.wait_for_consuming()

    def wait_for_consuming(self, times: int = 1, timeout_seconds: float = 120) -> None:
        """Waits until the daemon has begun to consume `times` times since its start."""
        self.wait_while_alive(
            lambda: self.output().count(f'"message":"{CONSUMING}"') >= times,
            f"log line `{CONSUMING}` number {times}",
            timeout_seconds,
        )
