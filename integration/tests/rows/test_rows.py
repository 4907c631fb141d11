"""The rows of `rpc://` results are those that django-celery-results would store.

The zoo runs twice with the same task ids: on a worker with `django-db`, whose rows are the
reference, and on one with `rpc://`, whose results a `Forwarder` sends to the daemons of all three
databases. They all get the same messages, so that a difference between two databases is caused by a
daemon and not by the run.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from harness import results
from harness.broker import RESULTS, Broker, Forwarder
from harness.daemon import Daemon
from harness.database import ENGINES, Databases
from harness.matrix import full, one_by_one
from harness.pipeline import Pipeline
from harness.processes import wait_until
from harness.project import Project
from harness.services import RabbitMQ

#: Celery publishes the failure of a chain's later tasks to the reply queue of the client, not to
#: ours; see docs/stock-rpc.md.
LOST_ON_STOCK = {"chain.fails"}

#: The encoder fails within the result backend, whose frames are in the traceback.
TRACEBACK_SHOWS_BACKEND = {"give.unserialisable"}


@dataclass
class Zoo:
    """The results of one run: the reference, our rows, and their messages."""

    celery: str
    extended: bool
    cases: dict[str, dict[str, str | None]]
    truth: dict[str, Any]
    ours: dict[str, dict[str, Any]]
    sent: dict[str, list[dict[str, Any]]]

    def pairs(self, engine: str) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
        """The case and the rows of both sides."""
        for case, task_id in self.stored():
            yield case, self.truth[task_id]["row"], self.ours[engine][task_id]["row"]

    def stored(self) -> Iterator[tuple[str, str]]:
        """The task ids of each case that have a row on both sides."""
        for case, ends in self.cases.items():
            for number, (task_id, status) in enumerate(ends.items()):
                if status is not None and not is_lost(case, number, ends):
                    yield case, task_id

    def outcome(self, row: dict[str, Any]) -> dict[str, Any]:
        """The message with the outcome of the row."""
        result = json.dumps(json.loads(row["result"]))
        found = [
            message
            for message in self.sent[row["task_id"]]
            if (message["status"], json.dumps(message["result"])) == (row["status"], result)
        ]
        assert found, f"no message says this: {row}"
        return found[-1]


def is_lost(case: str, number: int, ends: dict[str, str | None]) -> bool:
    return case in LOST_ON_STOCK and number == len(ends) - 1


def normalised(text: str | None) -> str | None:
    """Replaces process ids, the only difference between two runs."""
    return text and re.sub(r"(['\"]pid['\"]: )\d+", r"\1PID", text)


def shown(different: dict[str, Any]) -> str:
    """The beginning of the differences; results can be a megabyte long."""
    lines = [f"{len(different)} cases differ"]
    for case, sides in list(different.items())[:10]:
        lines += [case, *(f"  {side}: {str(value)[:1500]}" for side, value in sides.items())]
    return "\n".join(lines)


@pytest.fixture(
    scope="module",
    params=[
        *one_by_one("workers 3", "celery-5.7 extended", "celery-5.6 plain"),
        *one_by_one("workers 3", "celery-5.7 plain", "celery-5.6 extended", is_full=True),
    ],
)
def zoo(
    request: pytest.FixtureRequest,
    python: dict[str, Path],
    rabbitmq: RabbitMQ,
    databases: Databases,
    pipelines: dict[str, Pipeline],
    logs: Path,
) -> Iterator[Zoo]:
    run: str = request.param
    celery, _, kind = run.partition(" ")
    extended = kind == "extended"
    settings = {"RESULT_EXTENDED": "on" if extended else "off"}
    truth_database = databases.migrated("postgresql")
    truth = Project(python[celery], truth_database.url, rabbitmq.create(), settings)
    stock_broker = Broker(rabbitmq.create())
    stock_broker.declare(RESULTS)
    # Clients use the project's result backend, as in production; only the worker has `rpc://`.
    stock = Project(python[celery], truth_database.url, stock_broker.url, settings)
    workers = [
        truth.worker(logs / f"{run} truth.log"),
        stock.worker(logs / f"{run} rpc.log", result_backend="rpc://"),
    ]
    targets = [pipelines[engine].broker.url for engine in ENGINES]
    with ExitStack() as stack:
        for worker in workers:
            stack.callback(worker.kill)
            worker.start()
        for worker in workers:
            worker.wait_for("ready.")
        forwarder = stack.enter_context(Forwarder(stock_broker.url, targets))
        with ThreadPoolExecutor() as both:
            published = both.map(
                lambda project: json.loads(project.manage("zoo", run, "--stock")), (truth, stock)
            )
        cases, same_cases = published
        assert cases == same_cases
        expected = {id: status for ends in cases.values() for id, status in ends.items() if status}
        wait_until(
            lambda: expected.items() <= truth_database.statuses().items(),
            "django-celery-results to have written all rows",
            180,
        )
        for case in LOST_ON_STOCK:
            del expected[list(cases[case])[-1]]
        for pipeline in pipelines.values():
            pipeline.wait_for_rows(expected, 120)
        for worker in workers:
            worker.stop()
        wait_until(lambda: stock_broker.depth(RESULTS) == 0, "all results to be forwarded", 10)
    for pipeline in pipelines.values():
        pipeline.wait_until_handled()
    sent: dict[str, list[dict[str, Any]]] = {}
    for message in forwarder.messages:
        body = json.loads(message.body)
        sent.setdefault(body["task_id"], []).append(body)
    yield Zoo(
        celery,
        extended,
        cases,
        truth.rows(),
        {
            engine: Project(python[celery], pipeline.database.url, stock_broker.url).rows()
            for engine, pipeline in pipelines.items()
        },
        sent,
    )


def test_the_same_tasks_have_rows(zoo: Zoo, engine: str) -> None:
    # GIVEN what each case says about its task ids
    stored = {task_id for _, task_id in zoo.stored()}
    named = {task_id for ends in zoo.cases.values() for task_id in ends}
    # THEN both sides have a row for those that end, except for results that `rpc://` loses
    lost = {list(zoo.cases[case])[-1] for case in LOST_ON_STOCK}
    assert set(zoo.truth) & named == stored | lost
    assert set(zoo.ours[engine]) & named == stored


def test_outcome(zoo: Zoo, engine: str) -> None:
    # THEN the outcome of every task is identical
    different = {
        f"{case}: {column}": {"true": true[column], "ours": ours[column]}
        for case, true, ours in zoo.pairs(engine)
        for column in ("status", "result", "content_type", "content_encoding", "meta")
        if normalised(true[column]) != normalised(ours[column])
    }
    assert not different, shown(different)


def test_traceback(zoo: Zoo, engine: str) -> None:
    if zoo.extended:
        # THEN tracebacks are identical
        different = {
            case: {"true": true["traceback"], "ours": ours["traceback"]}
            for case, true, ours in zoo.pairs(engine)
            if case not in TRACEBACK_SHOWS_BACKEND and true["traceback"] != ours["traceback"]
        }
        assert not different, shown(different)
        backends = [row for case, _, row in zoo.pairs(engine) if case in TRACEBACK_SHOWS_BACKEND]
        assert backends
        assert all("EncodeError" in row["traceback"] for row in backends)
    else:
        # THEN we store the traceback, which django-celery-results drops without result_extended
        for case, true, ours in zoo.pairs(engine):
            assert true["traceback"] is None
            sent = [message["traceback"] for message in zoo.sent[ours["task_id"]]]
            assert ours["traceback"] == zoo.outcome(ours)["traceback"], (case, sent)
        failed = [ours for case, _, ours in zoo.pairs(engine) if case.startswith("fail.")]
        assert failed
        assert all(row["traceback"].startswith("Traceback") for row in failed)


def test_description(zoo: Zoo, engine: str) -> None:
    described = zoo.extended and zoo.celery == "celery-5.7"
    different = {}
    for case, true, ours in zoo.pairs(engine):
        if described:
            # THEN name and worker are identical, and the arguments are the originals as JSON
            sent = zoo.outcome(ours)
            wanted = {
                "task_name": true["task_name"],
                "worker": true["worker"],
                "task_args": None if sent["args"] is None else json.dumps(sent["args"]),
                "task_kwargs": None if sent["kwargs"] is None else json.dumps(sent["kwargs"]),
            }
        else:
            # THEN these columns are empty
            wanted = dict.fromkeys(("task_name", "worker", "task_args", "task_kwargs"))
        had = {column: ours[column] for column in wanted}
        if had != wanted:
            different[case] = {"wanted": wanted, "ours": had}
    assert not different, shown(different)
    if described:
        positional, keyword = (
            next(row for case, _, row in zoo.pairs(engine) if case == name)
            for name in ("args.positional", "args.keyword")
        )
        assert positional["task_args"] == '[1, "two", null, [3.5]]'
        assert positional["task_kwargs"] == "{}"
        assert keyword["task_kwargs"] == '{"a": 1, "b": {"c": "cr\\u00e8me"}}'


def test_dates(zoo: Zoo, engine: str) -> None:
    different = {}
    for case, true, ours in zoo.pairs(engine):
        created, started, done = (
            datetime.datetime.fromisoformat(ours[column]) if ours[column] else None
            for column in ("date_created", "date_started", "date_done")
        )
        # THEN a task that was seen starting has a start, its times are in order, and its end is the
        # time in the message
        own = zoo.outcome(ours).get("date_done")
        told = {message["status"] for message in zoo.sent[ours["task_id"]]}
        kept = {
            # (`rpc://` publishes without confirms, so a message can be missing)
            "has a start": (started is None) == (true["date_started"] is None)
            or (started is None and "STARTED" not in told),
            "in order": created <= (started or created) <= done,
            "done as told": own is None or done == datetime.datetime.fromisoformat(own),
        }
        if not all(kept.values()):
            dates = {"created": created, "started": started, "done": done, "told": own}
            different[case] = kept | dates
    assert not different, shown(different)


def test_async_result(zoo: Zoo, engine: str) -> None:
    different = {}
    for case, task_id in zoo.stored():
        true, ours = (rows[task_id]["async_result"] for rows in (zoo.truth, zoo.ours[engine]))
        if not zoo.extended or case in TRACEBACK_SHOWS_BACKEND:
            true, ours = true | {"traceback": ""}, ours | {"traceback": ""}
        if normalised(json.dumps(true)) != normalised(json.dumps(ours)):
            different[case] = {"true": true, "ours": ours}
    # THEN an AsyncResult returns the same on both sides
    assert not different, shown(different)


# Times ---------------------------------------------------------------------------------------

#: Times as Celery writes them: in and out of summer time, and at the limits of a column.
TIMES = [
    "2026-01-15T12:00:00.123456+00:00",
    "2026-07-15T12:00:00.000001+00:00",
    "2026-07-15T12:00:00.999999+00:00",
    "2026-07-15T12:00:00+00:00",
    "2026-07-15T12:00:00.5+00:00",
    "2026-07-15T14:00:00.654321+02:00",
    "2025-12-31T23:59:59.999999+00:00",
    "2025-12-31T23:30:00.250000-05:30",
    "2026-03-29T01:30:00.111111+00:00",
    "2026-10-25T00:30:00.222222+00:00",
    "2026-10-25T01:30:00.333333+00:00",
    "2026-02-28T22:30:00.444444Z",
]


@pytest.mark.parametrize(
    ("engine", "use_tz"),
    [
        ("postgresql", True),
        ("mariadb", False),
        ("sqlite", False),
        full("postgresql", False),
        full("mariadb", True),
        full("sqlite", True),
    ],
)
def test_times_to_the_microsecond(
    engine: str,
    use_tz: bool,
    python: dict[str, Path],
    rabbitmq: RabbitMQ,
    databases: Databases,
    make_daemon: Callable[..., Daemon],
) -> None:
    # GIVEN a Django project in Paris, with aware or naive times, and a daemon with its zone
    broker, database = Broker(rabbitmq.create()), databases.migrated(engine)
    settings = {"USE_TZ": "on" if use_tz else "off", "TIME_ZONE": "Europe/Paris"}
    project = Project(python["celery-5.7"], database.url, broker.url, settings)
    options = [] if use_tz else ["--time-zone", "Europe/Paris"]
    daemon = make_daemon(broker.url, database.url, *options)
    daemon.start_consuming()
    # WHEN results with a `date_done` are stored
    times = {results.new_id(): time for time in TIMES}
    broker.publish(*(results.result(id, date_done=time) for id, time in times.items()))
    Pipeline(broker, database, daemon).wait_for_rows(dict.fromkeys(times, "SUCCESS"))
    # THEN Django reads exactly these times
    rows = project.rows()
    read = {time: rows[id]["row"]["date_done"] for id, time in times.items()}
    assert read == {time: as_django_reads(time, use_tz) for time in TIMES}
    for id, time in times.items():
        assert rows[id]["row"]["date_created"] <= as_django_reads(time, use_tz)
    # THEN a running task has the time of arrival, in the same zone
    unfinished = results.new_id()
    before = datetime.datetime.now(datetime.timezone.utc)
    broker.publish(results.result(unfinished, status="STARTED", date_done=None))
    Pipeline(broker, database, daemon).wait_for_rows({unfinished: "STARTED"})
    after = datetime.datetime.now(datetime.timezone.utc)
    row = project.rows()[unfinished]["row"]
    for column in ("date_created", "date_started", "date_done"):
        earliest, latest = (as_django_reads(time.isoformat(), use_tz) for time in (before, after))
        assert earliest <= row[column] <= latest, column
    assert daemon.stop() == 0


def as_django_reads(time: str, use_tz: bool) -> str:
    """Aware times are returned in UTC, naive ones in Paris time."""
    zone = datetime.timezone.utc if use_tz else ZoneInfo("Europe/Paris")
    local = datetime.datetime.fromisoformat(time).astimezone(zone)
    return local.replace(tzinfo=local.tzinfo if use_tz else None).isoformat(timespec="microseconds")
