"""Bad messages do not affect the messages around them or the daemon.

A bad message ends in one of two ways. Either nothing of it can be stored, and it becomes a dead
letter, unchanged and with the reason in its headers; or its result can be stored, and the row has
what the case says.
"""

from __future__ import annotations

import base64
import bz2
import gzip
import json
import lzma
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from harness import results
from harness.broker import DEAD, RESULTS, Message
from harness.daemon import Daemon
from harness.pipeline import Pipeline
from harness.processes import wait_until

Row = dict[str, Any]

#: The reason for well-formed messages that are not the result of a task.
NO_RESULT = "not-a-result"


@dataclass(frozen=True)
class Case:
    """`message` is created for a task id. Without `stored` it must become a dead letter for one of
    `reasons`; without `reasons` it must be stored; with both, either is allowed.
    """

    message: Callable[[str], Message]
    reasons: tuple[str, ...] = ()
    stored: Callable[[Row], bool] | None = None


def encoded(task_id: str, **fields: Any) -> bytes:
    return json.dumps(results.body(task_id, **fields)).encode()


def dead(data: bytes | Callable[[str], bytes], *reasons: str, **properties: Any) -> Case:
    """Must become a dead letter, as `undecodable` if no other reason is given."""

    def message(task_id: str) -> Message:
        return results.raw(task_id, data(task_id) if callable(data) else data, **properties)

    return Case(message, reasons or ("undecodable",))


def with_fields(*reasons: str, stored: Callable[[Row], bool] | None = None, **fields: Any) -> Case:
    return Case(lambda task_id: results.result(task_id, **fields), reasons, stored)


def truncated(share: float) -> Case:
    def cut(task_id: str) -> bytes:
        whole = encoded(task_id)
        return whole[: int(len(whole) * share)]

    return dead(cut)


def without(key: str) -> Callable[[str], bytes]:
    def lacking(task_id: str) -> bytes:
        body = results.body(task_id)
        del body[key]
        return json.dumps(body).encode()

    return lacking


def with_member(text: str) -> Callable[[str], bytes]:
    """A body with one more member, written as text because no encoder would produce it."""
    return lambda task_id: encoded(task_id)[:-1] + f", {text}}}".encode()


def with_result(text: str) -> Callable[[str], bytes]:
    """A body whose result is exactly this text."""
    return lambda task_id: encoded(task_id, result="HERE").replace(b'"HERE"', text.encode())


def kept(row: Row) -> bool:
    """The ordinary result is stored, whatever happens to a detail."""
    return row["status"] == "SUCCESS" and row["result"] == "42"


def traceback_with(*parts: str) -> Callable[[Row], bool]:
    return lambda row: kept(row) and all(part in row["traceback"] for part in parts)


MALFORMED = {
    "empty": dead(b""),
    "space": dead(b"  \n"),
    "not JSON": dead(b"hello"),
    "NUL bytes": dead(b"\0" * 100),
    "not UTF-8": dead(lambda id: encoded(id).replace(b"two", b"t\xffo")),
    "UTF-16": dead(lambda id: encoded(id).decode().encode("utf-16")),
    "a list": dead(b"[1, 2]"),
    "a string": dead(b'"text"'),
    "null": dead(b"null"),
    "a number": dead(b"42"),
    "empty object": dead(b"{}", NO_RESULT),
    "two objects": dead(lambda id: encoded(id) * 2),
    "garbage after it": dead(lambda id: encoded(id) + b" x"),
    "trailing comma": dead(lambda id: encoded(id)[:-1] + b",}"),
    "single quotes": dead(lambda id: encoded(id).replace(b'"', b"'")),
    "a bare word": dead(with_result("undefined")),
    "a bad escape": dead(with_result(r'"\x41"')),
    "a bad number": dead(with_result("01")),
    "a raw control character": dead(with_result('"a\x01b"')),
    **{f"truncated at {share} %": truncated(share / 100) for share in range(3, 100, 6)},
    "deep and open": dead(with_result("[" * 200_000), "too-deep"),
}

