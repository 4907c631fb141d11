"""Pickled results: the columns unpickle to the values of the message's members.

The bodies are those of `tests/data/pickle_bodies.py`, pickled by the Python that runs the tests.
"""

from __future__ import annotations

import base64
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import results
from harness.broker import DEAD, Broker
from harness.daemon import REPOSITORY, Daemon
from harness.database import Databases
from harness.pipeline import Pipeline
from harness.services import RabbitMQ

sys.path.insert(0, str(REPOSITORY / "tests" / "data"))

import pickle_bodies  # noqa: E402

PROTOCOLS = (2, 3, 4, 5)

#: The members for each column.
COLUMNS = {"result": "result", "task_args": "args", "task_kwargs": "kwargs"}

LABELS = {"content_type": "application/x-python-serialize", "content_encoding": "binary"}


@pytest.fixture
def pipeline(rabbitmq: RabbitMQ, databases: Databases, logs: Path) -> Iterator[Pipeline]:
    broker, database = Broker(rabbitmq.create()), databases.migrated("sqlite")
    options = ("--accept-content", "json,pickle", "--rpc-arguments")
    daemon = Daemon(logs / "celeriac-pickle.log", broker.url, database.url, *options)
    daemon.start_consuming()
    try:
        yield Pipeline(broker, database, daemon)
    finally:
        daemon.kill()


def bodies() -> Iterator[tuple[int, dict[str, Any]]]:
    """Bodies, each with its pickle protocol."""
    members = [{"result": value} for value in pickle_bodies.values().values()]
    members += pickle_bodies.related().values()
    for protocol in PROTOCOLS:
        for fields in members:
            yield protocol, results.body(results.new_id(), **fields)
        itself = results.body(results.new_id())
        itself["result"] = itself["children"] = itself
        yield protocol, itself
    for value in pickle_bodies.large().values():
        yield 4, results.body(results.new_id(), result=value)


def test_columns_unpickle_to_the_values_of_the_members(pipeline: Pipeline) -> None:
    sent = list(bodies())
    assert len(sent) > 100
    pipeline.broker.publish(
        *(
            results.raw(body["task_id"], pickle.dumps(body, protocol), **LABELS)
            for protocol, body in sent
        )
    )
    pipeline.wait_until_handled()
    assert pipeline.broker.depth(DEAD) == 0

    rows = pipeline.database.rows()
    for protocol, body in sent:
        row = rows[body["task_id"]]
        assert {name: row[name] for name in LABELS} == LABELS
        assert (row["status"], row["worker"]) == (body["status"], body["worker"])

        def form(value: Any, protocol: int = protocol) -> bytes:
            """Equal for values that are equal and share the same parts."""
            return pickle.dumps(pickle.loads(pickle.dumps(value, protocol)), protocol)

        for column, member in COLUMNS.items():
            held = pickle.loads(base64.b64decode(row[column]))
            assert form(held) == form(body[member]), (protocol, member)
        meta = pickle.loads(base64.b64decode(row["meta"]))
        assert meta.keys() == {"children"}
        assert form(meta["children"]) == form(body["children"]), protocol
