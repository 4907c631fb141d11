"""Two runs of the zoo under the same ids, and the rules by which their rows are compared."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from database import Database
from processes import Failure, Process, wait_until
from project import Project

#: A task of one case, and the status that its row is to end with, as the zoo tells it.
Ends = dict[str, str | None]

FINAL = {"SUCCESS", "FAILURE", "REVOKED"}

#: How long a run may take, and how long nothing may happen for it to be over.
RUN_SECONDS = 120
QUIET_SECONDS = 1.5


def is_settled(wanted: str | None, status: str | None) -> bool:
    """Whether a row has the status that `shop/zoo/cases.py` has words for."""
    if wanted in (None, "MAYBE"):
        return True
    if wanted == "SEEN":
        return status is not None
    if wanted == "ENDS":
        return status in FINAL
    return status == wanted


@dataclass
class Side:
    """A worker of one project on the way to the rows of one database."""

    project: Project
    database: Database
    log: Path

    def play(self, run: str, only: str = "") -> dict[str, Ends]:
        """Publishes the zoo, waits until its rows are there and at rest, and stops the worker."""
        worker = self.project.worker(self.log, "--queues", "celery,other")
        try:
            worker.start()
            worker.wait_for("ready.")
            cases: dict[str, Ends] = json.loads(
                self.project.manage("zoo", run, *(["--only", only] if only else []))
            )
            self._wait_for(worker, cases)
            worker.stop()
        except Failure as failure:
            failure.add_note(f"the last words of the worker:\n{worker.last_words()}")
            raise
        finally:
            worker.kill()
        return cases

    def _wait_for(self, worker: Process, cases: Mapping[str, Ends]) -> None:
        seen: dict[str, str] = {}
        since = time.monotonic()

        def missing() -> dict[str, str]:
            return {
                f"{case}: {task_id}": f"{seen.get(task_id)} instead of {wanted}"
                for case, ends in cases.items()
                for task_id, wanted in ends.items()
                if not is_settled(wanted, seen.get(task_id))
            }

        def is_over() -> bool:
            nonlocal seen, since
            now = self.database.statuses()
            if now != seen:
                seen, since = now, time.monotonic()
            return time.monotonic() - since > QUIET_SECONDS and not missing()

        try:
            worker.wait_while_alive(is_over, "all rows", RUN_SECONDS)
        except Failure as failure:
            failure.add_note(json.dumps(missing(), indent=1))
            raise


# Rules ---------------------------------------------------------------------------------------

#: In what two runs of the same tasks differ, whoever stores them.
CHANGING = (
    # Processes, and the jobs of a pool
    (re.compile(r"(\bpid['\"]?: )\d+"), r"\1PID"),
    (re.compile(r"(Job: )\d+"), r"\1JOB"),
    # Objects by their address
    (re.compile(r"\b0x[0-9a-f]{6,}"), "ADDRESS"),
)

UUID = re.compile(r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b")

#: One frame of a traceback, with the lines of code and of marks below it.
FRAME = re.compile(r'^(?P<indent> +)File "(?P<file>[^"]*)", line .*\n(?:(?P=indent) .*\n)*', re.M)

#: The frames of a result backend, between those of Celery that call it and those of the encoder.
BACKENDS = ("/django_celery_results/", "/celeriac/")


@dataclass
class Rules:
    """Compares texts of two runs; `named` are the ids that the zoo has chosen."""

    named: frozenset[str] = field(default_factory=frozenset)

    def normalised(self, text: str | None) -> str | None:
        if text is None:
            return None
        for pattern, replacement in CHANGING:
            text = pattern.sub(replacement, text)
        return UUID.sub(lambda found: found[0] if found[0] in self.named else "ID", text)

    def traceback(self, text: str | None) -> str | None:
        """Without the frames of whichever backend stored the result."""
        if text is None:
            return None

        def shown(frame: re.Match[str]) -> str:
            return "" if any(part in frame["file"] for part in BACKENDS) else frame[0]

        return self.normalised(FRAME.sub(shown, text))

    def same_column(self, column: str, true: Mapping[str, Any], ours: Mapping[str, Any]) -> bool:
        """To the letter; where that is base64, values may differ in what changes between runs."""
        left, right = true["row"][column], ours["row"][column]
        if left == right or self.normalised(left) == self.normalised(right):
            return True
        if true["row"]["content_encoding"] != "binary" or left is None or right is None:
            return False
        left, right = true["decoded"][column], ours["decoded"][column]
        return left != right and self.normalised(left) == self.normalised(right)