def with_header(
    reason: str | None, data: Callable[[str], bytes], value: object, name: str = "compression"
) -> Case:
    """A body with a header for its encoding; without a reason it must be stored."""

    def message(task_id: str) -> Message:
        return Message(data(task_id), results.properties(task_id), {name: value})

    return Case(message, (reason,)) if reason else Case(message, stored=kept)


#: Thirty megabytes of zeros.
NOTHING = b" " * 30_000_000
BOMBS = {
    "application/x-gzip": zlib.compress(NOTHING),
    "application/x-bz2": bz2.compress(NOTHING),
    "application/x-lzma": lzma.compress(NOTHING),
}

MISLABELLED = {
    "unknown content type": dead(encoded, "unsupported-content-type", content_type="text/plain"),
    "empty content type": dead(encoded, "unsupported-content-type", content_type=""),
    "pickle": dead(
        b"\x80\x04}\x94.",
        "not-accepted",
        content_type="application/x-python-serialize",
        content_encoding="binary",
    ),
    "unknown encoding": dead(
        encoded, "undecodable", "unsupported-content-encoding", content_encoding="klingon"
    ),
    "unknown compression": with_header("unsupported-compression", encoded, "application/x-rar"),
    "compression a number": with_header("unsupported-compression", encoded, 7),
    "compression empty": with_header(None, encoded, ""),
    "compression that is not": with_header("undecodable", encoded, "application/x-gzip"),
    "gzip's own format": with_header(
        "undecodable", lambda id: gzip.compress(encoded(id)), "application/x-gzip"
    ),
    "compressed by gzip": with_header(
        None, lambda id: zlib.compress(encoded(id)), "application/x-gzip"
    ),
    "compressed by bzip2": with_header(
        None, lambda id: bz2.compress(encoded(id)), "application/x-bz2"
    ),
    "compressed by lzma": with_header(
        None, lambda id: lzma.compress(encoded(id)), "application/x-lzma"
    ),
    "compressed and cut": with_header(
        "undecodable", lambda id: zlib.compress(encoded(id))[:-10], "application/x-gzip"
    ),
    "compressed twice": with_header(
        "undecodable", lambda id: bz2.compress(zlib.compress(encoded(id))), "application/x-bz2"
    ),
    "compressed and not told": dead(lambda id: gzip.compress(encoded(id))),
    **{
        f"bomb of {method}": with_header("too-compressed", lambda _id, bomb=bomb: bomb, method)
        for method, bomb in BOMBS.items()
    },
    "base64": with_header(
        None, lambda id: base64.b64encode(encoded(id)), "base64", "body_encoding"
    ),
    "not base64": with_header("undecodable", encoded, "base64", "body_encoding"),
    "unknown body_encoding": with_header(
        "unsupported-compression", encoded, "rot13", "body_encoding"
    ),
}

TASK_IDS = {
    "no task_id": dead(without("task_id"), NO_RESULT),
    "task_id null": dead(
        lambda id: encoded(id).replace(json.dumps(id).encode(), b"null"), NO_RESULT
    ),
    "task_id a number": dead(
        lambda id: encoded(id).replace(json.dumps(id).encode(), b"7"), NO_RESULT
    ),
    "task_id a list": dead(
        lambda id: encoded(id).replace(json.dumps(id).encode(), b"[]"), NO_RESULT
    ),
    "task_id empty": dead(lambda _id: encoded(""), NO_RESULT),
    # SQLite has no limit, and only PostgreSQL refuses NUL.
    "task_id too long": Case(
        lambda id: results.raw(id, encoded(id + "i" * 220)), ("unstorable",), kept
    ),
    "task_id far too long": Case(
        lambda id: results.raw(id, encoded(id + "i" * 100_000)), ("unstorable",), kept
    ),
    "task_id with NUL": Case(
        lambda id: results.raw(id, encoded(f"a\0{id}")), (NO_RESULT, "unstorable"), kept
    ),
    "task_id half a character": dead(lambda id: encoded(f"{id}\ud800"), NO_RESULT),
}

