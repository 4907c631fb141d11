"""No result is lost, whatever fails.

In each test a stream of results is published while something fails. In the end every task has the
expected row, every message that can never be stored is a dead letter, and the queue is empty, also
after the daemon has ended and its unacknowledged messages are back in the queue.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from harness import results
from harness.broker import DEAD, RESULTS, Broker
from harness.daemon import Daemon
from harness.database import TABLE, Database, Databases
from harness.matrix import full_except
from harness.pipeline import Pipeline
from harness.processes import wait_until
from harness.project import Project
from harness.proxy import Proxy
from harness.services import PrivatePostgreSQL, PrivateRabbitMQ, RabbitMQ, private
from harness.stream import Stream, outcomes

on_postgresql = pytest.mark.parametrize("engine", ["postgresql"])
SERVERS = ("postgresql", "mariadb")

MIGRATE = "python manage.py migrate django_celery_results"


def wait_for_more_rows(pipeline: Pipeline, stream: Stream, rows: int = 20) -> None:
    """Waits until the daemon is storing rows, so that the fault occurs while it is busy."""
    seen = pipeline.database.count()
    wait_until(lambda: pipeline.database.count() >= seen + rows, "rows to be stored", 60, 0.01)
    assert not stream.is_over, "the stream ended early"


# The daemon ---------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", full_except("postgresql"))
def test_daemon_killed_again_and_again(own_pipeline: Pipeline) -> None:
    # GIVEN a stream of results, some of them bad
    with Stream(own_pipeline.broker, bad_every=50) as stream:
        # WHEN the daemon is killed while it is busy, fewer times than the delivery limit
        for _ in range(10):
            own_pipeline.daemon.start_consuming()
            wait_for_more_rows(own_pipeline, stream)
            own_pipeline.daemon.kill()
    # THEN the next one stores the rest
    own_pipeline.daemon.start_consuming()
    stream.check(own_pipeline)


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
@on_postgresql
def test_daemon_stopped_under_load(own_pipeline: Pipeline, signal_number: signal.Signals) -> None:
    with Stream(own_pipeline.broker) as stream:
        # WHEN the daemon is asked to stop under load
        own_pipeline.daemon.start_consuming()
        wait_for_more_rows(own_pipeline, stream, 100)
        # THEN it stops soon without an error, and what it has stored is complete
        assert own_pipeline.daemon.stop(10, signal_number) == 0
        before = outcomes(own_pipeline.database)
    # THEN the next one stores the rest and does not change final rows
    own_pipeline.daemon.start_consuming()
    stream.check(own_pipeline)
    after = outcomes(own_pipeline.database)
    for task_id, outcome in before.items():
        if outcome.status in ("SUCCESS", "FAILURE"):
            assert after[task_id] == outcome


@on_postgresql
def test_second_signal_ends_at_once(own_pipeline: Pipeline) -> None:
    stream = Stream(own_pipeline.broker, 100)
    own_pipeline.daemon.start_consuming()
    with own_pipeline.database.connect() as connection:
        # GIVEN a daemon that cannot finish its write
        own_pipeline.database.lock(connection)
        stream.publish()
        own_pipeline.daemon.terminate()
        # WHEN it is asked to stop a second time
        own_pipeline.daemon.wait_while_alive(
            lambda: "stop" in own_pipeline.daemon.output().lower(), "word of stopping", 10
        )
        # THEN it ends immediately
        own_pipeline.daemon.stop(3)
    own_pipeline.daemon.start_consuming()
    stream.check(own_pipeline)


@pytest.mark.parametrize("engine", full_except("mariadb"))
def test_two_daemons_on_one_queue(
    own_pipeline: Pipeline, make_daemon: Callable[..., Daemon]
) -> None:
    # GIVEN two daemons with the same queue and table, and with several lanes where possible
    other = make_daemon(own_pipeline.broker.url, own_pipeline.database.url)
    for daemon in (own_pipeline.daemon, other):
        daemon.start_consuming()
    # WHEN both get messages of the same tasks
    stream = Stream(own_pipeline.broker, 2000, bad_every=100).publish()
    # THEN the rows are those that one daemon would have stored
    wait_until(lambda: own_pipeline.broker.depth(RESULTS) == 0, "the queue to be empty", 60)
    assert other.stop() == 0
    stream.check(own_pipeline)


@pytest.mark.parametrize("engine", full_except("mariadb", SERVERS))
def test_several_lanes(own_pipeline: Pipeline, make_daemon: Callable[..., Daemon]) -> None:
    # GIVEN a daemon with four lanes and batches so small that they always overlap
    options = ["--lanes", "4", "--max-rows", "10", "--prefetch", "40"]
    daemon = make_daemon(own_pipeline.broker.url, own_pipeline.database.url, *options)
    pipeline = replace(own_pipeline, daemon=daemon)
    # WHEN it stores a backlog
    stream = Stream(pipeline.broker, 2000, bad_every=100).publish()
    daemon.start_consuming()
    # THEN the rows are correct
    stream.check(pipeline)


# The broker ---------------------------------------------------------------------------------


@pytest.fixture
def broker_proxy(own_pipeline: Pipeline) -> Iterator[Proxy]:
    with Proxy(own_pipeline.broker.url, 5672) as proxy:
        yield proxy


@pytest.fixture
def behind_broker_proxy(
    own_pipeline: Pipeline, broker_proxy: Proxy, make_daemon: Callable[..., Daemon]
) -> Pipeline:
    """A daemon that connects to the broker through the proxy, with a short heartbeat."""
    daemon = make_daemon(f"{broker_proxy.url}?heartbeat=2", own_pipeline.database.url)
    return replace(own_pipeline, daemon=daemon)


@on_postgresql
def test_broker_connection_cut(behind_broker_proxy: Pipeline, broker_proxy: Proxy) -> None:
    behind_broker_proxy.daemon.start_consuming()
    with Stream(behind_broker_proxy.broker, bad_every=50) as stream:
        # WHEN its connection is closed again and again
        for number in range(5):
            wait_for_more_rows(behind_broker_proxy, stream)
            broker_proxy.cut()
            behind_broker_proxy.daemon.wait_for_consuming(number + 2)
    stream.check(behind_broker_proxy)


@on_postgresql
def test_broker_falls_silent(behind_broker_proxy: Pipeline, broker_proxy: Proxy) -> None:
    behind_broker_proxy.daemon.start_consuming()
    with Stream(behind_broker_proxy.broker) as stream:
        wait_for_more_rows(behind_broker_proxy, stream)
        # WHEN its connection neither transfers data nor ends
        broker_proxy.swallow()
        # THEN it notices the missing heartbeats
        behind_broker_proxy.daemon.wait_for_consuming(2)
    stream.check(behind_broker_proxy)


@on_postgresql
def test_broker_down_at_start(behind_broker_proxy: Pipeline, broker_proxy: Proxy) -> None:
    # GIVEN a broker that refuses connections
    broker_proxy.refuse()
    behind_broker_proxy.daemon.start()
    behind_broker_proxy.daemon.wait_for('"level":"WARN"')
    # WHEN the broker accepts them
    with Stream(behind_broker_proxy.broker, 100) as stream:
        broker_proxy.accept()
        # THEN the daemon starts to consume
        behind_broker_proxy.daemon.wait_for_consuming()
    stream.check(behind_broker_proxy)


@on_postgresql
def test_queue_deleted(own_pipeline: Pipeline) -> None:
    # GIVEN a daemon that is consuming
    own_pipeline.daemon.start_consuming()
    # WHEN its queue is deleted
    own_pipeline.broker.delete(RESULTS)
    # THEN it declares the queue again and continues
    own_pipeline.daemon.wait_for_consuming(2)
    stream = Stream(own_pipeline.broker, 100).publish()
    stream.check(own_pipeline)


@on_postgresql
def test_existing_queue_is_used(own_pipeline: Pipeline) -> None:
    # GIVEN a queue with other arguments, and results in it
    own_pipeline.broker.declare(RESULTS, {"x-max-priority": 3})
    stream = Stream(own_pipeline.broker, 100, bad_every=10).publish()
    # WHEN the daemon starts
    own_pipeline.daemon.start_consuming()
    # THEN it uses the queue as it is, with a warning
    assert '"level":"WARN"' in own_pipeline.daemon.output()
    stream.check(own_pipeline)


@on_postgresql
def test_dead_letter_queue_deleted(own_pipeline: Pipeline) -> None:
    own_pipeline.daemon.start_consuming()
    # WHEN a message must be dead-lettered, but the queue was deleted
    own_pipeline.broker.delete(DEAD)
    stream = Stream(own_pipeline.broker, 100, bad_every=10).publish()
    # THEN the queue is declared again, and no message is lost
    wait_until(lambda: own_pipeline.broker.exists(DEAD), "the queue to be back", 30)
    stream.check(own_pipeline)


@on_postgresql
def test_broker_killed_and_restarted(
    databases: Databases, engine: str, make_daemon: Callable[..., Daemon]
) -> None:
    with private("rabbitmq") as server:
        assert isinstance(server, PrivateRabbitMQ)
        # GIVEN queues that the broker has written to disk. RabbitMQ 3.10 finds no leader for a
        # quorum queue that was declared only seconds before it was killed.
        broker, database = Broker(server.create()), databases.migrated(engine)
        for queue in (RESULTS, DEAD):
            broker.declare(queue)
        server.stop()
        server.start()
        # GIVEN a busy daemon
        pipeline = Pipeline(broker, database, make_daemon(broker.url, database.url))
        pipeline.daemon.start_consuming()
        with Stream(broker, bad_every=100) as stream:
            wait_for_more_rows(pipeline, stream)
            # WHEN the broker is killed and started again
            server.kill()
            server.start()
            pipeline.daemon.wait_for_consuming(2, timeout_seconds=60)
            # WHEN it is stopped properly and started again
            wait_for_more_rows(pipeline, stream)
            server.stop()
            server.start()
            pipeline.daemon.wait_for_consuming(3, timeout_seconds=60)
        stream.check(pipeline)


# The database -------------------------------------------------------------------------------


@pytest.fixture
def database_proxy(own_pipeline: Pipeline) -> Iterator[Proxy]:
    standard_port = {"postgresql": 5432, "mariadb": 3306}[own_pipeline.engine]
    with Proxy(own_pipeline.database.url, standard_port) as proxy:
        yield proxy


@pytest.fixture
def behind_database_proxy(
    own_pipeline: Pipeline, database_proxy: Proxy, make_daemon: Callable[..., Daemon]
) -> Pipeline:
    """A daemon that connects to the database through the proxy; the test does not."""
    daemon = make_daemon(own_pipeline.broker.url, database_proxy.url)
    return replace(own_pipeline, daemon=daemon)


@pytest.mark.parametrize("engine", full_except("postgresql", SERVERS))
def test_database_connection_cut(behind_database_proxy: Pipeline, database_proxy: Proxy) -> None:
    behind_database_proxy.daemon.start_consuming()
    with Stream(behind_database_proxy.broker, bad_every=50) as stream:
        # WHEN its connection is closed again and again, also during a write
        for _ in range(8):
            wait_for_more_rows(behind_database_proxy, stream)
            database_proxy.cut()
    stream.check(behind_database_proxy)


@pytest.mark.parametrize("engine", full_except("mariadb", SERVERS))
def test_database_slow_for_seconds(behind_database_proxy: Pipeline, database_proxy: Proxy) -> None:
    behind_database_proxy.daemon.start_consuming()
    with Stream(behind_database_proxy.broker, 1000) as stream:
        wait_for_more_rows(behind_database_proxy, stream)
        # WHEN the connection transfers no data until the whole stream is published
        database_proxy.stall()
        stream.wait()
        database_proxy.flow()
    stream.check(behind_database_proxy)


@pytest.mark.parametrize("engine", full_except("postgresql", SERVERS))
def test_database_falls_silent(behind_database_proxy: Pipeline, database_proxy: Proxy) -> None:
    pipeline = behind_database_proxy
    pipeline.daemon.start_consuming()
    # GIVEN a row that another client has locked
    task_id = results.new_id()
    pipeline.broker.publish(results.result(task_id, status="RETRY"))
    pipeline.wait_for_rows({task_id: "RETRY"})
    with pipeline.database.connect() as connection:
        lock = f"select * from {TABLE} where task_id = '{task_id}' for update"
        for statement in ("begin", lock):
            connection.cursor().execute(statement)
        # GIVEN a transaction that has inserted rows and waits for it
        pipeline.broker.publish(results.result(task_id))
        stream = Stream(pipeline.broker, 100).publish()
        time.sleep(2)
        # WHEN its connection neither transfers data nor ends, as after a failover
        database_proxy.swallow()
    # THEN the daemon gives up on it within a time limit and connects again, and the server ends
    # that transaction, whose rows nobody else can write before
    wanted = {name: outcome.status for name, outcome in stream.outcomes.items()}
    pipeline.wait_for_rows(wanted | {task_id: "SUCCESS"}, timeout_seconds=110)
    pipeline.stop_and_check_queues()


@pytest.mark.parametrize("engine", full_except("mariadb", SERVERS))
def test_database_refuses_for_a_while(
    behind_database_proxy: Pipeline, database_proxy: Proxy
) -> None:
    behind_database_proxy.daemon.start_consuming()
    with Stream(behind_database_proxy.broker, 1000, bad_every=50) as stream:
        wait_for_more_rows(behind_database_proxy, stream)
        # WHEN the database is unreachable until the whole stream is published
        database_proxy.refuse()
        stream.wait()
        # THEN the daemon keeps running and logs it
        behind_database_proxy.daemon.wait_for('"level":"WARN"')
        database_proxy.accept()
    stream.check(behind_database_proxy)


@on_postgresql
def test_database_stopped_and_killed(
    python: dict[str, Path],
    rabbitmq: RabbitMQ,
    databases: Databases,
    engine: str,
    make_daemon: Callable[..., Daemon],
) -> None:
    with private("postgresql") as server:
        assert isinstance(server, PrivatePostgreSQL)
        broker, database = Broker(rabbitmq.create()), Database(server.create())
        databases.migrate(database)
        pipeline = Pipeline(broker, database, make_daemon(broker.url, database.url))
        # GIVEN a database that is down when the daemon starts
        server.stop()
        with Stream(broker, bad_every=100) as stream:
            pipeline.daemon.start()
            pipeline.daemon.wait_for('"level":"WARN"')
            # WHEN it is started
            server.start()
            # THEN the daemon starts to consume
            pipeline.daemon.wait_for_consuming()
            # WHEN it is killed, and then stopped, during the stream
            for interrupt in (server.kill, server.stop):
                wait_for_more_rows(pipeline, stream)
                interrupt()
                server.start()
        stream.check(pipeline)


@pytest.mark.parametrize("engine", full_except("postgresql"))
def test_table_missing(
    engine: str,
    python: dict[str, Path],
    rabbitmq: RabbitMQ,
    databases: Databases,
    make_daemon: Callable[..., Daemon],
) -> None:
    # GIVEN a database without tables
    broker, database = Broker(rabbitmq.create()), databases.empty(engine)
    project = Project(python["celery-5.7"], database.url, broker.url)
    pipeline = Pipeline(broker, database, make_daemon(broker.url, database.url))
    first, second = Stream(broker, 50, seed=1), Stream(broker, 50, seed=2)
    first.publish()
    pipeline.daemon.start()
    # THEN the daemon says what to do and leaves the messages in the queue
    pipeline.daemon.wait_for(MIGRATE)
    assert broker.depth(RESULTS) == first.published
    # WHEN that is done
    project.migrate()
    # THEN the daemon continues without a restart
    pipeline.daemon.wait_for_consuming()
    pipeline.wait_for_rows({id: outcome.status for id, outcome in first.outcomes.items()})
    # WHEN the table is dropped while the daemon is running
    project.manage("migrate", "django_celery_results", "zero", "--verbosity", "0")
    second.publish()
    wait_until(lambda: pipeline.daemon.output().count(MIGRATE) > 1, "the advice again", 30)
    project.migrate()
    # THEN these messages were kept too
    second.check(pipeline)


@pytest.mark.parametrize("engine", full_except("sqlite"))
def test_table_locked(own_pipeline: Pipeline) -> None:
    own_pipeline.daemon.start_consuming()
    stream = Stream(own_pipeline.broker, 300)
    with own_pipeline.database.connect() as connection:
        # GIVEN a table locked by another client
        own_pipeline.database.lock(connection)
        stream.publish()
        # WHEN that lasts longer than the usual busy timeout of five seconds
        time.sleep(7)
        assert own_pipeline.daemon.is_alive()
    # THEN the rows are written afterwards
    stream.check(own_pipeline)


@on_postgresql
def test_database_ends_sessions(own_pipeline: Pipeline) -> None:
    own_pipeline.daemon.start_consuming()
    with Stream(own_pipeline.broker) as stream:
        # WHEN an administrator terminates the daemon's sessions
        for _ in range(3):
            wait_for_more_rows(own_pipeline, stream)
            own_pipeline.database.query(
                "select pg_terminate_backend(pid) from pg_stat_activity "
                "where datname = current_database() and pid <> pg_backend_pid()"
            )
    stream.check(own_pipeline)


@on_postgresql
def test_a_single_result_is_stored_at_once(own_pipeline: Pipeline) -> None:
    # GIVEN no fault at all
    own_pipeline.daemon.start_consuming()
    # WHEN one result arrives
    task_id = results.new_id()
    own_pipeline.broker.publish(results.result(task_id))
    # THEN it is stored without waiting for a full batch
    own_pipeline.wait_for_rows({task_id: "SUCCESS"}, timeout_seconds=2)
    own_pipeline.stop_and_check_queues()
