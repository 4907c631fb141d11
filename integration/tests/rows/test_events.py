"""Rows from task events: rows of running tasks, and rows of tasks whose results are ignored or
stored elsewhere.

Workers with `-E` run the tasks of `shop/watched.py`. Two daemons consume their events: one stores
all that it can, and the other stores less.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from kombu.serialization import loads

from harness import events, results
from harness.broker import (
    DEAD,
    EVENT_EXCHANGE,
    EVENTS,
    EXCHANGE,
    QUEUES,
    RESULTS,
    UNREADABLE,
    Broker,
    Message,
)
from harness.daemon import Daemon
from harness.database import ENGINES, TABLE, Databases
from harness.events import TIMESTAMP, event, received
from harness.matrix import full_except, one_by_one
from harness.pipeline import Pipeline
from harness.processes import wait_until
from harness.project import Project
from harness.services import RabbitMQ, unique_name
from harness.stream import utc

EVENT = "application/vnd.celeriac.event+json"

#: The options that make a daemon store everything in events.
EVERYTHING = ("--events", "--events-pending", "--events-arguments")

on_postgresql = pytest.mark.parametrize("engine", ["postgresql"])

MSGPACK = "application/x-msgpack"

TIMES = ("date_created", "date_started", "date_done")

Row = dict[str, Any]


def result_of(row: Row) -> Any:
    return json.loads(row["result"])


# Real workers ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """A worker's result backend and versions, and the options of the second daemon."""

    backend: str
    celery: str
    event_serializer: str
    less: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.backend.removesuffix('://')}-{self.celery}-{self.event_serializer}"


DISABLED = Source("disabled://", "celery-5.7", "msgpack", ("--events",))
RPC = Source("rpc://", "celery-5.6", "json", ("--events",))
CELERIAC = Source("celeriac://", "celery-5.7", "json", ())


@dataclass
class Watched:
    """One run: the ids of its cases, and the rows of both daemons, as Django reads them."""

    source: Source
    ids: dict[str, str]
    held: dict[str, str]
    #: The rows while tasks are waiting for the file, and in the end.
    early: dict[str, Row]
    full: dict[str, dict[str, Any]]
    less: dict[str, dict[str, Any]]
    #: All events by task id.
    events: dict[str, list[dict[str, Any]]]
    dead: list[Message]

    def row(self, case: str) -> Row:
        return self.full[self.ids[case]]["row"]

    def of(self, case: str, kind: str) -> list[dict[str, Any]]:
        """The events of this type in a case."""
        found = self.events.get(self.ids[case], [])
        return [one for one in found if one["type"] == f"task-{kind}"]


