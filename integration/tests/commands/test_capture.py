"""`celeriac capture` records messages in a file, and `celeriac replay` stores them."""

from __future__ import annotations

import base64
import bz2
import gzip
import json
import lzma
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from harness import events, results
from harness.broker import DEAD, EVENT_EXCHANGE, EXCHANGE, RESULTS, UNREADABLE, Broker, Message
from harness.command import celeriac, fail, succeed
from harness.daemon import Daemon, binary
from harness.database import ENGINES, Databases
from harness.pipeline import Pipeline
from harness.processes import wait_until
from harness.project import clean_environment
from harness.services import RabbitMQ


def lines(file: Path) -> list[dict[str, Any]]:
    # The last line may not be complete yet.
    return [json.loads(line) for line in file.read_text().split("\n")[:-1]]


def body(line: dict[str, Any]) -> bytes:
    return base64.b64decode(line["body_b64"])


@contextmanager
def capturing(broker: Broker, file: Path, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """A running capture; Ctrl-C ends it."""
    command = [binary(), "capture", file, "--broker", broker.url, *options]
    process = subprocess.Popen(
        command, env=clean_environment(), stderr=subprocess.PIPE, start_new_session=True
    )
    try:
        wait_until(file.exists, "the capture to begin", 15)
        yield process
        process.send_signal(signal.SIGINT)
        assert process.wait(15) == 0, process.stderr.read().decode()
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("engine", ["sqlite"])
def test_a_capture_does_not_affect_the_daemon(own_pipeline: Pipeline, tmp_path: Path) -> None:
    # GIVEN a daemon, and a capture at the same time
    own_pipeline.daemon.start_consuming()
    broker, file = own_pipeline.broker, tmp_path / "tap.jsonl"
    with broker.channel() as channel:
        channel.exchange_declare(EVENT_EXCHANGE, "topic", durable=True, auto_delete=False)
    sent = [results.row(results.columns(f"task-{number}")) for number in range(50)]
    with capturing(broker, file, "--events"), broker.channel() as channel:
        # WHEN results are published as by the backend, and events
        for message in sent:
            channel.basic_publish(message.to_amqp(), EXCHANGE, RESULTS)
        event = events.message(events.event("task-started", "task-1"))
        channel.basic_publish(event.to_amqp(), EVENT_EXCHANGE, "task.multi")
        wait_until(lambda: len(lines(file)) >= 51, "51 messages in the file", 15)
    # THEN the file has all messages unchanged, and the daemon has stored all
    own_pipeline.wait_for_rows({f"task-{number}": "SUCCESS" for number in range(50)})
    captured = lines(file)
    assert [body(line) for line in captured[:50]] == [message.body for message in sent]
    assert captured[0]["exchange"] == EXCHANGE and captured[0]["routing_key"] == RESULTS
    assert captured[0]["properties"]["correlation_id"] == "task-0"
    assert captured[50]["exchange"] == EVENT_EXCHANGE
    # THEN the private queue is gone
    assert broker.depth(DEAD) == broker.depth(RESULTS) == 0


def test_a_queue_is_drained_into_a_compressed_file_and_replayed(
    rabbitmq: RabbitMQ, databases: Databases, tmp_path: Path
) -> None:
    broker = Broker(rabbitmq.create())
    broker.declare(RESULTS)
    sent = [results.result(f"task-{number}") for number in range(700)]
    broker.publish(*sent, Message(b"{}", results.properties("x"), {"when": 1.5, "deep": {"a": [None]}}))
    for file, count in (("some.jsonl.gz", "300"), ("rest.jsonl.zst", "1000")):
        options = ("--drain", RESULTS, "--count", count, "--broker", broker.url)
        succeed("capture", tmp_path / file, *options)
    assert broker.depth(RESULTS) == 0
    first = [json.loads(line) for line in gzip.open(tmp_path / "some.jsonl.gz")]
    assert [body(line) for line in first] == [message.body for message in sent[:300]]
    assert "cannot be made" in fail(
        "capture", tmp_path / "some.jsonl.gz", "--drain", RESULTS, "--broker", broker.url
    )
    # WHEN both files are replayed, twice, on each database
    for engine in ENGINES:
        database = databases.migrated(engine)
        for _ in range(2):
            files = (tmp_path / "some.jsonl.gz", tmp_path / "rest.jsonl.zst")
            told = fail("replay", *files, "--database", database.url)
            # THEN the message that is not a result is reported, and all others are stored
            assert "rest.jsonl.zst:401: not-a-result" in told, told
            assert "701 messages with 700 rows: 700 rows written" in told
            assert "1 refused, 1 of them not-a-result" in told
        assert database.statuses() == {f"task-{number}": "SUCCESS" for number in range(700)}


def test_the_firehose_captures_messages_published_to_the_queue(
    rabbitmq: RabbitMQ, tmp_path: Path
) -> None:
    # GIVEN a virtual host with the firehose turned on
    url = rabbitmq.create()
    broker, file = Broker(url), tmp_path / "hose.jsonl"
    rabbitmq.control("trace_on", "-p", url.rpartition("/")[2])
    broker.declare(RESULTS)
    sent = Message(b"[1]", results.properties("t"), {"stamp": {"deep": [7]}})
    with capturing(broker, file, "--firehose"):
        # WHEN a message is published directly to the queue and consumed
        broker.publish(sent)
        assert broker.take(RESULTS)
        wait_until(lambda: file.read_text(), "the copy", 15)
    # THEN the file has it unchanged
    [line] = lines(file)
    assert (line["exchange"], line["routing_key"], body(line)) == ("", RESULTS, sent.body)
    assert line["properties"] == sent.properties
    assert line["headers"] == sent.headers | {"x-delivery-count": 0}


def capture_line(message: Message, **more: Any) -> str:
    fields = {"properties": message.properties, "headers": message.headers}
    return json.dumps(
        {**fields, "body_b64": base64.b64encode(message.body).decode(), **more}
    )


@pytest.mark.parametrize(
    "compress", [bytes, gzip.compress, bz2.compress, lzma.compress], ids=lambda f: f.__name__
)
def test_a_file_is_replayed_from_standard_input(
    databases: Databases, compress: Callable[[bytes], bytes]
) -> None:
    database = databases.migrated("sqlite")
    rows = [
        capture_line(results.result("a", status="STARTED", date_done=None)),
        "",
        capture_line(results.result("a")),
        capture_line(events.message(events.event("task-started", "b")), exchange=EVENT_EXCHANGE),
    ]
    data = compress("\n".join(rows).encode())
    succeed("replay", "-", "--database", database.url, stdin=data)
    assert database.statuses() == {"a": "SUCCESS", "b": "STARTED"}


def test_a_dry_run_prints_the_rows_and_writes_nothing(
    databases: Databases, tmp_path: Path
) -> None:
    database, file = databases.migrated("sqlite"), tmp_path / "some.jsonl"
    group = results.row(results.group_columns("g"))
    messages = [results.result("a", result=[1, None]), group, results.raw("x", b"no")]
    file.write_text("\n".join(capture_line(message) for message in messages))
    done = celeriac("replay", file, "--dry-run", "--database", database.url)
    assert done.returncode == 1, "one was refused"
    [task, of_group] = [json.loads(line) for line in done.stdout.splitlines()]
    assert (task["task_id"], task["status"], task["result"]) == ("a", "SUCCESS", "[1, null]")
    assert task["table"] == "django_celery_results_taskresult"
    assert of_group["group_id"] == "g"
    assert b"some.jsonl:3: undecodable" in done.stderr
    assert database.count() == 0


def test_refused_messages_are_reported_and_kept(databases: Databases, tmp_path: Path) -> None:
    database, file, kept = databases.migrated("sqlite"), tmp_path / "in", tmp_path / "kept.jsonl"
    bad = results.raw("x", b"secret")
    rows = [
        capture_line(results.result("a")),
        "secret",
        capture_line(bad),
        '{"body_b64": "*secret*"}',
        '{"exchange": "secret"}',
        "\udcff",
        "x" * 100_000_000,
        capture_line(results.result("b")),
    ]
    file.write_bytes("\n".join(rows).encode(errors="surrogateescape"))
    told = fail("replay", file, "--refused", kept, "--database", database.url)
    assert database.statuses() == {"a": "SUCCESS", "b": "SUCCESS"}
    for number in (2, 3, 4, 5, 6, 7):
        assert f"in:{number}: " in told, told
    assert "secret" not in told
    assert [body(line) for line in lines(kept)] == [b"secret"]
    assert "name a new file" in fail("replay", file, "--refused", kept)


def test_a_file_that_cannot_be_replayed_is_an_error(databases: Databases, tmp_path: Path) -> None:
    file = tmp_path / "some.jsonl"
    file.write_text(capture_line(results.result("a")))
    missing = fail("replay", tmp_path / "nothing", "--database", databases.migrated("sqlite").url)
    assert "nothing cannot be read" in missing
    told = fail("replay", file, "--database", databases.empty("sqlite").url)
    assert "migrate django_celery_results" in told
    cut = tmp_path / "cut.gz"
    cut.write_bytes(gzip.compress(file.read_bytes() * 1000)[:-20])
    database = databases.migrated("sqlite")
    assert "cut.gz cannot be read" in fail("replay", cut, "--database", database.url)


def test_nobody_else_can_read_what_was_captured(
    databases: Databases, rabbitmq: RabbitMQ, tmp_path: Path
) -> None:
    broker, kept = Broker(rabbitmq.create()), tmp_path / "kept"
    broker.declare(RESULTS)
    succeed("capture", tmp_path / "some", "--drain", RESULTS, "--broker", broker.url)
    line = capture_line(results.raw("x", b"no")).encode()
    url = databases.migrated("sqlite").url
    fail("replay", "-", "--refused", kept, "--database", url, stdin=line)
    for file in (tmp_path / "some", kept):
        assert file.stat().st_mode & 0o777 == 0o600
    assert "cannot be made" in fail("capture", tmp_path / "some.xz", "--broker", broker.url)
    assert "cannot be made" in fail("capture", "-", "--broker", broker.url)


def test_a_closed_pipe_ends_a_dry_run_without_an_error(tmp_path: Path) -> None:
    file = tmp_path / "some"
    rows = [capture_line(results.result(f"t{number}", result="x" * 1_000)) for number in range(500)]
    file.write_text("\n".join(rows))
    command = f"{binary()} replay {file} --dry-run --database sqlite:///{tmp_path}/none | head -c 10"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], env=clean_environment(), capture_output=True
    )
    assert (done.returncode, done.stdout[:1], b"panic" in done.stderr) == (0, b"{", False)


