"""The rows do not depend on the order in which messages arrive, nor on duplicates.

The messages of Celery 5.6 and 5.7 workers, results over `rpc://` and events, are published once in
their order and then in many others, to daemons on all three databases, with and without the
arguments in events.

A result over `rpc://` does not say when its state was reached, and up to Celery 5.6 not even when
it is final. Celeriac uses the time of its arrival, so the results of one task keep their order, and
only their place among the events changes. Times that come from the clock are later than all times
in the messages and compare as equal here; so does `date_started` if STARTED came as such a result,
because it is never exact.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from harness import capture, events
from harness.broker import DEAD, EVENTS, RESULTS, Broker
from harness.capture import Captured
from harness.daemon import Daemon
from harness.database import ENGINES, TABLE, Databases
from harness.matrix import full, one_by_one
from harness.pipeline import Pipeline
from harness.services import RabbitMQ
from harness.stream import utc

CAPTURES = ("celery-5.6.3-json", "celery-5.7.0-json", "celery-5.7.0-msgpack")

#: Columns with times, and a placeholder for times from the clock, which are later than every time
#: in the captures.
TIMES = ("date_created", "date_started", "date_done")
LAST = datetime.datetime(2025, 1, 1)
ARRIVAL = "arrival"

Rows = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Variant:
    """How a daemon treats events. Its batches are so large that the rows of a task meet in a batch,
    or so small that they meet in the table.
    """

    name: str
    options: tuple[str, ...]

    def __str__(self) -> str:
        return self.name


VARIANTS = (
    Variant("plain", ("--events",)),
    Variant(
        "arguments",
        (
            *("--events", "--events-pending", "--events-arguments", "--rpc-arguments"),
            *("--max-rows", "7"),
        ),
    ),
)


def read(pipeline: Pipeline, started_by_arrival: set[str]) -> Rows:
    """All rows without their primary keys. Times from the clock are replaced by the placeholder."""

    def plain(value: Any) -> Any:
        if value is None:
            return None
        return ARRIVAL if utc(value) > LAST else utc(value)

    rows = pipeline.database.rows()
    for task_id, row in rows.items():
        for name in TIMES:
            row[name] = plain(row[name])
        if task_id in started_by_arrival:
            assert row["date_started"], task_id
            row["date_started"] = ARRIVAL
    return rows


def replay(pipeline: Pipeline, captured: list[Captured], *parts: list[Captured]) -> Rows:
    """The rows of all parts. Each part is stored before the next is published."""
    pipeline.database.execute(f"delete from {TABLE}")
    for part in parts:
        pipeline.broker.publish_many(
            (EVENTS if one.is_event else RESULTS, one.message) for one in part
        )
        events.wait_until_handled(pipeline)
    started = {one.follows for one in captured if one.follows and b"STARTED" in one.message.body}
    return read(pipeline, started)


def differences(wanted: Rows, rows: Rows) -> str:
    """The differences, shortened."""
    lines = []
    for task_id in sorted(wanted.keys() | rows.keys()):
        left, right = wanted.get(task_id, {}), rows.get(task_id, {})
        for name in sorted(left.keys() | right.keys()):
            if left.get(name) != right.get(name):
                sides = f"{str(left.get(name))[:200]!r} became {str(right.get(name))[:200]!r}"
                lines.append(f"{task_id} {name}: {sides}")
    return "\n".join(lines)


@pytest.fixture(scope="module", params=one_by_one("replay", *VARIANTS), ids=str)
def replayers(
    request: pytest.FixtureRequest, rabbitmq: RabbitMQ, databases: Databases, logs: Path
) -> Iterator[dict[str, Pipeline]]:
    """One daemon for each database, with the events options of the variant."""
    variant: Variant = request.param
    with ExitStack() as stack:
        made = {}
        for engine in ENGINES:
            broker, database = Broker(rabbitmq.create()), databases.migrated(engine)
            log = logs / f"replay-{variant}-{engine}.log"
            daemon = Daemon(log, broker.url, database.url, *variant.options)
            stack.callback(daemon.kill)
            made[engine] = Pipeline(broker, database, daemon)
            daemon.start()
        for pipeline in made.values():
            pipeline.daemon.wait_for_consuming(2)
        yield made


@pytest.fixture(scope="module")
def references(replayers: dict[str, Pipeline]) -> Callable[[str], Rows]:
    """The rows of a capture published in its original order, on PostgreSQL."""
    known: dict[str, Rows] = {}

    def reference(name: str) -> Rows:
        if name not in known:
            captured = capture.load(name)
            known[name] = replay(replayers["postgresql"], captured, captured)
        return known[name]

    return reference


@pytest.mark.parametrize(
    ("engine", "name"),
    [
        *(("postgresql", name) for name in CAPTURES),
        ("mariadb", CAPTURES[0]),
        ("sqlite", CAPTURES[0]),
        *(full(engine, name) for engine in ("mariadb", "sqlite") for name in CAPTURES[1:]),
    ],
)
def test_order_and_duplicates(
    replayers: dict[str, Pipeline], references: Callable[[str], Rows], engine: str, name: str
) -> None:
    pipeline, captured = replayers[engine], capture.load(name)
    # GIVEN the rows of the messages in their original order
    wanted = references(name)
    assert len(wanted) >= 25
    of_events = [one for one in captured if one.is_event]
    of_results = [one for one in captured if not one.is_event]
    orders: dict[str, list[Any]] = {
        "as they came again": [captured],
        "events first": [of_events, of_results],
        "results first, events in reverse": [of_results, of_events[::-1]],
        **{f"shuffled {seed}": [list(capture.shuffled(captured, seed))] for seed in range(3)},
    }
    found = {}
    for order, parts in orders.items():
        # WHEN they arrive in another order, and twice
        rows = replay(pipeline, captured, *parts)
        if rows != wanted:
            found[order] = differences(wanted, rows)
    # THEN the rows are the same
    text = "\n".join(f"{order}:\n{difference}" for order, difference in found.items())
    assert not found, text
    assert pipeline.broker.depth(DEAD) == 0