class Run:
    """The workers of a source, with two daemons on the same broker."""

    TAP = "tap"
    LESS = {RESULTS: f"{RESULTS}.less", EVENTS: f"{EVENTS}.less"}

    def __init__(
        self,
        source: Source,
        python: dict[str, Path],
        rabbitmq: RabbitMQ,
        databases: Databases,
        logs: Path,
    ) -> None:
        self.source = source
        self.broker = Broker(rabbitmq.create())
        databases_of = [databases.migrated("postgresql") for _ in range(2)]
        queues = ("--results-queue", self.LESS[RESULTS], "--events-queue", self.LESS[EVENTS])
        daemons = [
            Daemon(logs / f"{source}-{number}.log", self.broker.url, database.url, *options)
            for number, (database, options) in enumerate(
                zip(databases_of, (EVERYTHING, (*queues, *source.less)), strict=True)
            )
        ]
        self.full, self.less = (
            Pipeline(self.broker, database, daemon)
            for database, daemon in zip(databases_of, daemons, strict=True)
        )
        settings = {
            "EVENT_SERIALIZER": source.event_serializer,
            "TASK_SEND_SENT_EVENT": "on",
            "ACCEPT_CONTENT": "json,msgpack",
        }
        self.project = Project(
            python[source.celery], databases_of[0].url, self.broker.url, settings
        )
        self.less_project = Project(
            python[source.celery], databases_of[1].url, self.broker.url, settings
        )
        self.file = logs / f"{unique_name()}.go-on"
        self.workers = [
            self.project.worker(
                logs / f"{source}-{name}.log",
                "-E",
                *("--hostname", f"{name}@test", "--queues", queue, "--prefetch-multiplier", "9"),
                result_backend=source.backend,
            )
            for name, queue in (("worker", "celery"), ("other", "other"))
        ]

    def start(self, stack: ExitStack) -> None:
        for daemon in (self.full.daemon, self.less.daemon):
            stack.callback(daemon.kill)
            daemon.start()
        self.full.daemon.wait_for_consuming(2)
        self.less.daemon.wait_for_consuming(2 if self.source.less else 1)
        self.broker.declare(self.TAP, {})
        self.broker.bind(self.TAP, EVENT_EXCHANGE, "task.#")
        self.broker.bind(self.LESS[RESULTS], EXCHANGE, RESULTS)
        for worker in self.workers:
            stack.callback(worker.kill)
            worker.start()
        for worker in self.workers:
            worker.wait_for("ready.")

    def hold(self) -> tuple[dict[str, str], dict[str, Row]]:
        """Publishes tasks that wait for a file, and reads their rows meanwhile."""
        held = json.loads(self.project.manage("watched", "held", "--hold", str(self.file)))
        states = {
            # The STARTED of a result message takes precedence over later events.
            "told": "PROGRESS" if self.source is DISABLED else "STARTED",
            "held": "STARTED",
            "waiting": "RECEIVED",
            "nobody's": "PENDING",
        }
        self.full.wait_for_rows({held[name]: state for name, state in states.items()}, 60)
        rows = self.full.database.rows()
        self.file.touch()
        ended = {held[name]: "SUCCESS" for name in ("told", "held", "waiting")}
        self.full.wait_for_rows(ended, 60)
        return held, {name: rows[task_id] for name, task_id in held.items()}

    def play(self) -> Watched:
        held, early = self.hold()
        cases = json.loads(self.project.manage("watched", "all"))
        ends = {task_id: status for case in cases.values() for task_id, status in case.items()}
        if self.source.celery == "celery-5.7":
            # Up to 5.6 the last result message is STARTED.
            ends[next(iter(cases["rejected"]))] = "FAILURE"
        else:
            ends[next(iter(cases["rejected"]))] = "STARTED"
        self.full.wait_for_rows(ends, 90)
        for worker in self.workers:
            worker.stop()
        events.wait_until_handled(self.full)
        events.wait_until_handled(
            self.less,
            results_queue=self.LESS[RESULTS],
            events_queue=self.LESS[EVENTS] if self.source.less else None,
        )
        return Watched(
            self.source,
            {case: next(iter(ids)) for case, ids in cases.items()},
            held,
            early,
            self.project.rows(),
            self.less_project.rows(),
            self._events(),
            self.broker.take(DEAD),
        )

    def _events(self) -> dict[str, list[dict[str, Any]]]:
        found: dict[str, list[dict[str, Any]]] = {}
        for message in self.broker.take(self.TAP):
            assert message.properties["content_type"].endswith(self.source.event_serializer)
            body = decoded(message)
            for one in body if isinstance(body, list) else [body]:
                found.setdefault(one["uuid"], []).append(one)
        return found


def decoded(message: Message) -> Any:
    labels = (message.properties["content_type"], message.properties["content_encoding"])
    return loads(message.body, *labels, accept={labels[0]})


@pytest.fixture(
    scope="module",
    params=[
        *one_by_one("workers 3", DISABLED, CELERIAC),
        *one_by_one("workers 3", RPC, is_full=True),
    ],
    ids=str,
)
def watched(
    request: pytest.FixtureRequest,
    python: dict[str, Path],
    rabbitmq: RabbitMQ,
    databases: Databases,
    logs: Path,
) -> Watched:
    run = Run(request.param, python, rabbitmq, databases, logs)
    with ExitStack() as stack:
        run.start(stack)
        return run.play()


def test_rows_exist_while_tasks_run(watched: Watched) -> None:
    # WHEN two tasks are running, one waits for a process, and one is in a queue without a consumer
    told, held, waiting, sent = (watched.early[n] for n in ("told", "held", "waiting", "nobody's"))
    # THEN their rows have these states, with the times of the events
    for name, row, kind in (("held", held, "started"), ("waiting", waiting, "received")):
        [one] = [e for e in watched.events[watched.held[name]] if e["type"] == f"task-{kind}"]
        assert row["task_name"].startswith("shop."), name
        if watched.source is DISABLED or kind == "received":
            assert utc(row["date_done"]) == events.time(one["timestamp"])
            assert row["worker"] == one["hostname"] == "worker@test"
    assert (held["status"], waiting["status"]) == ("STARTED", "RECEIVED")
    assert held["date_started"] is not None
    assert waiting["date_started"] is None
    assert (sent["status"], sent["worker"]) == ("PENDING", None)
    assert sent["task_name"] == "shop.zoo.cases.echo"
    # THEN an application's own event is a state, unless a result has another
    if watched.source is DISABLED:
        assert (told["status"], told["content_type"]) == ("PROGRESS", EVENT)
        assert told["task_name"] == "shop.watched.tell_by_event"
    # THEN the second daemon has stored none of this
    assert watched.held["nobody's"] not in watched.less


