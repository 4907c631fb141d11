"""Celeriac with the tables of django-celery-results 2.0, the oldest supported version."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import results
from harness.broker import Broker
from harness.daemon import Daemon
from harness.database import Databases
from harness.matrix import full_except
from harness.pipeline import Pipeline
from harness.project import Project
from harness.services import RabbitMQ


@pytest.mark.parametrize("engine", full_except("postgresql"))
def test_rows_in_tables_of_2_0(
    engine: str,
    python: dict[str, Path],
    rabbitmq: RabbitMQ,
    databases: Databases,
    make_daemon: Callable[..., Daemon],
) -> None:
    # GIVEN the tables of django-celery-results 2.0, which lack later columns
    broker, database = Broker(rabbitmq.create()), databases.empty(engine)
    databases.migrate(database, python["oldest"])
    columns = {name for name in table_columns(database)}
    assert not columns & {"date_started", "periodic_task_name"}
    daemon = make_daemon(broker.url, database.url, "--rpc-arguments")
    daemon.start_consuming()
    # WHEN a task's messages are stored twice
    succeeded, failed = results.new_id(), results.new_id()
    messages = [
        results.result(succeeded, status="STARTED", result={"pid": 1}, date_done=None),
        results.result(succeeded),
        results.result(
            failed,
            status="FAILURE",
            result={"exc_type": "ValueError", "exc_message": ["bad"], "exc_module": "builtins"},
            traceback="Traceback: bad",
        ),
    ]
    pipeline = Pipeline(broker, database, daemon)
    wanted = {succeeded: "SUCCESS", failed: "FAILURE"}
    for _ in range(2):
        broker.publish(*messages)
        pipeline.wait_for_rows(wanted)
        pipeline.wait_until_handled()
    # THEN django-celery-results 2.0 reads the rows
    rows = Project(python["oldest"], database.url, broker.url).rows()
    assert {id: rows[id]["row"]["status"] for id in wanted} == wanted
    row = rows[succeeded]["row"]
    assert row["result"] == "42"
    assert row["task_name"] == "shop.zoo.echo"
    assert row["worker"] == "worker@test"
    assert json.loads(row["task_args"]) == [1, "two"]
    assert json.loads(row["meta"]) == {"children": []}
    assert row["date_done"] == "2026-03-04T05:06:07.891011+00:00"
    assert rows[succeeded]["async_result"]["result"] == "42"
    assert rows[failed]["async_result"]["result"] == "ValueError('bad')"
    assert rows[failed]["async_result"]["traceback"] == "Traceback: bad"
    pipeline.stop_and_check_queues()


def table_columns(database) -> list[str]:
    with database.connect() as connection:
        cursor = connection.cursor()
        cursor.execute("select * from django_celery_results_taskresult")
        return [column[0] for column in cursor.description]