FIELDS = {
    "no status": dead(without("status"), NO_RESULT),
    "no result": Case(
        lambda id: results.raw(id, without("result")(id)), (), lambda row: row["result"] == "null"
    ),
    "no traceback": Case(lambda id: results.raw(id, without("traceback")(id)), (), kept),
    "no children": Case(lambda id: results.raw(id, without("children")(id)), (), kept),
    "status null": with_fields(NO_RESULT, status=None),
    "status a number": with_fields(NO_RESULT, status=1),
    "status empty": with_fields(NO_RESULT, status=""),
    "status half a character": with_fields(NO_RESULT, status="SUC\ud800"),
    "status of 80 characters": with_fields(
        stored=lambda row: row["status"][:50] == "S" * 50 and row["result"] == "42",
        status="S" * 80,
    ),
    "status with NUL": with_fields(
        "unstorable",
        stored=lambda row: row["status"].startswith("SUC") and row["result"] == "42",
        status="SUC\0CESS",
    ),
    "traceback a number": with_fields(NO_RESULT, stored=kept, traceback=5),
    "traceback an object": with_fields(NO_RESULT, stored=kept, traceback={"a": 1}),
    "traceback with NUL": with_fields(
        stored=traceback_with("before", "after"), traceback="before\0after"
    ),
    "traceback with half a character": with_fields(
        stored=traceback_with("before", "after"), traceback="before\ud800after"
    ),
    "traceback with both halves": with_fields(
        stored=traceback_with("before🥬after"), traceback="before🥬after"
    ),
    "traceback of a megabyte": with_fields(
        stored=lambda row: kept(row) and len(row["traceback"]) == 1_000_000,
        traceback="t" * 1_000_000,
    ),
    "children a text": with_fields(NO_RESULT, stored=kept, children="none"),
    "children an object": with_fields(NO_RESULT, stored=kept, children={"a": 1}),
    "date_done a word": with_fields(NO_RESULT, stored=kept, date_done="yesterday"),
    "date_done a number": with_fields(NO_RESULT, stored=kept, date_done=1767225600),
    "date_done impossible": with_fields(
        NO_RESULT, stored=kept, date_done="2026-02-30T00:00:00+00:00"
    ),
    "date_done in the year 0": with_fields(
        NO_RESULT, "unstorable", stored=kept, date_done="0000-01-01T00:00:00+00:00"
    ),
    "date_done far away": with_fields(
        NO_RESULT, "unstorable", stored=kept, date_done="+99999-01-01T00:00:00+00:00"
    ),
    "date_done without a zone": with_fields(
        NO_RESULT, stored=kept, date_done="2026-03-04T05:06:07"
    ),
    "name a number": with_fields(NO_RESULT, stored=kept, name=7),
    "name of 300 characters": with_fields(stored=kept, name="n" * 300),
    "name with NUL": with_fields(stored=kept, name="na\0me"),
    "name half a character": with_fields(stored=kept, name="na\ud800me"),
    "worker a list": with_fields(NO_RESULT, stored=kept, worker=["w"]),
    "worker of 300 characters": with_fields(
        stored=lambda row: kept(row) and row["worker"][:100] == "w" * 100, worker="w" * 300
    ),
    "worker of 300 wide characters": with_fields(stored=kept, worker="🥬" * 300),
    "worker with NUL": with_fields(stored=kept, worker="work\0er"),
    "args a text": with_fields(NO_RESULT, stored=kept, args="(1, 2)"),
    "kwargs a list": with_fields(NO_RESULT, stored=kept, kwargs=[1]),
    "args with odd text": with_fields(stored=kept, args=["\0", "\ud800"]),
    "retries a text": with_fields(NO_RESULT, stored=kept, retries="many"),
    "unknown members": with_fields(stored=kept, customer={"id": 7}, stamped_headers=["customer"]),
    # Python's decoder, and so every Celery client, uses the last of them.
    "result twice": Case(
        lambda id: results.raw(id, with_member('"result": 43')(id)),
        (NO_RESULT,),
        lambda row: row["result"] == "43",
    ),
    "status twice": Case(
        lambda id: results.raw(id, with_member('"status": "FAILURE"')(id)),
        (NO_RESULT,),
        lambda row: row["status"] == "FAILURE",
    ),
    "result of 100 levels": Case(
        lambda id: results.raw(id, with_result("[" * 100 + "]" * 100)(id)),
        (),
        lambda row: row["result"] == "[" * 100 + "]" * 100,
    ),
    "result of 50000 levels": Case(
        lambda id: results.raw(id, with_result("[" * 50_000 + "]" * 50_000)(id)),
        ("too-deep",),
    ),
    "result with its own spaces": Case(
        lambda id: results.raw(id, with_result('{ "a" :1 ,"b":[ ] }')(id)),
        (),
        lambda row: row["result"] == '{ "a" :1 ,"b":[ ] }',
    ),
    "result an escaped key": Case(
        lambda id: results.raw(id, encoded(id).replace(b'"result"', b'"\\u0072esult"')), (), kept
    ),
    "space around it": Case(lambda id: results.raw(id, b" \r\n" + encoded(id) + b"\t\n"), (), kept),
}