def test_outcomes_are_those_of_the_last_events(watched: Watched) -> None:
    rows = watched.full if watched.source is DISABLED else watched.less
    if watched.source is CELERIAC:
        pytest.skip("its results say more")
    row = {case: rows[task_id]["row"] for case, task_id in watched.ids.items()}
    seen = {case: rows[task_id]["async_result"] for case, task_id in watched.ids.items()}
    statuses = {case: one["status"] for case, one in row.items()}
    # THEN each task has its final state
    assert statuses == {
        "expired": "REVOKED",
        "time_limit": "FAILURE",
        "terminated": "REVOKED",
        "revoked": "REVOKED",
        "success": "SUCCESS",
        "success.long": "SUCCESS",
        "success.unicode": "SUCCESS",
        "success.arguments_given": "SUCCESS",
        "failure": "FAILURE",
        "failure.unwanted": "FAILURE",
        "success.unwanted": "SUCCESS",
        "retry": "SUCCESS",
        "retry.in_vain": "FAILURE",
        "retry.waiting": "RETRY",
        "retry.elsewhere": "SUCCESS",
        "rejected": "FAILURE" if watched.source.celery == "celery-5.7" else "STARTED",
        "ignored": "STARTED",
        "shadowed": "SUCCESS",
        "unregistered": "FAILURE",
    }
    # THEN each row is marked as known from events only
    assert {(one["content_type"], one["content_encoding"]) for one in row.values()} == {
        (EVENT, "utf-8")
    }
    assert {one["meta"] for one in row.values()} == {None}
    # THEN the result is the `repr` in the event
    [succeeded] = watched.of("success", "succeeded")
    assert result_of(row["success"]) == succeeded["result"]
    assert succeeded["result"].startswith("[[1, 'two', None]") or "1, 'two'" in succeeded["result"]
    # THEN errors are those of the task, also for time limits
    errors = {case: result_of(row[case])["exc_type"] for case in ("failure", "failure.unwanted")}
    assert set(errors.values()) == {"ValueError"}
    assert row["failure"]["traceback"].rstrip().endswith("ValueError: bad value")
    assert result_of(row["time_limit"])["exc_type"] == "TimeLimitExceeded"
    assert result_of(row["retry.in_vain"])["exc_type"] == "ConnectionError"
    assert result_of(row["retry.waiting"])["exc_type"] == "ValueError"
    assert result_of(row["unregistered"])["exc_type"] == "NotRegistered"
    reasons = {case: result_of(row[case])["exc_message"] for case in ("expired", "terminated")}
    assert reasons == {"expired": ["expired"], "terminated": ["terminated"]}
    assert result_of(row["revoked"])["exc_message"] == ["revoked"]
    # THEN Django reads all of them
    assert not {case: one for case, one in seen.items() if "error" in one}
    assert {case: one["state"] for case, one in seen.items()} == statuses


