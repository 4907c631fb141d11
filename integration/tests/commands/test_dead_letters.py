"""`celeriac dead` lists, shows, replays and deletes dead letters."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from harness import results
from harness.broker import DEAD, RESULTS, UNREADABLE, Broker, Message
from harness.command import celeriac, fail, succeed
from harness.daemon import Daemon, binary
from harness.database import Databases
from harness.pipeline import Pipeline
from harness.processes import wait_until
from harness.project import clean_environment
from harness.services import RabbitMQ

PICKLE = {"content_type": "application/x-python-serialize", "content_encoding": "binary"}


@pytest.fixture
def engine() -> str:
    return "sqlite"


@pytest.fixture
def dead(own_pipeline: Pipeline) -> Iterator[Pipeline]:
    """A running daemon and three dead letters: two undecodable, one pickled."""
    own_pipeline.daemon.start_consuming()
    own_pipeline.broker.publish(
        results.raw("first", b"not JSON"),
        results.raw("second", b"\x80\x04}\x94.", **PICKLE),
        Message(b"[1", results.properties("third"), {"stamp": 7, "CC": ["nobody"]}),
    )
    wait_until(lambda: own_pipeline.broker.depth(DEAD) == 3, "three dead letters", 15)
    yield own_pipeline


def listed(pipeline: Pipeline, *options: str) -> list[dict[str, Any]]:
    """Sorted, because listing can change the order in the queue."""
    depth = pipeline.broker.depth(DEAD)
    printed = succeed("dead", "list", "--broker", pipeline.broker.url, "--json", *options)
    wait_until(lambda: pipeline.broker.depth(DEAD) >= depth, "the letters to be back", 15)
    letters = [json.loads(line) for line in printed.splitlines()]
    return sorted(letters, key=lambda letter: letter["correlation_id"])


def test_listing_shows_dead_letters_and_keeps_them(dead: Pipeline) -> None:
    # WHEN they are listed many times, as JSON and as a table
    for _ in range(30):
        letters = listed(dead)
    table = succeed("dead", "list", "--broker", dead.broker.url)
    # THEN each has its message, its reason and its queue
    assert [letter["correlation_id"] for letter in letters] == ["first", "second", "third"]
    assert [letter["reason"] for letter in letters] == [
        "undecodable",
        "not-accepted",
        "undecodable",
    ]
    for letter in letters:
        assert letter["queue"] == letter["routing_key"] == RESULTS
        assert letter["exchange"] == ""
        assert letter["error"] and letter["host"] and letter["version"] and letter["time"]
        assert letter["id"] in table and letter["reason"] in table
    assert letters[0]["size_bytes"] == 8
    # THEN they are still in the queue
    assert dead.broker.depth(DEAD) == 3


def test_a_selection_is_by_reason_id_and_age(dead: Pipeline) -> None:
    ids = [letter["id"] for letter in listed(dead)]
    for options, wanted in [
        (["--reason", "undecodable"], [ids[0], ids[2]]),
        (["--reason", "undecodable", "--reason", "not-accepted"], ids),
        (["--reason", "unstorable"], []),
        (["--id", ids[1], "--id", ids[2]], ids[1:]),
        (["--older-than", "1h"], []),
        (["--newer-than", "1h"], ids),
        (["--limit", "0"], ids),
    ]:
        assert [letter["id"] for letter in listed(dead, *options)] == wanted, options
    assert len(listed(dead, "--limit", "2")) == 2
    unknown = ("--id", ids[1], "--reason", "undecodable")
    assert "has such an id" in fail("dead", "list", *unknown, "--broker", dead.broker.url)


def test_one_letter_is_shown_with_its_properties_and_its_body(dead: Pipeline) -> None:
    third = listed(dead)[2]["id"]
    shown = succeed("dead", "show", third, "--broker", dead.broker.url)
    for part in ("undecodable", "headers.stamp", "properties.content_type", RESULTS):
        assert part in shown
    assert "[1" not in shown.splitlines()[-1]
    body = succeed("dead", "show", third, "--body", "--broker", dead.broker.url)
    assert body == "[1"
    line = json.loads(succeed("dead", "show", third, "--json", "--broker", dead.broker.url))
    assert line["headers"]["x-celeriac-reason"] == "undecodable"
    assert "no dead letter has the id" in fail("dead", "show", "nope", "--broker", dead.broker.url)


def test_replayed_messages_are_stored_if_possible(
    dead: Pipeline, make_daemon: Callable[..., Daemon]
) -> None:
    # GIVEN a dead letter that can be stored if the daemon accepts its serializer
    dead.daemon.stop()
    daemon = make_daemon(
        dead.broker.url, dead.database.url, "--accept-content", "json,application/x-shop"
    )
    good = results.columns("good", content_type="application/x-shop")
    other = make_daemon(dead.broker.url, dead.database.url)
    other.start_consuming()
    dead.broker.publish(results.row(good))
    wait_until(lambda: dead.broker.depth(DEAD) == 4, "the fourth dead letter", 15)
    other.stop()
    daemon.start_consuming()
    # WHEN all are replayed
    done = celeriac("dead", "replay", "--all", "--broker", dead.broker.url)
    assert done.returncode == 0 and b"4 dead letters were sent back" in done.stderr
    # THEN this one is stored, and the others are dead letters again, with their headers
    daemon.wait_while_alive(lambda: dead.database.row("good"), "the row", 15)
    wait_until(lambda: dead.broker.depth(DEAD) == 3, "the others to die again", 15)
    letters = {letter.properties["correlation_id"]: letter for letter in dead.broker.take(DEAD)}
    assert letters["third"].headers["stamp"] == 7
    assert letters["third"].headers["x-celeriac-CC"] == ["nobody"]
    assert letters["third"].body == b"[1"
    assert dead.broker.depth(RESULTS) == 0


def test_a_selection_is_replayed_and_the_rest_is_left(dead: Pipeline) -> None:
    dead.daemon.stop()
    succeed("dead", "replay", "--reason", "not-accepted", "--broker", dead.broker.url)
    assert [letter["correlation_id"] for letter in listed(dead)] == ["first", "third"]
    [back] = dead.broker.take(RESULTS)
    assert back.properties["correlation_id"] == "second"
    assert not [name for name in back.headers if name.startswith("x-celeriac")]


def test_a_replay_that_is_killed_loses_nothing(rabbitmq: RabbitMQ) -> None:
    # GIVEN many dead letters, and a replay of all that is killed while it runs
    broker = Broker(rabbitmq.create())
    broker.declare(RESULTS)
    broker.declare(DEAD)
    wanted = {f"letter-{number}" for number in range(3_000)}
    headers = {"x-celeriac-reason": "undecodable", "x-celeriac-queue": RESULTS}
    broker.publish_many(
        (DEAD, Message(b"{}" * 500, results.properties(name), headers)) for name in sorted(wanted)
    )
    command = [binary(), "dead", "replay", "--all", "--broker", broker.url]
    for kill in (signal.SIGKILL, signal.SIGINT):
        replay = subprocess.Popen(
            command, env=clean_environment(), stderr=subprocess.DEVNULL, start_new_session=True
        )
        before = broker.depth(RESULTS)
        wait_until(lambda: broker.depth(RESULTS) > before, "some to be sent back", 30)
        replay.send_signal(kill)
        replay.wait(30)
    wait_until(lambda: broker.depth(DEAD) > 0, "the letters that were not sent back", 15)

    # THEN later replays send the rest, once the broker has put it back into the queue
    def is_done() -> bool:
        succeed("dead", "replay", "--all", "--broker", broker.url)
        return broker.depth(DEAD) == 0 and broker.depth(RESULTS) >= 3_000

    wait_until(is_done, "all letters to be sent back", 30)
    found = {message.properties["correlation_id"] for message in broker.take(RESULTS)}
    assert found == wanted


def letters(broker: Broker, counts: dict[str, int], **headers: str) -> None:
    """This many dead letters for each reason, in mixed order."""
    broker.declare(DEAD)
    reasons = [reason for reason, count in counts.items() for _ in range(count)]
    named = [(reasons[place * 7 % len(reasons)], f"{place}") for place in range(len(reasons))]
    broker.publish_many(
        (
            DEAD,
            Message(
                b"{}",
                results.properties(name),
                {"x-celeriac-queue": RESULTS, "x-celeriac-reason": reason, **headers},
            ),
        )
        for reason, name in named
    )


@pytest.mark.parametrize("count", [40, 300, 801])
def test_removed_letters_do_not_come_back(rabbitmq: RabbitMQ, count: int) -> None:
    # GIVEN mixed dead letters of two reasons
    broker = Broker(rabbitmq.create())
    broker.declare(RESULTS)
    letters(broker, {"undecodable": count, "not-accepted": 10})
    # WHEN those of one reason are deleted or replayed, THEN exactly the others are left
    for command, target in ((["purge", "--yes"], 0), (["replay"], count)):
        done = celeriac("dead", *command, "--reason", "undecodable", "--broker", broker.url)
        assert done.returncode == 0, done.stderr
        assert f"{count} dead letters were".encode() in done.stderr
        wait_until(lambda: broker.depth(DEAD) >= 10, "the others to be there again", 15)
        assert broker.depth(DEAD) == 10
        assert len(broker.take(RESULTS)) == target
        assert {m.headers["x-celeriac-reason"] for m in broker.take(DEAD)} == {"not-accepted"}
        letters(broker, {"undecodable": count, "not-accepted": 10})


def test_a_missing_queue_does_not_stop_the_other_replays(rabbitmq: RabbitMQ) -> None:
    broker = Broker(rabbitmq.create())
    broker.declare(RESULTS)
    letters(broker, {"undecodable": 3}, **{"x-celeriac-queue": "gone"})
    letters(broker, {"undecodable": 3})
    told = fail("dead", "replay", "--all", "--broker", broker.url)
    assert "3 dead letters were sent back" in told
    assert "3 were left: the broker did not take them for the queue gone" in told
    assert len(broker.take(RESULTS)) == 3
    wait_until(lambda: broker.depth(DEAD) == 3, "the letters that were left", 15)


def test_ctrl_c_at_the_question_deletes_nothing(rabbitmq: RabbitMQ) -> None:
    broker = Broker(rabbitmq.create())
    letters(broker, {"undecodable": 3})
    # GIVEN a terminal where Ctrl-C answers the question, and "yes" follows
    master, terminal = pty.openpty()
    purge = subprocess.Popen(
        [binary(), "dead", "purge", "--all", "--broker", broker.url],
        env=clean_environment(),
        stdin=terminal,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert purge.stderr
    while b"[y/N]" not in purge.stderr.readline():
        pass
    purge.send_signal(signal.SIGINT)
    wait_until(lambda: b"stopping" in purge.stderr.readline(), "the signal to be heard", 15)
    os.write(master, b"y\n")
    assert purge.wait(15) == 1
    assert broker.depth(DEAD) == 3


def test_a_purge_asks_first(dead: Pipeline) -> None:
    url = dead.broker.url
    assert "add --yes" in fail("dead", "purge", "--all", "--broker", url)
    assert "say which dead letters" in fail("dead", "purge", "--yes", "--broker", url)
    assert "exclude each other" in fail(
        "dead", "purge", "--all", "--reason", "x", "--yes", "--broker", url
    )
    assert dead.broker.depth(DEAD) == 3
    succeed("dead", "purge", "--reason", "undecodable", "--yes", "--broker", url)
    assert [letter["reason"] for letter in listed(dead)] == ["not-accepted"]
    succeed("dead", "purge", "--all", "--yes", "--broker", url)
    assert dead.broker.depth(DEAD) == 0


def test_messages_dead_lettered_by_the_broker_can_be_replayed(
    rabbitmq: RabbitMQ, databases: Databases
) -> None:
    # GIVEN a message that RabbitMQ itself has moved to the dead-letter queue
    broker = Broker(rabbitmq.create())
    arguments = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": DEAD}
    broker.declare(DEAD)
    broker.declare("shop.results", arguments | {"x-message-ttl": 1})
    broker.publish(results.result("given-up"), queue="shop.results")
    wait_until(lambda: broker.depth(DEAD) == 1, "the message to be moved", 15)
    # THEN it is listed with RabbitMQ's reason, and can be replayed to its queue
    printed = succeed("dead", "list", "--json", "--broker", broker.url)
    letter = json.loads(printed)
    assert (letter["reason"], letter["queue"]) == ("expired", "shop.results")
    broker.delete("shop.results")
    broker.declare("shop.results", {})
    succeed("dead", "replay", "--id", letter["id"], "--broker", broker.url)
    [back] = broker.take("shop.results")
    assert back.body == results.result("given-up").body
    assert not [name for name in back.headers if name.startswith("x-")]


def test_a_missing_dead_letter_queue_is_an_error(rabbitmq: RabbitMQ) -> None:
    broker = Broker(rabbitmq.create())
    done = celeriac("dead", "list", "--broker", broker.url)
    assert done.returncode == 0 and b"there is no queue celeriac.dead" in done.stderr
    broker.declare(DEAD)
    assert succeed("dead", "list", "--json", "--broker", broker.url) == ""
    nobody = broker.url.replace("guest:guest", "guest:wrong")
    refused = fail("dead", "list", "--broker", nobody)
    assert "cannot connect" in refused and "wrong" not in refused


def test_a_letter_that_cannot_be_read_hides_the_others_until_it_is_deleted(
    dead: Pipeline,
) -> None:
    # GIVEN dead letters of which two cannot be read, which RabbitMQ itself can put there
    broker, at = dead.broker, ("--broker", dead.broker.url)
    for name in ("fourth", "fifth"):
        broker.publish(Message(b"{}", dict(UNREADABLE)), queue=DEAD)
        broker.publish(Message(b"[1", results.properties(name)), queue=DEAD)
    assert broker.depth(DEAD) == 7

    # THEN those before them are listed, and every command ends and says what is in the way
    listed_all = celeriac("dead", "list", *at)
    assert listed_all.returncode == 1
    assert all(name in listed_all.stdout.decode() for name in ("first", "second", "third"))
    assert "3 of 7 dead letters; 4 were not looked at" in listed_all.stderr.decode()
    for command in [
        ("list", "--json"),
        ("show", "nobody"),
        ("replay", "--reason", "undecodable"),
        ("purge", "--reason", "unstorable", "--yes"),
    ]:
        told = fail("dead", *command, *at)
        assert "cannot be read" in told and "dead purge --unreadable" in told, command

    # WHEN they are deleted, after a question
    assert "add --yes" in fail("dead", "purge", "--unreadable", *at)
    wait_until(lambda: broker.depth(DEAD) >= 5, "the letters to be back", 15)
    done = celeriac("dead", "purge", "--unreadable", "--yes", *at)
    assert (done.returncode, done.stderr.decode()) == (0, "2 dead letters were deleted\n")
    assert "0 dead letters" in celeriac(
        "dead", "purge", "--unreadable", "--yes", *at
    ).stderr.decode()

    # THEN all others are still there
    names = [letter["correlation_id"] for letter in listed(dead)]
    assert names == ["fifth", "first", "fourth", "second", "third"]
