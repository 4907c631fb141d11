"""The metrics of a daemon are correct, and its health shows the state of broker and database."""

from __future__ import annotations

import contextlib
import datetime
import json
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from harness import events, results
from harness.broker import DEAD, EVENTS, RESULTS, Broker
from harness.daemon import Daemon
from harness.database import TABLE, Databases
from harness.matrix import full_except
from harness.pipeline import Pipeline
from harness.probe import Probe
from harness.processes import wait_until
from harness.proxy import Proxy
from harness.services import HOST, RabbitMQ

on_postgresql = pytest.mark.parametrize("engine", ["postgresql"])

GROUPS = "django_celery_results_groupresult"


@pytest.fixture
def probe() -> Probe:
    return Probe()


@pytest.fixture
def watched(own_pipeline: Pipeline, probe: Probe, make_daemon: Callable[..., Daemon]) -> Pipeline:
    """A daemon with a listener, not yet started."""
    options = [*probe.options, "--events"]
    daemon = make_daemon(own_pipeline.broker.url, own_pipeline.database.url, *options)
    return replace(own_pipeline, daemon=daemon)


def deliver_once(broker: Broker, queue: str) -> None:
    """Delivers one message to a consumer that does not acknowledge it."""
    with broker.channel() as channel:
        assert channel.basic_get(queue)


@pytest.mark.parametrize("engine", full_except("postgresql"))
def test_counts_of_a_known_stream(watched: Pipeline, probe: Probe) -> None:
    # GIVEN results, of which some cannot be stored and one was delivered before
    ids = [results.new_id() for _ in range(5)]
    bad = results.new_id()
    watched.broker.declare(RESULTS)
    watched.broker.publish(
        *(results.result(task_id) for task_id in ids),
        results.row(results.group_columns(results.new_id())),
        results.raw(bad, b"{"),
        results.raw(bad, b"{}"),
        results.raw(bad, b"", content_type="application/x-python-serialize"),
    )
    deliver_once(watched.broker, RESULTS)
    # GIVEN a message with three events of a task, one of them not in Celery's format
    watched.broker.declare(EVENTS)
    task_id = results.new_id()
    states = [events.event(f"task-{state}", task_id) for state in ("received", "started", "retried")]
    watched.broker.publish(events.message([*states, {"type": "task-started"}]), queue=EVENTS)
    # WHEN the daemon has handled them
    watched.daemon.start_consuming()
    of_results = {"queue": RESULTS}
    wait_until(
        lambda: probe.value("messages_acknowledged_total", **of_results) == 9
        and probe.value("messages_acknowledged_total", queue=EVENTS) == 1,
        "the messages to be acknowledged",
        30,
    )

    # THEN it has counted them correctly
    samples = probe.samples()

    def value(name: str, **labels: str) -> float | None:
        return samples.get((f"celeriac_{name}", frozenset(labels.items())))

    assert value("messages_received_total", **of_results) == 9
    assert value("messages_redelivered_total", **of_results) == 1
    assert value("rows_read_total", **of_results) == 6
    assert value("rows_merged_total", **of_results) == 0
    assert value("rows_stored_total", **of_results, table=TABLE) == 5
    assert value("rows_stored_total", **of_results, table=GROUPS) == 1
    # SQLite reads a row before it inserts it.
    statements = 2 if watched.database.engine == "sqlite" else 1
    assert value("database_statements_total", **of_results, table=GROUPS) == statements
    dead = {
        labels["reason"]: count
        for (name, pairs), count in samples.items()
        if name == "celeriac_dead_letters_total" and (labels := dict(pairs))["queue"] == RESULTS
    }
    assert len(dead) > 10, "unused reasons are 0"
    assert {reason: count for reason, count in dead.items() if count} == {
        "undecodable": 1,
        "not-a-result": 1,
        "not-accepted": 1,
    }
    batches = value("batch_duration_seconds_count", **of_results)
    assert value("batch_rows_count", **of_results) == batches >= 1
    assert value("batch_rows_sum", **of_results) == 6
    assert value("batch_size_bytes_sum", **of_results) > 1000
    # The states are older than the largest bucket bound.
    assert value("lag_seconds_count", **of_results) == 6
    assert value("lag_seconds_bucket", **of_results, le="21600.0") == 0
    assert value("messages_unacknowledged", **of_results, lane="1") == 0
    assert value("broker_up", **of_results, lane="1") == 1
    assert value("database_up", **of_results, lane="1") == 1
    assert value("broker_sessions_total", **of_results) == 1
    assert value("messages_received_total", queue=EVENTS) == 1
    assert value("rows_read_total", queue=EVENTS) == 3
    assert value("rows_merged_total", queue=EVENTS) == 2
    assert value("rows_stored_total", queue=EVENTS, table=TABLE) == 1
    assert value("events_skipped_total", queue=EVENTS) == 1
    assert samples["process_resident_memory_bytes", frozenset()] > 1e6
    assert samples["process_cpu_seconds_total", frozenset()] > 0

    # WHEN a result comes again, and another with a time in the future
    soon = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(hours=1)
    later = results.result(results.new_id(), date_done=soon.isoformat())
    watched.broker.publish(results.result(ids[0]), later)
    wait_until(
        lambda: probe.value("messages_acknowledged_total", **of_results) == 11, "both results", 30
    )
    # THEN the first is counted as stale, and the second has no lag
    assert probe.value("rows_stale_total", **of_results, table=TABLE) == 1
    assert probe.value("rows_stored_total", **of_results, table=TABLE) == 7
    assert probe.value("lag_seconds_bucket", **of_results, le="0.001") == 1
    # THEN the lengths of the queues follow after a while
    wait_until(lambda: probe.value("queue_messages", queue=DEAD, role="dead") == 3, "the dead letters", 30)
    assert probe.value("queue_messages", **of_results, role="results") == 0
    wait_until(
        lambda: probe.value("queue_consumers", queue=EVENTS, role="events") == 1, "a consumer", 30
    )
    assert watched.daemon.stop() == 0