def test_times_are_those_of_the_events(watched: Watched) -> None:
    if watched.source is not DISABLED:
        pytest.skip("results have times of their own")
    # THEN the times of creation, start and end are those of the events
    for case, task_id in (watched.ids | watched.held).items():
        row, told = watched.full[task_id]["row"], watched.events[task_id]
        times = [events.time(one["timestamp"]) for one in told]
        # That of an end is cut to milliseconds, as the start may still arrive.
        created = [
            time.replace(microsecond=time.microsecond // 1000 * 1000)
            if one["type"] in ("task-succeeded", "task-failed", "task-revoked")
            else time
            for one, time in zip(told, times, strict=True)
        ]
        started = [events.time(one["timestamp"]) for one in told if one["type"] == "task-started"]
        read = {name: row[name] and utc(row[name]) for name in TIMES}
        final = {"SUCCESS": "succeeded", "FAILURE": "failed", "REVOKED": "revoked"}
        kind = final.get(row["status"])
        ends = [
            events.time(one["timestamp"]) for one in told if kind and one["type"] == f"task-{kind}"
        ]
        assert read == {
            "date_created": min(created),
            "date_started": max(started, default=None),
            "date_done": max(ends or times),
        }, case


def test_descriptions(watched: Watched) -> None:
    row = {case: watched.row(case) for case in watched.ids}
    # THEN every task that a worker has received has its name and its worker
    names = {case: one["task_name"] for case, one in row.items()}
    assert names["success"] == "shop.zoo.cases.echo"
    assert names["failure"] == "shop.zoo.cases.break_down"
    assert names["unregistered"] == "shop.zoo.nowhere"
    workers = {case: one["worker"] for case, one in row.items()}
    assert workers["success"] == workers["failure"] == "worker@test"
    assert workers["retry.elsewhere"] == "other@test"
    # THEN the arguments are the texts that django-celery-results would store
    arguments = {case: (one["task_args"], one["task_kwargs"]) for case, one in row.items()}
    assert arguments["success"] == (
        "\"(1, 'two', None)\"",
        "\"{'three': [3.5]}\"",
    )
    assert arguments["success.arguments_given"] == ("\"('***',)\"", '"{}"')
    for case in ("success", "success.long", "success.unicode", "failure", "terminated"):
        [first, *_] = watched.of(case, "received")
        texts = [first["args"], first["kwargs"]]
        assert [json.loads(text) for text in arguments[case]] == texts, case
    assert len(row["success.long"]["task_args"]) < 2000
    # THEN the second daemon has no arguments, but names and workers
    if watched.source is not CELERIAC:
        less = {case: watched.less[task_id]["row"] for case, task_id in watched.ids.items()}
        assert {(one["task_args"], one["task_kwargs"]) for one in less.values()} == {(None, None)}
        assert less["success"]["task_name"] == "shop.zoo.cases.echo"
        assert less["retry.elsewhere"]["worker"] == "other@test"
        # The only name in a worker's events.
        assert less["shadowed"]["task_name"] == "in the shadow"
        assert less["revoked"]["task_name"] is None
        assert less["unregistered"]["task_name"] is None


def test_results_take_precedence_over_events(watched: Watched) -> None:
    if watched.source is DISABLED:
        pytest.skip("there are no results")
    # THEN only tasks without a result message have rows that are known from events
    by_events = {
        case for case in watched.ids if watched.row(case)["content_type"] == EVENT
    }
    assert by_events == {"success.unwanted", "failure.unwanted"}
    assert result_of(watched.row("success")) == [[1, "two", None], {"three": [3.5]}]
    assert result_of(watched.row("failure"))["exc_message"] == ["bad value"]
    assert result_of(watched.row("time_limit"))["exc_message"] == [3]
    assert len(result_of(watched.row("success.long"))[0][0]) == 5000


def test_events_do_not_change_what_results_store(watched: Watched) -> None:
    if watched.source is not CELERIAC:
        pytest.skip("results contain everything")
    names = {task_id: case for case, task_id in watched.ids.items()}
    names |= {task_id: case for case, task_id in watched.held.items()}
    # THEN only events show ignored results and tasks that no worker received
    assert {names[task_id] for task_id in watched.full.keys() - watched.less.keys()} == {
        "success.unwanted",
        "failure.unwanted",
        "nobody's",
    }
    for task_id, without in watched.less.items():
        row, other = watched.full[task_id]["row"], without["row"]
        different = {name for name in row if row[name] != other[name]} - {"id"}
        # THEN the other columns do not change, except that a task is known earlier, and its start
        # is the later of the times that two processes of a worker report
        allowed = {"date_created", "date_started"}
        if names[task_id] == "unregistered":
            allowed |= {"task_name", "task_args", "task_kwargs", "worker", "periodic_task_name"}
        assert different <= allowed, names[task_id]
        assert row["date_created"] <= other["date_created"]
        assert (row["date_started"] or "") >= (other["date_started"] or "")
        assert watched.full[task_id]["async_result"] == without["async_result"], names[task_id]


def test_nothing_is_refused(watched: Watched) -> None:
    assert watched.dead == []


# Events made by hand --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def listeners(
    rabbitmq: RabbitMQ, databases: Databases, logs: Path
) -> Iterator[dict[str, Pipeline]]:
    """A daemon for each database that stores everything in events."""
    with ExitStack() as stack:
        made = {}
        for engine in ENGINES:
            broker, database = Broker(rabbitmq.create()), databases.migrated(engine)
            log = logs / f"listener-{engine}.log"
            daemon = Daemon(log, broker.url, database.url, *EVERYTHING)
            stack.callback(daemon.kill)
            made[engine] = Pipeline(broker, database, daemon)
            daemon.start()
        for pipeline in made.values():
            pipeline.daemon.wait_for_consuming(2)
        yield made


@pytest.fixture
def listener(listeners: dict[str, Pipeline], engine: str) -> Pipeline:
    return listeners[engine]


def skipped(pipeline: Pipeline) -> dict[str, int]:
    """The number of skipped events for each problem in the log."""
    counts: dict[str, int] = {}
    for line in pipeline.daemon.output().splitlines():
        fields = json.loads(line)["fields"]
        if "left out" in fields["message"]:
            counts[fields["problem"]] = counts.get(fields["problem"], 0) + fields["events"]
    return counts


#: Creates the daemons once and not in each process.
on_one_listener = pytest.mark.xdist_group("listener")


#: The problems of events, each with the words of the log.
OBJECT, TYPE, UUID, TIME = "it is not an object", "`type`", "`uuid` is missing", "`timestamp`"