def test_a_message_that_cannot_be_read_ends_a_capture_with_the_reason(
    rabbitmq: RabbitMQ, tmp_path: Path
) -> None:
    broker = Broker(rabbitmq.create())
    broker.declare(DEAD)
    for message in (Message(b"[1]"), Message(b"[2]", dict(UNREADABLE)), Message(b"[3]")):
        broker.publish(message, queue=DEAD)
    file = tmp_path / "drained.jsonl"
    told = fail("capture", file, "--drain", DEAD, "--broker", broker.url)
    assert "has properties that cannot be read" in told and "dead purge --unreadable" in told
    # Messages before it can be both in the file and in the queue.
    assert [body(line) for line in lines(file)] in ([b"[1]"], [])

    file = tmp_path / "tap.jsonl"
    with broker.channel() as channel:
        channel.exchange_declare(EXCHANGE, "direct", durable=True, auto_delete=False)
    command = [binary(), "capture", file, "--broker", broker.url]
    process = subprocess.Popen(command, env=clean_environment(), stderr=subprocess.PIPE)
    wait_until(file.exists, "the capture to begin", 15)
    with broker.channel() as channel:
        channel.basic_publish(Message(b"[1]").to_amqp(), EXCHANGE, RESULTS)
        wait_until(lambda: len(lines(file)) == 1, "a message in the file", 15)
        channel.basic_publish(Message(b"[2]", dict(UNREADABLE)).to_amqp(), EXCHANGE, RESULTS)
    _, words = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "start another capture" in words.decode()


@pytest.mark.parametrize("engine", ["sqlite"])
def test_dead_letters_are_captured_under_their_own_exchange(
    rabbitmq: RabbitMQ,
    databases: Databases,
    make_daemon: Callable[..., Daemon],
    tmp_path: Path,
    engine: str,
) -> None:
    """Otherwise a replay would treat events as results."""
    broker, database = Broker(rabbitmq.create()), databases.migrated(engine)
    daemon = make_daemon(broker.url, database.url, "--events", "--max-body-size", "20")
    daemon.start()
    daemon.wait_for_consuming(2)
    event = events.message(events.event("task-started", "late"))
    with broker.channel() as channel:
        channel.basic_publish(event.to_amqp(), EVENT_EXCHANGE, "task.started")
    wait_until(lambda: broker.exists(DEAD) and broker.depth(DEAD) == 1, "a dead letter", 15)
    file = tmp_path / "letters.jsonl"
    succeed("capture", file, "--drain", DEAD, "--broker", broker.url)
    assert lines(file)[0]["exchange"] == EVENT_EXCHANGE
    succeed("replay", file, "--database", database.url)
    assert database.statuses() == {"late": "STARTED"}
