"""Which state of a task wins: `docs/guarantees.md`, with messages as workers send them."""

from __future__ import annotations

import datetime
import itertools
from collections.abc import Callable
from typing import Any

import pytest

from harness import results
from harness.broker import Broker, Message
from harness.daemon import Daemon
from harness.database import TABLE, Database, Databases
from harness.matrix import full_except
from harness.pipeline import Pipeline
from harness.services import RabbitMQ
from harness.stream import utc

NOW = datetime.datetime.now(datetime.timezone.utc)


def at(seconds: int) -> str:
    """A time before now, with a fraction of a millisecond."""
    time = NOW - datetime.timedelta(hours=1) + datetime.timedelta(seconds=seconds)
    return time.replace(microsecond=123_456).isoformat()


def state(task_id: str, status: str, seconds: int, **fields: Any) -> Message:
    return results.row(
        results.columns(task_id, status=status, date_done=at(seconds), result=f'"{status}"', **fields)
    )


#: The states of one task with their times, and the one that its row must have.
HISTORIES = {
    "run again after a failure": ([("FAILURE", 0), ("STARTED", 3)], "STARTED"),
    "fails again": ([("FAILURE", 0), ("STARTED", 3), ("FAILURE", 4)], "FAILURE"),
    "succeeds in its second run": ([("FAILURE", 0), ("STARTED", 3), ("SUCCESS", 4)], "SUCCESS"),
    "run again after a success": ([("SUCCESS", 0), ("STARTED", 3)], "SUCCESS"),
    "run again after it was revoked": ([("REVOKED", 0), ("STARTED", 3)], "STARTED"),
    "a clock that is behind": ([("RETRY", 0), ("FAILURE", -1)], "FAILURE"),
    "a clock that is ahead": ([("STARTED", 1), ("REVOKED", 0)], "REVOKED"),
}


@pytest.mark.parametrize("history", HISTORIES)
def test_the_state_of_a_row_depends_on_times_and_not_on_the_order(
    pipeline: Pipeline, history: str
) -> None:
    states, wanted = HISTORIES[history]
    # WHEN the messages of a history arrive in every order, together and one by one
    ids = {results.new_id(): order for order in itertools.permutations(states)}
    for task_id, order in ids.items():
        for status, seconds in order:
            pipeline.broker.publish(state(task_id, status, seconds))
    pipeline.wait_until_handled()
    rows = pipeline.database.rows()
    # THEN the row is the same, and a task that has ended did not begin after its end
    assert {rows[task_id]["status"] for task_id in ids} == {wanted}
    assert len({rows[task_id]["date_done"] for task_id in ids}) == 1
    for task_id in ids:
        row = rows[task_id]
        assert row["result"] == f'"{wanted}"'
        if wanted in ("SUCCESS", "FAILURE", "REVOKED") and row["date_started"]:
            assert row["date_started"] <= row["date_done"]


def test_a_clock_in_the_next_century_does_not_win_for_ever(pipeline: Pipeline) -> None:
    # GIVEN a worker whose clock is in 2106
    future = "2106-01-01T00:00:00.123456+00:00"
    task_id, running = results.new_id(), results.new_id()
    wrong = results.columns(task_id, result='"wrong"', date_done=future)
    started = wrong | {"task_id": running, "status": "STARTED"}
    pipeline.broker.publish(results.row(wrong), results.row(started))
    pipeline.wait_for_rows({task_id: "SUCCESS", running: "STARTED"})
    # THEN its states have the time of their arrival
    rows, now = pipeline.database.rows(), datetime.datetime.now(datetime.timezone.utc)
    for one in (task_id, running):
        done = utc(rows[one]["date_done"]).replace(tzinfo=datetime.timezone.utc)
        assert NOW - datetime.timedelta(seconds=1) <= done <= now
    # WHEN the tasks succeed again, THEN the row has the newer result
    now = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=1)
    right = results.columns(task_id, result='"right"', date_done=now.isoformat())
    pipeline.broker.publish(results.row(right), results.row(right | {"task_id": running}))
    pipeline.wait_until_handled()
    rows = pipeline.database.rows()
    assert [rows[one]["result"] for one in (task_id, running)] == ['"right"'] * 2


@pytest.mark.parametrize("engine", full_except("postgresql"))
def test_arguments_of_stock_workers_are_not_stored(own_pipeline: Pipeline) -> None:
    # GIVEN a daemon without --rpc-arguments
    own_pipeline.daemon.start_consuming()
    # WHEN Celery 5.7 sends the arguments that the application hides in `kwargsrepr`
    task_id = results.new_id()
    own_pipeline.broker.publish(
        results.result(task_id, name="shop.login", args=["bob"], kwargs={"password": "hunter2"})
    )
    own_pipeline.wait_for_rows({task_id: "SUCCESS"})
    row = own_pipeline.database.row(task_id)
    # THEN the row has the name and not the arguments
    assert row["task_name"] == "shop.login"
    assert (row["task_args"], row["task_kwargs"]) == (None, None)
    assert "hunter2" not in str(row) and "hunter2" not in own_pipeline.daemon.output()


def test_the_columns_of_a_later_version_are_filled(
    engine: str, rabbitmq: RabbitMQ, databases: Databases, make_daemon: Callable[..., Daemon]
) -> None:
    # GIVEN a table with the columns of django-celery-results' pull request 514
    broker, database = Broker(rabbitmq.create()), databases.migrated(engine)
    for column in ("queue varchar(255)", "retries integer"):
        database.execute(f"alter table {TABLE} add {column}")
    pipeline = Pipeline(broker, database, make_daemon(broker.url, database.url))
    pipeline.daemon.start_consuming()
    with_both, without = results.new_id(), results.new_id()
    # WHEN results arrive with and without them, THEN what is known is stored
    broker.publish(
        state(with_both, "STARTED", 0, queue="slow", retries=0),
        state(with_both, "SUCCESS", 1, queue="slow", retries=2),
        state(without, "SUCCESS", 1),
    )
    pipeline.wait_for_rows({with_both: "SUCCESS", without: "SUCCESS"})
    stored = columns_of(database, with_both, without)
    assert stored == [("slow", 2), (None, None)]
    assert pipeline.daemon.stop() == 0


def columns_of(database: Database, *ids: str) -> list[tuple[Any, Any]]:
    rows = database.rows()
    return [(rows[task_id]["queue"], rows[task_id]["retries"]) for task_id in ids]