def columns(*reasons: str, stored: Callable[[Row], bool] | None = None, **fields: Any) -> Case:
    """A message of `celeriac://` with some columns replaced."""
    return Case(lambda id: results.row(results.columns(id, **fields)), reasons, stored)


def columns_without(name: str) -> Case:
    def lacking(task_id: str) -> Message:
        body = results.columns(task_id)
        del body[name]
        properties = results.row(results.columns(task_id)).properties
        return Message(json.dumps(body).encode(), properties)

    return Case(lacking, (NO_RESULT,))


def group(*reasons: str, **fields: Any) -> Case:
    return Case(lambda id: results.row(results.group_columns(id, **fields)), reasons)


#: The tests of the decoder, `src/decode/columns.rs`, check each member.
COLUMNS = {
    "row: as it should be": columns(stored=kept),
    "row: more members than columns": columns(stored=kept, queue="celery", retries=[1]),
    **{f"row: no {name}": columns_without(name) for name in ("version", "result", "worker")},
    "row: result a number": columns(NO_RESULT, result=42),
    "row: worker a list": columns(NO_RESULT, worker=["w"]),
    "row: content_type null": columns(NO_RESULT, content_type=None),
    "row: version 2": columns("unsupported-version", version=2),
    "row: version a text": columns(NO_RESULT, version="1"),
    "row: status empty": columns(NO_RESULT, status=""),
    "row: date_done without an offset": columns(NO_RESULT, date_done="2026-03-04T05:06:07"),
    "row: date_done in the year 0": columns(NO_RESULT, date_done="0000-01-01T00:00:00+00:00"),
    "row: content_type unknown": columns("unsupported-content-type", content_type="c" * 500),
    "row: content_type pickle": columns(
        "not-accepted", content_type="application/x-python-serialize"
    ),
    "row: worker of 300 characters": columns(
        stored=lambda row: kept(row) and row["worker"][:100] == "w" * 100, worker="w" * 300
    ),
    "row: traceback with NUL": columns(stored=traceback_with("a", "b"), traceback="a\0b"),
    "row: traceback with half a character": columns(
        stored=traceback_with("a", "b"), traceback="a\ud800b"
    ),
    "row: result of four megabytes": columns(
        stored=lambda row: len(row["result"]) == 4_000_000, result="r" * 4_000_000
    ),
    "row: a list": Case(
        lambda id: Message(b"[]", results.row(results.columns(id)).properties), ("undecodable",)
    ),
    "row: compressed": Case(
        lambda id: Message(
            zlib.compress(json.dumps(results.columns(id)).encode()),
            results.row(results.columns(id)).properties,
            {"compression": "application/x-gzip"},
        ),
        stored=kept,
    ),
    "group: of another version": group("unsupported-version", version=2),
    "group: result a list": group(NO_RESULT, result=[]),
    "group: group_id empty": group(NO_RESULT, group_id=""),
    "group: date_done null": group(NO_RESULT, date_done=None),
}