@on_postgresql
def test_a_row_that_is_refused(watched: Pipeline, probe: Probe) -> None:
    # GIVEN a table that refuses one state, and a message with that state among others
    watched.database.execute(f"alter table {TABLE} add check (status <> 'CURSED')")
    watched.broker.declare(RESULTS)
    states = ["SUCCESS", "CURSED", "SUCCESS", "SUCCESS"]
    watched.broker.publish(*(results.result(results.new_id(), status=state) for state in states))
    # WHEN it is handled
    watched.daemon.start_consuming()
    dead = {"queue": RESULTS, "reason": "unstorable"}
    wait_until(lambda: probe.value("dead_letters_total", **dead) == 1, "the dead letter", 30)
    # THEN the errors are counted, and the database is up
    assert probe.value("database_errors_total", queue=RESULTS, **{"class": "poison"}) >= 2
    assert probe.value("rows_stored_total", queue=RESULTS, table=TABLE) == 3
    assert probe.is_ready()


# Health -------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["postgresql", "mariadb"])
def test_an_idle_daemon_notices_that_its_database_is_gone(
    own_pipeline: Pipeline, probe: Probe, make_daemon: Callable[..., Daemon]
) -> None:
    port = {"postgresql": 5432, "mariadb": 3306}[own_pipeline.engine]
    with Proxy(own_pipeline.database.url, port) as proxy:
        daemon = make_daemon(own_pipeline.broker.url, proxy.url, *probe.options)
        daemon.start_consuming()
        assert probe.is_ready()
        # WHEN the database becomes unreachable and nothing is written
        proxy.refuse()
        wait_until(lambda: not probe.is_ready(), "word of the outage", 30)
        # THEN the answer has the lane, the side and the reason, and the daemon is still live
        [lane] = probe.lanes()
        assert lane["lane"] == "1" and lane["queue"] == RESULTS
        assert lane["broker"] == {"up": True}
        assert "the database does not answer" in lane["database"]["reason"]
        assert probe.value("database_up", queue=RESULTS, lane="1") == 0
        assert probe.is_live()
        # WHEN the database is reachable again
        proxy.accept()
        # THEN the daemon is ready again
        wait_until(probe.is_ready, "the daemon to be ready", 30)
        assert probe.value("database_errors_total", queue=RESULTS, **{"class": "outage"}) >= 1