#: Events that cannot be stored, and why.
SKIPPED: dict[str, tuple[Callable[[str], object], str]] = {
    "not an object": (lambda id: 7, OBJECT),
    "a text": (lambda id: "task-started", OBJECT),
    "null": (lambda id: None, OBJECT),
    "a list": (lambda id: [event("task-started", id)], OBJECT),
    "empty": (lambda id: {}, TYPE),
    "no type": (lambda id: event(..., id), TYPE),
    "type a number": (lambda id: event(7, id), TYPE),
    "type a list": (lambda id: event(["task-started"], id), TYPE),
    "no uuid": (lambda id: event("task-started", ...), UUID),
    "uuid null": (lambda id: event("task-started", None), UUID),
    "uuid a number": (lambda id: event("task-started", 7), UUID),
    "uuid an object": (lambda id: event("task-started", {"id": id}), UUID),
    "uuid empty": (lambda id: event("task-started", ""), UUID),
    "uuid half a character": (lambda id: event("task-started", f"{id}\ud800"), UUID),
    "uuid of an own event a number": (lambda id: event("task-progress", 7), UUID),
    "no timestamp": (lambda id: event("task-started", id, timestamp=...), TIME),
    "timestamp null": (lambda id: event("task-started", id, timestamp=None), TIME),
    "timestamp a text": (lambda id: event("task-started", id, timestamp=str(TIMESTAMP)), TIME),
    "timestamp true": (lambda id: event("task-started", id, timestamp=True), TIME),
    "timestamp a list": (lambda id: event("task-started", id, timestamp=[TIMESTAMP]), TIME),
    "timestamp NaN": (lambda id: event("task-started", id, timestamp=float("nan")), TIME),
    "timestamp infinite": (lambda id: event("task-started", id, timestamp=float("inf")), TIME),
    "timestamp in 1970": (lambda id: event("task-started", id, timestamp=5), TIME),
    "timestamp before 1970": (lambda id: event("task-started", id, timestamp=-1.5), TIME),
    "timestamp beyond": (lambda id: event("task-started", id, timestamp=1e300), TIME),
    "timestamp of 400 digits": (lambda id: event("task-started", id, timestamp=10**400), TIME),
    "timestamp in milliseconds": (
        lambda id: event("task-started", id, timestamp=TIMESTAMP * 1000),
        TIME,
    ),
}

#: Events that Celeriac ignores.
SILENT: dict[str, Callable[[str], object]] = {
    "of a worker": lambda id: event("worker-heartbeat", ..., freq=2.0, active=1, loadavg=[0.1]),
    "of a worker, with an id": lambda id: event("worker-online", id),
    "of an application": lambda id: event("order-placed", id),
    "of an application, like a task's": lambda id: event("tasks-done", id),
    "own event of no task": lambda id: event("task-statistics", ..., count=7),
}

#: Unusual events, and what is stored of them.
STORED: dict[str, tuple[Callable[[str], object], Row]] = {
    # With the time of its arrival.
    "timestamp in 3000": (
        lambda id: event("task-started", id, timestamp=32_503_680_000),
        {"status": "STARTED"},
    ),
    "timestamp an integer": (
        lambda id: event("task-started", id, timestamp=1_718_000_150),
        {"status": "STARTED", "date_started": events.time(1_718_000_150)},
    ),
    "every other member of another type": (
        lambda id: event(
            "task-received",
            id,
            hostname=7,
            utcoffset="west",
            pid=None,
            clock=[],
            name={"a": 1},
            args=["a", "list"],
            kwargs=5,
            retries="many",
            eta=0,
            expires=True,
            root_id=[],
            parent_id={},
        ),
        dict.fromkeys(("task_name", "task_args", "task_kwargs", "worker"))
        | {"status": "RECEIVED"},
    ),
    "result an object": (
        lambda id: event("task-succeeded", id, result={"a": [1]}, runtime="long"),
        {"status": "SUCCESS", "result": "null"},
    ),
    "no result": (
        lambda id: event("task-succeeded", id),
        {"status": "SUCCESS", "result": "null"},
    ),
    "exception a list, traceback a number": (
        lambda id: event("task-failed", id, exception=["ValueError"], traceback=7),
        {
            "status": "FAILURE",
            "result": '{"exc_type": "Exception", "exc_message": [], "exc_module": null}',
            "traceback": None,
        },
    ),
    "exception that is no call": (
        lambda id: event("task-failed", id, exception="<odd> (1)", traceback="Trace"),
        {
            "status": "FAILURE",
            "result": '{"exc_type": "Exception", "exc_message": ["<odd> (1)"], "exc_module": null}',
            "traceback": "Trace",
        },
    ),
    "revoked for odd reasons": (
        lambda id: event("task-revoked", id, terminated="yes", expired=1, signum=[]),
        {"status": "REVOKED"},
    ),
    "an unknown type": (
        lambda id: event("task-half-way", id, done=[50], result="r", traceback="t", name="n"),
        {"status": "HALF-WAY", "result": None, "traceback": None, "task_name": None},
    ),
    "a type of 300 characters": (
        lambda id: event("task-" + "s" * 300, id),
        {"worker": "worker@test"},
    ),
    "a type in other letters": (
        lambda id: event("task-größe", id),
        {"status": "GRÖSSE"},
    ),
    "other members": (
        lambda id: event("task-started", id, content_type="x", status="SUCCESS", date_done="now"),
        {"status": "STARTED", "content_type": EVENT},
    ),
    "huge texts": (
        lambda id: event("task-succeeded", id, result="r" * 2_000_000, hostname="h" * 100_000),
        {"status": "SUCCESS", "result": json.dumps("r" * 2_000_000)},
    ),
    "nested lists": (
        lambda id: event("task-started", id, args=nested(200), other=nested(200)),
        {"status": "STARTED"},
    ),
    "U+0000 in texts": (
        lambda id: event("task-failed", id, exception="E('\0')", traceback="a\0b", hostname="h\0"),
        {"status": "FAILURE"},
    ),
    "half characters in texts": (
        lambda id: event("task-failed", id, exception="E('\ud800')", traceback="a\ud800b"),
        {"status": "FAILURE", "traceback": "a\ufffdb"},
    ),
}


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def comparable(row: Row) -> Row:
    """A row with times in the same form for each database."""
    return row | {name: row[name] and utc(row[name]) for name in TIMES}


