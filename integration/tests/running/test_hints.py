"""Hints: which tasks have ended, for processes that wait for them (`docs/message-format.md`)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from threading import Event, Thread

import amqp
import pytest

from harness import events, results
from harness.broker import EVENTS, HINTS, RESULTS, Broker, connect, open_channel
from harness.daemon import Daemon
from harness.pipeline import Pipeline
from harness.processes import wait_until
from harness.proxy import Proxy
from harness.services import RabbitMQ

on_postgresql = pytest.mark.parametrize("engine", ["postgresql"])


@dataclass
class Listener:
    """What a waiting process receives."""

    messages: list[amqp.Message] = field(default_factory=list)

    def ended(self) -> list[list[str]]:
        return [pair for message in self.messages for pair in json.loads(message.body)["final"]]


@contextmanager
def listening(broker: Broker, binding: str = f"{RESULTS}.final.#") -> Iterator[Listener]:
    broker.declare_hints()
    listener, is_over = Listener(), Event()
    connection = connect(broker.url)
    channel = open_channel(connection)
    queue, _, _ = channel.queue_declare(exclusive=True)
    channel.queue_bind(queue, HINTS, binding)
    channel.basic_consume(queue, no_ack=True, callback=listener.messages.append)

    def receive() -> None:
        while not is_over.is_set():
            try:
                connection.drain_events(timeout=0.1)
            except TimeoutError:
                continue

    thread = Thread(target=receive, daemon=True)
    thread.start()
    try:
        yield listener
    finally:
        is_over.set()
        thread.join()
        connection.close()


def test_a_hint_follows_each_commit(own_pipeline: Pipeline) -> None:
    own_pipeline.daemon.start_consuming()
    ended = {results.new_id(): state for state in ("SUCCESS", "FAILURE", "REVOKED")}
    runs, group = results.new_id(), results.new_id()
    with listening(own_pipeline.broker) as listener:
        # WHEN results of both formats, a state that is not final and a group are stored
        failure = {"exc_type": "ValueError", "exc_message": ["x"], "exc_module": "builtins"}
        own_pipeline.broker.publish(
            *(
                results.result(task_id, status=state, result=failure)
                for task_id, state in ended.items()
            ),
            results.result(runs, status="STARTED", result={"pid": 1}),
            results.row(results.group_columns(group)),
        )
        own_pipeline.wait_for_rows({**ended, runs: "STARTED"})
        wait_until(lambda: len(listener.ended()) == 3, "the hints", 10)
        row = results.new_id()
        own_pipeline.broker.publish(results.row(results.columns(row)))
        wait_until(lambda: len(listener.ended()) == 4, "the last hint", 10)
    # THEN the tasks that have ended are announced, and nothing else
    assert sorted(listener.ended()) == sorted([*map(list, ended.items()), [row, "SUCCESS"]])
    for message in listener.messages:
        assert json.loads(message.body)["version"] == 1
        assert message.delivery_info["routing_key"] == f"{RESULTS}.final"
        assert message.properties == {"content_type": "application/json"}


@on_postgresql
def test_events_and_repeated_results(
    own_pipeline: Pipeline, make_daemon: Callable[..., Daemon]
) -> None:
    # GIVEN a task whose end is known from an event
    daemon = make_daemon(own_pipeline.broker.url, own_pipeline.database.url, "--events")
    daemon.start_consuming()
    pipeline = replace(own_pipeline, daemon=daemon)
    task_id = results.new_id()
    with listening(pipeline.broker) as listener:
        event = events.event("task-succeeded", task_id, result="42", runtime=0.1)
        pipeline.broker.publish(events.message([event]), queue=EVENTS)
        wait_until(lambda: len(listener.ended()) == 1, "the hint of the event", 10)
        # WHEN its result arrives, THEN readers learn of it: only now can they read the result
        result = results.result(task_id)
        pipeline.broker.publish(result)
        wait_until(lambda: len(listener.ended()) == 2, "the hint of the result", 10)
        # WHEN the same result arrives again, THEN nothing has changed and nothing is announced
        pipeline.broker.publish(result)
        last = results.new_id()
        pipeline.broker.publish(results.result(last))
        wait_until(lambda: [last, "SUCCESS"] in listener.ended(), "the last hint", 10)
    assert len(listener.ended()) == 3


@on_postgresql
def test_projects_do_not_wake_each_other(
    own_pipeline: Pipeline, make_daemon: Callable[..., Daemon]
) -> None:
    broker, database = own_pipeline.broker, own_pipeline.database
    queue = f"{RESULTS}.other"
    other = make_daemon(broker.url, database.url, "--results-queue", queue)
    own_pipeline.daemon.start_consuming()
    other.start_consuming()
    own_id, other_id = results.new_id(), results.new_id()
    with listening(broker) as own, listening(broker, f"{queue}.final.#") as others:
        broker.publish(results.result(other_id), queue=queue)
        wait_until(lambda: others.ended() == [[other_id, "SUCCESS"]], "the other's hint", 10)
        broker.publish(results.result(own_id))
        wait_until(lambda: own.ended() == [[own_id, "SUCCESS"]], "the hint", 10)
    assert others.ended() == [[other_id, "SUCCESS"]]


@on_postgresql
def test_hints_can_be_switched_off(
    own_pipeline: Pipeline, make_daemon: Callable[..., Daemon]
) -> None:
    broker, database = own_pipeline.broker, own_pipeline.database
    daemon = make_daemon(broker.url, database.url, "--hints=false")
    daemon.start_consuming()
    task_id = results.new_id()
    broker.publish(results.result(task_id))
    replace(own_pipeline, daemon=daemon).wait_for_rows({task_id: "SUCCESS"})
    with broker.channel() as channel, pytest.raises(amqp.NotFound):
        channel.exchange_declare(HINTS, "topic", passive=True)


@on_postgresql
def test_hints_return_after_a_lost_connection(
    own_pipeline: Pipeline, rabbitmq: RabbitMQ
) -> None:
    own_pipeline.daemon.start_consuming()
    # WHEN the broker closes the connection for hints
    close_connection(rabbitmq, own_pipeline.broker, "celeriac hints")
    # THEN results are stored, and their hints are published over a new connection
    ids = [results.new_id() for _ in range(2)]
    with listening(own_pipeline.broker) as listener:
        for task_id in ids:
            own_pipeline.broker.publish(results.result(task_id))
            own_pipeline.wait_for_rows({task_id: "SUCCESS"})
        wait_until(lambda: len(listener.ended()) == 2, "the hints", 10)
    own_pipeline.daemon.wait_for("are told again")


def close_connection(rabbitmq: RabbitMQ, broker: Broker, name: str) -> None:
    vhost = broker.url.rpartition("/")[2]

    def find() -> list[str]:
        listed = rabbitmq.control("list_connections", "--quiet", "pid", "vhost", "client_properties")
        return [line.split()[0] for line in listed.splitlines() if vhost in line and name in line]

    wait_until(find, "the connection for hints", 20, 0.5)
    [pid] = find()
    rabbitmq.control("close_connection", pid, "closed by a test")


@on_postgresql
def test_hints_of_many_results_share_messages(own_pipeline: Pipeline) -> None:
    # GIVEN many results in the queue
    broker = own_pipeline.broker
    ids = [results.new_id() for _ in range(5000)]
    broker.declare(RESULTS)
    broker.publish_many((RESULTS, results.result(task_id)) for task_id in ids)
    # WHEN they are stored
    with listening(broker) as listener:
        own_pipeline.daemon.start_consuming()
        wait_until(lambda: len(listener.ended()) == len(ids), "the hints", 60)
    # THEN every one is announced once, by far fewer messages
    assert sorted(task_id for task_id, _ in listener.ended()) == sorted(ids)
    assert len(listener.messages) < 500


@on_postgresql
def test_a_hint_follows_a_redelivery(
    own_pipeline: Pipeline, make_daemon: Callable[..., Daemon]
) -> None:
    # GIVEN a daemon that commits a row and is killed before its acknowledgement and its hint have
    # reached the broker
    broker, database = own_pipeline.broker, own_pipeline.database
    task_id = results.new_id()
    with listening(broker) as listener:
        with Proxy(broker.url, 5672) as proxy:
            cut_off = make_daemon(proxy.url, database.url)
            cut_off.start_consuming()
            with database.connect() as connection:
                database.lock(connection)
                broker.publish(results.result(task_id))
                wait_until(lambda: broker.depth(RESULTS) == 0, "the delivery", 20)
                proxy.swallow()
            replace(own_pipeline, daemon=cut_off).wait_for_rows({task_id: "SUCCESS"})
            cut_off.kill()
        assert not listener.messages
        # WHEN the message is delivered again, THEN readers are told although the row is the same
        own_pipeline.daemon.start_consuming()
        wait_until(lambda: listener.ended() == [[task_id, "SUCCESS"]], "the hint", 20)