@on_postgresql
def test_rows_are_held_while_the_database_is_gone(
    own_pipeline: Pipeline, probe: Probe, make_daemon: Callable[..., Daemon]
) -> None:
    with Proxy(own_pipeline.database.url, 5432) as proxy:
        daemon = make_daemon(own_pipeline.broker.url, proxy.url, *probe.options)
        daemon.start_consuming()
        # WHEN results arrive while the database is unreachable
        proxy.refuse()
        own_pipeline.broker.publish(*(results.result(results.new_id()) for _ in range(7)))
        wait_until(lambda: not probe.is_ready(), "word of the outage", 10)
        # THEN the daemon shows how many it holds, and why
        [lane] = probe.lanes()
        assert "its rows are held" in lane["database"]["reason"]
        wait_until(
            lambda: probe.value("messages_unacknowledged", queue=RESULTS, lane="1") == 7,
            "the messages to be held",
            10,
        )
        assert probe.is_live()
        # WHEN the database is reachable again
        proxy.accept()
        # THEN they are written
        wait_until(probe.is_ready, "the daemon to be ready", 30)
        wait_until(
            lambda: probe.value("messages_acknowledged_total", queue=RESULTS) == 7, "the rows", 10
        )
        assert probe.value("messages_unacknowledged", queue=RESULTS, lane="1") == 0


@on_postgresql
def test_broker_lost(
    own_pipeline: Pipeline, probe: Probe, make_daemon: Callable[..., Daemon]
) -> None:
    with Proxy(own_pipeline.broker.url, 5672) as proxy:
        daemon = make_daemon(proxy.url, own_pipeline.database.url, *probe.options)
        daemon.start_consuming()
        depth = {"queue": RESULTS, "role": "results"}
        wait_until(lambda: probe.value("queue_messages", **depth) == 0, "the depth", 30)
        # WHEN the broker becomes unreachable
        proxy.refuse()
        wait_until(lambda: not probe.is_ready(), "word of the loss", 10)
        # THEN the reason is shown without the password
        [lane] = probe.lanes()
        assert lane["database"] == {"up": True}
        assert lane["broker"]["reason"] and "guest:guest" not in json.dumps(lane)
        assert probe.value("broker_up", queue=RESULTS, lane="1") == 0
        assert probe.is_live()
        # THEN unknown values have no sample
        wait_until(lambda: probe.value("queue_messages", **depth) is None, "the sample to go", 30)
        # WHEN the broker is reachable again
        proxy.accept()
        wait_until(probe.is_ready, "the daemon to be ready", 30)
        assert probe.value("broker_sessions_total", queue=RESULTS) == 2


@pytest.mark.parametrize("engine", full_except("mariadb"))
def test_table_missing(
    engine: str,
    rabbitmq: RabbitMQ,
    databases: Databases,
    probe: Probe,
    make_daemon: Callable[..., Daemon],
) -> None:
    # GIVEN a database without tables
    broker, database = Broker(rabbitmq.create()), databases.empty(engine)
    daemon = make_daemon(broker.url, database.url, *probe.options)
    daemon.start()
    daemon.wait_for("manage.py migrate")
    # THEN the daemon is live but not ready, and says what to do
    assert probe.is_live() and not probe.is_ready()
    assert "manage.py migrate" in probe.lanes()[0]["database"]["reason"]
    assert probe.value("database_errors_total", queue=RESULTS, **{"class": "setup"}) >= 1
    # WHEN that is done
    databases.migrate(database)
    # THEN it is ready
    wait_until(probe.is_ready, "the daemon to be ready", 30)