@on_one_listener
@pytest.mark.parametrize("alone", [True, False], ids=["alone", "in-a-list"])
def test_bad_events_do_not_affect_others(listener: Pipeline, alone: bool) -> None:
    ids = {name: results.new_id() for name in (*SKIPPED, *SILENT, *STORED)}
    made = {name: make(ids[name]) for name, (make, _) in (SKIPPED | STORED).items()}
    made |= {name: make(ids[name]) for name, make in SILENT.items()}
    if alone:
        # A message that is not an event cannot be decoded.
        made = {name: one for name, one in made.items() if isinstance(one, dict)}
    good = [results.new_id() for _ in range(len(made) + 1)]
    before = skipped(listener)
    # WHEN each unusual event is sent among good ones, in its own message or in a list
    sequence = [received(good[0])]
    for odd, task_id in zip(made.values(), good[1:], strict=True):
        sequence += [odd, received(task_id)]
    messages = sequence if alone else events.split(sequence, 24)
    listener.broker.publish_many((EVENTS, events.message(one)) for one in messages)
    events.wait_until_handled(listener)
    rows = listener.database.rows()
    # THEN the good ones are stored
    assert not [task_id for task_id in good if rows[task_id]["status"] != "RECEIVED"]
    # THEN the case says what is stored of the unusual ones
    for name, (_, wanted) in STORED.items():
        row = comparable(rows[ids[name]])
        assert {column: row[column] for column in wanted} == wanted, name
    # THEN nothing is stored of the others, and the log counts those that Celery does not send
    assert not [name for name in (*SKIPPED, *SILENT) if ids[name] in rows]
    def counted(problem: str) -> int:
        counts = skipped(listener)
        return sum(
            counts[text] - before.get(text, 0) for text in counts if text.startswith(problem)
        )

    for problem in (OBJECT, TYPE, UUID, TIME):
        wanted = sum(why == problem for name, (_, why) in SKIPPED.items() if name in made)
        # They are logged after their batch is acknowledged.
        wait_until(lambda: counted(problem) >= wanted, problem, 30)
        assert counted(problem) == wanted, problem


@on_one_listener
@on_postgresql
@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (events.raw(b""), "undecodable"),
        (events.raw(b"hello"), "undecodable"),
        (events.raw(b'[{"type": "task-started"'), "undecodable"),
        (events.raw(b"\x91\x81\xa4type", content_type=MSGPACK), "undecodable"),
        (events.raw(b"[" * 100_000), "too-deep"),
        (events.raw(b"[" + b"[" * 50_000 + b"]" * 50_000 + b"]"), "too-deep"),
        (events.message([event("task-started", "t")] * 10_001), "too-many-events"),
        (events.raw(b"\xdd\xff\xff\xff\xff", content_type=MSGPACK), "too-many-events"),
        (events.raw(b"- &a [*b]", content_type="application/x-yaml"), "undecodable"),
        (events.raw(b"\x80\x04].", content_type="application/x-python-serialize"), "not-accepted"),
        (events.raw(b"<events/>", content_type="text/xml"), "unsupported-content-type"),
        (events.raw(b"{}", content_encoding="klingon"), "unsupported-content-encoding"),
        (events.raw(b"[]"), None),
        (events.message([]), None),
    ],
    ids=[
        "empty",
        "no JSON",
        "cut",
        "no msgpack",
        "deep and open",
        "deep",
        "10,001 events",
        "4,294,967,295 events",
        "yaml",
        "pickle",
        "content type",
        "encoding",
        "nothing",
        "empty list",
    ],
)
def test_bad_message_of_events(
    listener: Pipeline, message: Message, reason: str | None
) -> None:
    listener.broker.take(DEAD)
    before, after = results.new_id(), results.new_id()
    neighbours = [events.message(received(task_id)) for task_id in (before, after)]
    # WHEN a message without any events is sent among good ones
    listener.broker.publish_many(
        (EVENTS, one) for one in (neighbours[0], message, neighbours[1])
    )
    # THEN the good ones are stored
    listener.wait_for_rows({before: "RECEIVED", after: "RECEIVED"})
    if reason is None:
        events.wait_until_handled(listener)
        assert listener.broker.depth(DEAD) == 0
        return
    # THEN it is a dead letter with the reason
    wait_until(lambda: listener.broker.depth(DEAD) == 1, "the dead letter", 10)
    [letter] = listener.broker.take(DEAD)
    assert letter.headers["x-celeriac-reason"] == reason
    assert letter.body == message.body


