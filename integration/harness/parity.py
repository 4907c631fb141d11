"""Two runs of the zoo with the same ids, and the rules for comparing their rows."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import results
from harness.broker import DEAD, RESULTS, Broker
from harness.daemon import Daemon
from harness.database import Database
from harness.processes import Failure, Process
from harness.project import Project

#: The task ids of a case, and the status that each row must have in the end.
Ends = dict[str, str | None]

FINAL = ("REVOKED", "FAILURE", "SUCCESS")

#: The time limit of a run, and how long nothing may change before it counts as over or stuck.
RUN_SECONDS = 600
QUIET_SECONDS = 1.5
STUCK_SECONDS = 120


#: The number of processes of a worker; some tasks sleep.
PROCESSES = 4


def is_settled(wanted: str | None, status: str | None) -> bool:
    """Whether a row has the expected status; `shop/zoo/cases.py` has the special values."""
    if wanted in (None, "MAYBE"):
        return True
    if wanted == "SEEN":
        return status is not None
    if wanted == "ENDS":
        return status in FINAL
    return status == wanted


@dataclass
class Side:
    """A worker of one project, and the database that has its rows."""

    project: Project
    database: Database
    log: Path

    def play(self, run: str, *options: str) -> dict[str, Ends]:
        """Publishes the zoo, waits until its rows no longer change, and stops the worker."""
        worker = self.project.worker(
            self.log, "--queues", "celery,other", "--concurrency", str(PROCESSES)
        )
        try:
            worker.start()
            worker.wait_for("ready.")
            cases: dict[str, Ends] = json.loads(self.project.manage("zoo", run, *options))
            self._wait_for(worker, cases)
            worker.stop()
        finally:
            worker.kill()
        return cases

    def _wait_for(self, worker: Process, cases: Mapping[str, Ends]) -> None:
        seen: dict[str, str] = {}
        since = time.monotonic()

        def missing() -> list[str]:
            return [
                f"{case}: {task_id} is {seen.get(task_id)} instead of {wanted}"
                for case, ends in cases.items()
                for task_id, wanted in ends.items()
                if not is_settled(wanted, seen.get(task_id))
            ]

        def is_over() -> bool:
            nonlocal seen, since
            now = self.database.statuses()
            if now != seen:
                seen, since = now, time.monotonic()
            if time.monotonic() - since > STUCK_SECONDS:
                raise Failure(f"nothing has changed for {STUCK_SECONDS} s")
            return time.monotonic() - since > QUIET_SECONDS and not missing()

        try:
            worker.wait_while_alive(is_over, "end of the zoo", RUN_SECONDS)
        except Failure as failure:
            lacking = missing()
            failure.add_note(
                f"{len(lacking)} rows of {self.database.url} are missing or wrong; "
                f"the worker's log is {self.log}:"
            )
            failure.add_note("\n".join(lacking[:20]))
            raise


class Fan:
    """A broker that delivers the same results to the daemons of several databases.

    Workers publish to an exchange, to which several queues are bound. One more queue keeps the
    messages for the tests.
    """

    TAP = "tap"

    def __init__(self, broker: Broker, databases: Mapping[str, Database], logs: Path) -> None:
        self.broker = broker
        self.databases = databases
        # The first queue has the name that workers declare.
        self.queues = {
            engine: f"{RESULTS}.{engine}" if number else RESULTS
            for number, engine in enumerate(databases)
        }
        self.daemons = {
            engine: Daemon(
                logs / f"{engine}.log",
                broker.url,
                database.url,
                "--results-queue",
                self.queues[engine],
                "--accept-content",
                "json,msgpack,yaml,pickle",
            )
            for engine, database in databases.items()
        }

    def start(self) -> None:
        for daemon in self.daemons.values():
            daemon.start_consuming()
        self.broker.declare(self.TAP, {})
        for queue in (*self.queues.values(), self.TAP):
            self.broker.bind(queue, "celeriac", RESULTS)

    def wait_until_stored(self) -> None:
        """Waits until everything published so far is stored, by publishing one more result."""
        last = results.new_id()
        for engine, queue in self.queues.items():
            self.broker.publish(results.result(last), queue=queue)
            stored = self.databases[engine]
            self.daemons[engine].wait_while_alive(
                lambda stored=stored: last in stored.statuses(), f"row of {last}", 30
            )
            stored.forget(last)

    def sent(self) -> dict[str, list[dict[str, Any]]]:
        """The rows that the workers published, by the id of the task or the group."""
        sent: dict[str, list[dict[str, Any]]] = {}
        for message in self.broker.take(self.TAP):
            about_chords = (results.CHORD, results.CHORD_MEMBER)
            if message.properties["content_type"] in about_chords or "task" in message.headers:
                continue
            body = json.loads(message.body)
            sent.setdefault(body.get("task_id") or body["group_id"], []).append(body)
        return sent

    def dead(self) -> list[tuple[object, bytes]]:
        """The messages that could not be stored, with the reasons."""
        return [(message.headers, message.body[:500]) for message in self.broker.take(DEAD)]

    def kill(self) -> None:
        for daemon in self.daemons.values():
            daemon.kill()


@dataclass
class Parity:
    """The results of one run: cases, the tables of both sides, messages and dead letters."""

    cases: dict[str, Ends]
    truth: dict[str, Any]
    ours: dict[str, dict[str, Any]]
    sent: dict[str, list[dict[str, Any]]]
    dead: list[tuple[object, bytes]]


def play(run: str, truth: Side, ours: Side, fan: Fan, *options: str) -> Parity:
    """Runs both sides at the same time, and then reads all tables."""
    try:
        fan.start()
        with ThreadPoolExecutor() as both:
            cases, same_cases = both.map(lambda side: side.play(run, *options), (truth, ours))
        assert cases == same_cases
        fan.wait_until_stored()
        projects = {
            engine: Project(
                ours.project.python, database.url, fan.broker.url, ours.project.settings
            )
            for engine, database in fan.databases.items()
        }
        with ThreadPoolExecutor() as readers:
            true_tables, *our_tables = readers.map(
                Project.tables, (truth.project, *projects.values())
            )
        return Parity(
            cases, true_tables, dict(zip(projects, our_tables, strict=True)), fan.sent(), fan.dead()
        )
    except Failure as failure:
        if dead := fan.dead():
            failure.add_note(f"{len(dead)} dead letters: {dead[:3]}")
        for engine, daemon in fan.daemons.items():
            failure.add_note(f"last log lines for {engine}:\n{daemon.last_words(5)}")
        raise
    finally:
        fan.kill()


# Rules ---------------------------------------------------------------------------------------

#: Texts that differ between two runs of the same tasks, however they are stored.
CHANGING = (
    # Process ids, and the job numbers of a pool
    (re.compile(r"(\bpid['\"]?: )\d+"), r"\1PID"),
    (re.compile(r"(Job: )\d+"), r"\1JOB"),
    # The depth of the stack that calls a task
    (re.compile(r"(\[Previous line repeated )\d+"), r"\1N"),
    # Addresses of objects
    (re.compile(r"\b0x[0-9a-f]{6,}"), "ADDRESS"),
)

UUID = re.compile(r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b")

#: One frame of a traceback, with the source lines and markers below it.
FRAME = re.compile(r'^(?P<indent> +)File "(?P<file>[^"]*)", line .*\n(?:(?P=indent) .*\n)*', re.M)

#: The frames of a result backend, between Celery's frames and those of the encoder.
BACKENDS = ("/django_celery_results/", "/celeriac/")


@dataclass
class Rules:
    """Compares the texts of two runs. `named` are the ids that the zoo has chosen."""

    named: frozenset[str] = field(default_factory=frozenset)

    def normalised(self, text: str | None) -> str | None:
        if text is None:
            return None
        for pattern, replacement in CHANGING:
            text = pattern.sub(replacement, text)
        return UUID.sub(lambda found: found[0] if found[0] in self.named else "ID", text)

    def traceback(self, text: str | None) -> str | None:
        """A traceback without the frames of the result backend."""
        if text is None:
            return None

        def shown(frame: re.Match[str]) -> str:
            return "" if any(part in frame["file"] for part in BACKENDS) else frame[0]

        return self.normalised(FRAME.sub(shown, text))

    def same_column(self, column: str, true: Mapping[str, Any], ours: Mapping[str, Any]) -> bool:
        """Whether a column is equal except for what changes between runs, also within base64."""
        left, right = true["row"][column], ours["row"][column]
        if left == right or self.normalised(left) == self.normalised(right):
            return True
        if true["row"]["content_encoding"] != "binary" or left is None or right is None:
            return False
        left, right = true["decoded"][column], ours["decoded"][column]
        return left != right and self.normalised(left) == self.normalised(right)