@on_postgresql
def test_a_daemon_that_stops_is_not_ready(watched: Pipeline, probe: Probe) -> None:
    watched.daemon.start_consuming()
    with watched.database.connect() as connection:
        # GIVEN a daemon that cannot finish its write
        watched.database.lock(connection)
        watched.broker.publish(results.result(results.new_id()))
        held = {"queue": RESULTS, "lane": "1"}
        wait_until(lambda: probe.value("messages_unacknowledged", **held) == 1, "the write", 10)
        # WHEN it is asked to stop
        watched.daemon.terminate()
        # THEN it is not ready until it has ended
        wait_until(lambda: not probe.is_ready(), "word of the stop", 5)
        assert json.loads(probe.ask("/ready")[2])["reason"] == "stopping"
        assert probe.is_live()
    # THEN it ends without an error after its write
    wait_until(lambda: not watched.daemon.is_alive(), "the end", 10)
    assert watched.daemon.exit_code == 0


# The listener -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def listening(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Probe]:
    """A daemon without broker and database, which these tests do not need."""
    probe = Probe()
    folder = tmp_path_factory.mktemp("listening")
    daemon = Daemon(
        folder / "log", "amqp://127.0.0.1:1//", f"sqlite:///{folder}/none", *probe.options
    )
    daemon.start()
    daemon.wait_for('"message":"listening"')
    yield probe
    assert daemon.stop() == 0


def test_unknown_paths_and_methods_are_refused(listening: Probe) -> None:
    assert listening.ask("/")[0] == 404
    assert b"/metrics" in listening.ask("/metric")[2]
    status, headers, _ = listening.ask("/ready", "POST")
    assert (status, headers["allow"]) == (405, "GET, HEAD")
    status, headers, body = listening.ask("/metrics", "HEAD")
    assert (status, body) == (200, b"")
    assert int(headers["content-length"]) > 1000
    assert listening.ask("/metrics?name[]=up")[0] == 200


def test_large_requests_are_refused(listening: Probe) -> None:
    for head in (b"X: " + b"x" * 100_000, b"X: y\r\n" * 1_000, b"\0" * 100_000):
        with socket.create_connection((HOST, listening.port), timeout=5) as connection:
            with contextlib.suppress(ConnectionError):
                connection.sendall(b"GET /live HTTP/1.1\r\n" + head + b"\r\n\r\n")
            with contextlib.suppress(ConnectionError):
                assert b" 200 " not in connection.recv(1 << 16)
    assert listening.is_live()


def test_slow_clients_do_not_block_others(listening: Probe) -> None:
    with contextlib.ExitStack() as stack:
        # GIVEN more clients than are served at a time, which never complete their requests
        held = [
            stack.enter_context(socket.create_connection((HOST, listening.port), timeout=15))
            for _ in range(100)
        ]
        for connection in held:
            with contextlib.suppress(ConnectionError):
                connection.sendall(b"GET /live HTTP/1.1\r\nX: ")
        # THEN others are answered at once
        started = time.monotonic()
        assert listening.is_live()
        assert time.monotonic() - started < 2
        # THEN the slow clients are disconnected
        for connection in held:
            with contextlib.suppress(ConnectionError):
                while connection.recv(1 << 16):
                    pass
        assert time.monotonic() - started < 14


def test_a_port_that_is_taken(tmp_path_factory: pytest.TempPathFactory, listening: Probe) -> None:
    # WHEN a second daemon listens on the same port
    log = tmp_path_factory.mktemp("taken") / "log"
    daemon = Daemon(log, "amqp://127.0.0.1:1//", "sqlite:///none", *listening.options)
    daemon.start()
    # THEN it ends at once and says why
    wait_until(lambda: not daemon.is_alive(), "the end", 10)
    assert daemon.exit_code == 1
    assert f"cannot listen on {HOST}:{listening.port}" in daemon.output()


@pytest.mark.parametrize("engine", ["sqlite"])
def test_nothing_listens_unless_it_is_asked_to(own_pipeline: Pipeline, engine: str) -> None:
    own_pipeline.daemon.start_consuming()
    assert "listening" not in own_pipeline.daemon.output()