@on_one_listener
def test_unreadable_events_do_not_affect_others(listener: Pipeline) -> None:
    ids = [results.new_id() for _ in range(6)]
    messages = [events.message(received(task_id)) for task_id in ids]
    # WHEN two messages have a property that is not valid UTF-8
    for at in (4, 2):
        messages.insert(at, Message(b"[]", dict(UNREADABLE)))
    listener.broker.publish_many((EVENTS, message) for message in messages)
    # THEN the others are stored, and the log says what was skipped
    listener.wait_for_rows(dict.fromkeys(ids, "RECEIVED"))
    told = "an event with properties that cannot be read was left out"
    wait_until(lambda: listener.daemon.output().count(told) == 2, "two words of it", 15)
    wait_until(lambda: listener.broker.depth(EVENTS) == 0, "an empty queue", 15)


@on_one_listener
@pytest.mark.parametrize("engine", full_except("postgresql"))
def test_ten_thousand_events_in_one_list(listener: Pipeline) -> None:
    # WHEN a list has the maximum length, and an unusual event is among the last
    ids = [results.new_id() for _ in range(9_999)]
    many = [received(task_id) for task_id in ids]
    listener.broker.publish(events.message([*many[:-1], 7, many[-1]]), queue=EVENTS)
    events.wait_until_handled(listener)
    # THEN all others are stored
    assert listener.database.statuses().keys() >= set(ids)
    listener.database.execute(f"delete from {TABLE}")


@on_one_listener
def test_any_routing_key(listener: Pipeline) -> None:
    # WHEN events have the routing keys of their types, of lists, and unknown ones
    keys = ("task.received", "task.multi", "task", "task.of.our.own")
    ids = {key: results.new_id() for key in keys}
    elsewhere = results.new_id()
    with listener.broker.channel() as channel:
        for key, task_id in (ids | {"worker.online": elsewhere}).items():
            one = events.message([received(task_id)] if key == "task.multi" else received(task_id))
            channel.basic_publish(one.to_amqp(), EVENT_EXCHANGE, key)
    # THEN those of tasks are stored, and those of workers do not reach the queue
    listener.wait_for_rows(dict.fromkeys(ids.values(), "RECEIVED"))
    events.wait_until_handled(listener)
    assert elsewhere not in listener.database.statuses()


#: Events that are later than a result and contain more, and the status of the result.
LATER_EVENTS = [
    ("task-succeeded", {"result": "'other'"}, "SUCCESS"),
    ("task-failed", {"exception": "ValueError(1)", "traceback": "T"}, "FAILURE"),
    ("task-revoked", {"terminated": True}, "FAILURE"),
    ("task-succeeded", {"result": "'other'"}, "FAILURE"),
    ("task-retried", {"exception": "ValueError(1)"}, "RETRY"),
    ("task-received", {}, "STARTED"),
    ("task-progress", {"done": 50}, "PROGRESS"),
]


@on_one_listener
@pytest.mark.parametrize("result_first", [True, False], ids=["result-first", "event-first"])
def test_an_event_never_replaces_a_result(listener: Pipeline, result_first: bool) -> None:
    # GIVEN results of tasks, and an event for each
    stories = {results.new_id(): story for story in LATER_EVENTS}
    done = {"date_done": "2024-06-10T06:15:50Z"}
    told = [
        (RESULTS, results.row(results.columns(task_id, status=status, **done)))
        for task_id, (_, _, status) in stories.items()
    ], [
        (EVENTS, events.message([event(kind, task_id, **fields), received(results.new_id())]))
        for task_id, (kind, fields, _) in stories.items()
    ]
    # WHEN they arrive in either order
    for messages in told[:: 1 if result_first else -1]:
        listener.broker.publish_many(messages)
        events.wait_until_handled(listener)
    for task_id, (kind, _, status) in stories.items():
        row = listener.database.row(task_id)
        # THEN the row has the outcome and the description of the result
        outcome = (row["status"], row["result"], row["meta"])
        assert outcome == (status, "42", '{"children": []}'), (kind, status)
        assert (row["content_type"], row["traceback"]) == ("application/json", None)
        assert (row["worker"], row["task_args"]) == ("worker@test", "\"(1, 'two')\"")
        # A time of a message's own is never in whole milliseconds if the state is not final.
        own = 0 if status in ("SUCCESS", "FAILURE") else 1
        assert utc(row["date_done"]) == datetime.datetime(2024, 6, 10, 6, 15, 50, own)