CASES = MALFORMED | MISLABELLED | TASK_IDS | FIELDS | COLUMNS


def task_id_in(message: Message, otherwise: str) -> str:
    """The id of the row for this message."""
    try:
        task_id = json.loads(message.body)["task_id"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return otherwise
    return task_id if isinstance(task_id, str) else otherwise


def check(case: Case, bad: Message, row: Row | None, letters: list[Message]) -> None:
    """Checks that the message is either stored or a dead letter, as the case says."""
    assert (row is None) == bool(letters)
    if row is not None:
        assert case.stored is not None, f"stored, not dead-lettered: {row}"
        assert case.stored(row), f"stored differently: {row}"
        return
    # THEN the dead letter is the unchanged message with its reason
    [letter] = letters
    assert letter.headers.get("x-celeriac-reason") in case.reasons, letter.headers
    assert letter.headers.get("x-celeriac-error"), letter.headers
    assert letter.body == bad.body
    for key, value in bad.properties.items():
        assert letter.properties.get(key) == value, key
    for key, value in bad.headers.items():
        assert letter.headers.get(key) == value, key


@pytest.mark.xdist_group("bad messages")
@pytest.mark.parametrize("engine", ["postgresql"])
@pytest.mark.parametrize("name", CASES)
def test_bad_message(pipeline: Pipeline, name: str) -> None:
    """One at a time, to see which message stops the daemon."""
    case = CASES[name]
    before, task_id, after = (results.new_id() for _ in range(3))
    bad = case.message(task_id)
    task_id = task_id_in(bad, task_id)
    # GIVEN an empty dead-letter queue
    assert pipeline.broker.depth(DEAD) == 0
    # WHEN the bad message is between two good ones
    pipeline.broker.publish(results.result(before), bad, results.result(after))
    # THEN the good ones are stored
    pipeline.wait_for_rows({before: "SUCCESS", after: "SUCCESS"}, timeout_seconds=10)

    # THEN the bad one is either stored or a dead letter, and that only once
    def is_settled() -> bool:
        return pipeline.database.row(task_id) is not None or pipeline.broker.depth(DEAD) > 0

    wait_until(is_settled, "the bad message to end somewhere", 15)
    check(case, bad, pipeline.database.row(task_id), pipeline.broker.take(DEAD))
    assert pipeline.broker.depth(RESULTS) == 0


def test_all_bad_messages_at_once(own_pipeline: Pipeline) -> None:
    """What can be stored depends on the database, and a refused message must not affect its batch.
    """
    sent = {name: case.message(results.new_id()) for name, case in CASES.items()}
    by_id = {message.properties["correlation_id"]: name for name, message in sent.items()}
    assert len(by_id) == len(CASES)
    good = {results.new_id(): "SUCCESS" for _ in sent}
    messages = [
        message
        for task_id, bad in zip(good, sent.values(), strict=True)
        for message in (results.result(task_id), bad)
    ]
    # WHEN all are in the queue, each between good ones, and a daemon starts
    own_pipeline.broker.declare(RESULTS)
    own_pipeline.broker.publish(*messages)
    own_pipeline.daemon.start_consuming()
    # THEN the good ones are stored
    own_pipeline.wait_for_rows(good, timeout_seconds=60)
    own_pipeline.wait_until_handled()
    assert own_pipeline.daemon.stop() == 0
    assert own_pipeline.broker.depth(RESULTS) == 0
    # THEN each bad one is stored or a dead letter
    letters: dict[str, list[Message]] = {name: [] for name in CASES}
    for letter in own_pipeline.broker.take(DEAD):
        letters[by_id[letter.properties["correlation_id"]]].append(letter)
    wrong = {}
    for name, bad in sent.items():
        row = own_pipeline.database.row(task_id_in(bad, bad.properties["correlation_id"]))
        try:
            check(CASES[name], bad, row, letters[name])
        except AssertionError as error:
            wrong[name] = str(error)[:500]
    assert not wrong


#: Settings with low limits, each with a message that exceeds it.
LIMITS = {
    "--max-body-size=2000": (results.result("large", result="x" * 2_000), "too-large"),
    "--max-decompressed-size=2000": (
        Message(
            zlib.compress(encoded("large", result="x" * 2_000)),
            results.properties("large"),
            {"compression": "application/x-gzip"},
        ),
        "too-large",
    ),
    "--max-depth=20": (results.raw("deep", with_result("[" * 21 + "]" * 21)("deep")), "too-deep"),
    "--accept-content=msgpack,yaml": (results.result("json"), "not-accepted"),
}


@pytest.mark.parametrize("engine", ["sqlite"])
@pytest.mark.parametrize("option", LIMITS)
def test_a_limit_is_a_setting(
    own_pipeline: Pipeline, make_daemon: Callable[..., Daemon], option: str
) -> None:
    message, reason = LIMITS[option]
    broker, database = own_pipeline.broker, own_pipeline.database
    # GIVEN a daemon with a lower limit, THEN the message is refused, and the text names the limit
    strict = make_daemon(broker.url, database.url, option)
    strict.start_consuming()
    broker.publish(message)
    wait_until(lambda: broker.depth(DEAD) == 1, "the dead letter", 15)
    assert strict.stop() == 0
    [letter] = broker.take(DEAD)
    assert letter.headers["x-celeriac-reason"] == reason
    assert option.split("=")[0].removeprefix("--") in letter.headers["x-celeriac-error"]
    # GIVEN the defaults, THEN it is stored
    own_pipeline.daemon.start_consuming()
    broker.publish(message)
    own_pipeline.wait_for_rows({message.properties["correlation_id"]: "SUCCESS"})


def peak_memory_bytes(daemon: Daemon) -> int:
    """The peak memory of the process."""
    status = Path(f"/proc/{daemon.pid}/status").read_text()
    return int(next(line for line in status.splitlines() if "VmHWM" in line).split()[1]) * 1024


@pytest.mark.parametrize("engine", ["sqlite"])
def test_limits_bound_the_memory_for_bombs(
    own_pipeline: Pipeline, make_daemon: Callable[..., Daemon]
) -> None:
    # GIVEN bombs of sixty megabytes each, which would be stored if the limits were higher
    broker, size = own_pipeline.broker, 60_000_000
    body = encoded("bomb", result="x" * size)
    bombs = [
        Message(compressed, results.properties("bomb"), {"compression": name})
        for name, compressed in (
            ("application/x-gzip", zlib.compress(body, 9)),
            ("application/x-bz2", bz2.compress(body)),
            ("application/x-lzma", lzma.compress(body)),
        )
    ]
    # WHEN a daemon with a limit of four megabytes receives ten of each
    daemon = make_daemon(
        broker.url,
        own_pipeline.database.url,
        "--max-decompressed-size=4MB",
        "--max-compression-ratio=1000000",
    )
    daemon.start_consuming()
    broker.publish(*bombs * 10)
    wait_until(lambda: broker.depth(DEAD) == 30, "30 dead letters", 60)
    # THEN it had at most one in memory at a time, twice where a buffer grows
    assert peak_memory_bytes(daemon) < size
    assert daemon.stop() == 0
    letters = broker.take(DEAD)
    assert {letter.headers["x-celeriac-reason"] for letter in letters} == {"too-large"}
