"""Results in several queues, distributed by the plugin `rabbitmq_consistent_hash_exchange`.

The setup is that of `docs/operating.md`, in a private RabbitMQ with the plugin enabled.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest
from celery import Celery
from celery.app.task import Context

from harness.broker import DEAD, EXCHANGE, Broker
from harness.daemon import Daemon
from harness.database import Databases
from harness.processes import wait_until
from harness.services import PrivateRabbitMQ

QUEUES = ("celeriac.results.1", "celeriac.results.2")
TASKS = 100


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    server = PrivateRabbitMQ()
    (server.folder / "enabled_plugins").write_text("[rabbitmq_consistent_hash_exchange].\n")
    try:
        server.start()
        yield Broker(server.create())
    finally:
        server.close()


def prepare(broker: Broker) -> None:
    """Declares the exchange, and its bindings with weights to the queues that the daemons declare,
    as an administrator does before everything else.
    """
    with broker.channel() as channel:
        arguments = {"hash-property": "correlation_id"}
        channel.exchange_declare(
            EXCHANGE, "x-consistent-hash", durable=True, auto_delete=False, arguments=arguments
        )


def bind(broker: Broker) -> None:
    for queue in QUEUES:
        broker.bind(queue, EXCHANGE, "1")


@pytest.mark.parametrize("engine", ["postgresql"])
def test_tasks_stay_in_their_queues_and_all_rows_are_stored(
    broker: Broker, databases: Databases, make_daemon: Callable[..., Daemon], engine: str
) -> None:
    prepare(broker)
    database = databases.migrated(engine)
    daemons = [make_daemon(broker.url, database.url, "--results-queue", name) for name in QUEUES]
    for daemon in daemons:
        daemon.start_consuming()
        assert "used as it is" in daemon.output(), "the exchange is not direct"
    bind(broker)
    for daemon in daemons:
        assert daemon.stop() == 0

    # WHEN workers publish while nothing consumes
    url = f"celeriac://?queue={QUEUES[0]}"
    app = Celery("test", broker=broker.url, backend=url, set_as_current=False)
    for number in range(TASKS):
        for state in ("STARTED", "SUCCESS"):
            app.backend.store_result(f"t{number}", number, state, request=Context(id=f"t{number}"))

    # THEN both messages of a task are in the same queue, and both queues have a good share of them
    taken = {name: broker.take(name) for name in QUEUES}
    ids = {
        name: [json.loads(message.body)["task_id"] for message in messages]
        for name, messages in taken.items()
    }
    assert sum(map(len, ids.values())) == 2 * TASKS
    for name in QUEUES:
        assert all(ids[name].count(one) == 2 for one in set(ids[name]))
        assert len(set(ids[name])) > TASKS / 10

    # AND the daemons store the correct rows
    for name, messages in taken.items():
        broker.publish(*messages, queue=name)
    for daemon in daemons:
        daemon.start_consuming()
    wait_until(lambda: list(database.statuses().values()).count("SUCCESS") == TASKS, "rows", 30)
    for daemon in daemons:
        assert daemon.stop() == 0
    assert broker.depth(DEAD) == 0