@on_postgresql
def test_events_do_not_end_tasks_if_outcomes_are_off(
    own_pipeline: Pipeline, make_daemon: Callable[..., Daemon]
) -> None:
    broker, database = own_pipeline.broker, own_pipeline.database
    daemon = make_daemon(broker.url, database.url, "--events", "--events-outcomes=false")
    pipeline = Pipeline(broker, database, daemon)
    daemon.start()
    daemon.wait_for_consuming(2)
    # WHEN tasks end according to their events
    ids = {kind: results.new_id() for kind in ("succeeded", "failed", "revoked")}
    later = {"timestamp": TIMESTAMP + 1}
    for kind, task_id in ids.items():
        told = [received(task_id), event("task-started", task_id)]
        told.append(event(f"task-{kind}", task_id, result="1", exception="E()", **later))
        broker.publish(events.message(told), queue=EVENTS)
    events.wait_until_handled(pipeline)
    # THEN they are running until a result arrives
    rows = database.rows()
    assert {rows[task_id]["status"] for task_id in ids.values()} == {"STARTED"}
    assert {rows[task_id]["result"] for task_id in ids.values()} == {None}
    broker.publish(results.result(ids["succeeded"]))
    pipeline.wait_for_rows({ids["succeeded"]: "SUCCESS"})


# The queue ------------------------------------------------------------------------------------

@on_postgresql
def test_the_queue_is_bounded(
    own_pipeline: Pipeline, make_daemon: Callable[..., Daemon]
) -> None:
    broker, database = own_pipeline.broker, own_pipeline.database
    options = ("--events", "--events-max-length", "50", "--events-ttl", "10m")
    # GIVEN a queue that a previous daemon has declared
    daemon = make_daemon(broker.url, database.url, *options)
    daemon.start()
    daemon.wait_for_consuming(2)
    assert daemon.stop() == 0
    bounds = {"x-max-length": 50, "x-message-ttl": 600_000}
    broker.declare(EVENTS, QUEUES[EVENTS] | bounds)
    # WHEN more events arrive than it can hold
    ids = [results.new_id() for _ in range(120)]
    broker.publish_many((EVENTS, events.message(received(task_id))) for task_id in ids)
    # THEN the oldest are dropped, and nothing becomes a dead letter
    assert broker.depth(EVENTS) == 50
    daemon.start()
    daemon.wait_for_consuming(2)
    events.wait_until_handled(Pipeline(broker, database, daemon))
    assert database.statuses().keys() == set(ids[-50:])
    assert broker.depth(DEAD) == 0


@on_postgresql
def test_an_existing_queue_is_used(
    own_pipeline: Pipeline, make_daemon: Callable[..., Daemon]
) -> None:
    broker, database = own_pipeline.broker, own_pipeline.database
    # GIVEN a queue and an exchange with other names, and the queue with other arguments
    broker.declare("shop.events", {"x-max-priority": 3})
    task_id = results.new_id()
    broker.publish(events.message(received(task_id)), queue="shop.events")
    names = ("--events-queue", "shop.events", "--event-exchange", "shop.ev")
    daemon = make_daemon(broker.url, database.url, "--events", *names)
    daemon.start()
    # THEN it is used as it is, with a warning
    daemon.wait_for_consuming(2)
    assert "used as it is" in daemon.output()
    pipeline = Pipeline(broker, database, daemon)
    pipeline.wait_for_rows({task_id: "RECEIVED"})
    # THEN it is bound to the exchange
    other = results.new_id()
    with broker.channel() as channel:
        channel.basic_publish(
            events.message(received(other)).to_amqp(), "shop.ev", "task.received"
        )
    pipeline.wait_for_rows({other: "RECEIVED"})
    assert not broker.exists(EVENTS)


@pytest.mark.parametrize("engine", full_except("postgresql"))
def test_results_do_not_wait_for_events(
    own_pipeline: Pipeline, make_daemon: Callable[..., Daemon]
) -> None:
    broker, database = own_pipeline.broker, own_pipeline.database
    # GIVEN the events of many thousand tasks in the queue
    broker.declare(EVENTS)
    ids = [results.new_id() for _ in range(20_000)]
    lists = events.split([received(task_id) for task_id in ids], 20)
    broker.publish_many((EVENTS, events.message(one)) for one in lists)
    # GIVEN a daemon that has begun with them
    daemon = make_daemon(broker.url, database.url, "--events", "--max-rows", "100")
    pipeline = Pipeline(broker, database, daemon)
    daemon.start()
    daemon.wait_for_consuming(2)
    wait_until(lambda: database.count() >= 100, "rows of events", 60, 0.01)
    # WHEN a result arrives
    result_id = results.new_id()
    broker.publish(results.result(result_id))
    pipeline.wait_for_rows({result_id: "SUCCESS"})
    # THEN it is stored long before the events are
    assert database.count() < len(ids)
    wait_until(lambda: database.count() == len(ids) + 1, "all rows", 120)
    assert daemon.stop() == 0
