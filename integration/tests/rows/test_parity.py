"""`celeriac://` stores the rows that django-celery-results would store, in every column.

The zoo runs twice with the same task ids: on a worker with `django-db`, whose rows are the
reference, and on one with `celeriac://`, whose messages go to the daemons of all three databases.
Intended differences are documented in a table, and listed here with the cases that show them.
"""

from __future__ import annotations

import datetime
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from harness.broker import Broker
from harness.daemon import DOCUMENTS
from harness.database import ENGINES, Databases
from harness.matrix import one_by_one
from harness.parity import Fan, Parity, Rules, Side, play
from harness.project import Project
from harness.services import RabbitMQ

#: Columns that are equal in two runs.
TEXTS = ("status", "content_type", "content_encoding")
ENCODED = ("result", "meta", "task_args", "task_kwargs")
DESCRIPTION = ("task_name", "worker", "periodic_task_name")

#: The columns that have other names in an AsyncResult.
VIEWED = {
    "state": "status",
    "info": "result",
    "got": "result",
    "children": "meta",
    "name": "task_name",
    "args": "task_args",
    "kwargs": "task_kwargs",
}


@dataclass(frozen=True)
class Variant:
    """`cases` is a set of the zoo, if not all of it is run."""

    celery: str
    serializer: str
    extended: bool
    cases: str | None = None

    def options(self) -> tuple[str, ...]:
        return (f"--{self.cases}",) if self.cases else ()

    def reason_to_skip(self) -> str | None:
        if self.celery == "celery-5.2" and sys.version_info >= (3, 12):
            return "Celery 5.2 finds no result backend of others on Python 3.12"
        return None

    def __str__(self) -> str:
        kind = "extended" if self.extended else "plain"
        return "-".join(filter(None, (self.celery, self.serializer, kind, self.cases)))


VARIANTS = [
    # The whole zoo once, and a small part with each other serializer.
    *one_by_one("workers 1", Variant("celery-5.7", "json", True)),
    *one_by_one(
        "workers 2",
        Variant("celery-5.7", "msgpack", False, "few"),
        Variant("celery-5.7", "yaml", True, "few"),
        Variant("celery-5.7", "pickle", True, "few"),
    ),
    *one_by_one(
        "workers 1",
        Variant("celery-5.7", "json", False),
        Variant("celery-5.2", "json", True),
        Variant("celery-5.4", "json", True),
        Variant("celery-5.6", "json", True),
        is_full=True,
    ),
    # Cases that do not depend on the serializer run with JSON only.
    *one_by_one(
        "workers 2",
        *(
            Variant("celery-5.7", serializer, extended, "brief")
            for serializer in ("msgpack", "yaml", "pickle")
            for extended in (True, False)
        ),
        is_full=True,
    ),
]

# Intended differences ------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """A row of the documented table, and the cases that show it.

    `columns` are those that may differ from the reference; they still match the message. If there
    are none, the reference may lack the row.
    """

    line: str
    cases: tuple[str, ...]
    columns: tuple[str, ...] = ()

    def covers(self, case: str) -> bool:
        return any(
            case.startswith(name[:-1]) if name.endswith("*") else case == name
            for name in self.cases
        )


OUTCOME = ("status", "result", "meta", "traceback")

#: The columns that come from the same message.
WHOLE = (*OUTCOME, "content_type", "content_encoding", "date_done")

DIFFERENCES = [
    Difference(
        "a late message never replaces a newer state",
        # Up to 5.6 Celery revokes the members of a body after failing them.
        ("late.*", "chord.group_body_never"),
        (*OUTCOME, *ENCODED, *DESCRIPTION, "date_started"),
    ),
    Difference("U+0000 in a text", ("fail.nul",), OUTCOME),
    Difference("a lone surrogate in a traceback", ("fail.surrogate",), OUTCOME),
    Difference("`request.meta` that is `None`", ("meta.none",), OUTCOME),
    Difference("`request.meta` that is `None`", ("meta.header_none",)),
    Difference(
        "the body of a chord that never runs",
        ("chord.header_expires", "chord.header_out_of_time", "chord.header_dies"),
        ("meta",),
    ),
    # Up to 5.2 Celery stores the failure of what cannot be pickled twice, and the body has either.
    Difference(
        "the body of a chord that never runs",
        ("chord.group_body_never", "chord.header_fails_oddly"),
        ("result",),
    ),
    # Up to 5.6 Celery gives such a body no id, and the table refuses the row.
    Difference(
        "the body of a chord that never runs",
        ("chord.chain_body_never", "chord.in_chain_fails"),
        ("status", "result", "traceback", "meta"),
    ),
    Difference(
        "the body of a chord that never runs", ("chord.header_unregistered", "chord.nested_fails")
    ),
    Difference("`Task.add_to_chord`", ("chord.added_to",), (*OUTCOME, *ENCODED, *DESCRIPTION)),
    Difference("`Task.add_to_chord`", ("chord.added_to",)),
    Difference(
        "a pickled `AsyncResult`",
        (
            "give.async_result",
            "give.group_result",
            "give.result_set",
            "children.returned",
            "children.returned_group",
            "children.returned_in_dict",
        ),
        ("result",),
    ),
]


def may_differ(case: str, column: str) -> bool:
    return any(
        column in difference.columns and difference.covers(case) for difference in DIFFERENCES
    )


def test_differences_are_documented() -> None:
    text = "".join(path.read_text() for path in DOCUMENTS)
    assert not [one.line for one in DIFFERENCES if one.line not in text]


# The runs ------------------------------------------------------------------------------------


@dataclass
class Compared:
    """One run on both sides, and how to compare it."""

    variant: Variant
    parity: Parity
    rules: Rules

    def rows(self, engine: str) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
        """The case and the rows of both sides, for every task that has both."""
        true, ours = self.parity.truth["tasks"], self.parity.ours[engine]["tasks"]
        for case, ends in self.parity.cases.items():
            for task_id in ends:
                if task_id in true and task_id in ours:
                    yield case, true[task_id], ours[task_id]


@pytest.fixture(scope="module", params=VARIANTS, ids=str)
def compared(
    request: pytest.FixtureRequest,
    python: dict[str, Path],
    rabbitmq: RabbitMQ,
    databases: Databases,
    logs: Path,
) -> Compared:
    variant: Variant = request.param
    if reason := variant.reason_to_skip():
        pytest.skip(reason)
    sides = make_sides(variant, python[variant.celery], rabbitmq, databases, logs)
    compared = compare(variant, *sides)
    # Without rows the tests below would find no differences.
    cases, rows = (30, 30) if variant.cases == "few" else (120, 300)
    assert len(compared.parity.cases) >= cases
    for engine in ENGINES:
        assert len(list(compared.rows(engine))) >= rows
    return compared


def make_sides(
    variant: Variant,
    interpreter: Path,
    rabbitmq: RabbitMQ,
    databases: Databases,
    logs: Path,
) -> tuple[Side, Side, Fan]:
    """Creates the reference side, our side, and the broker with our daemons."""
    settings = {
        "RESULT_SERIALIZER": variant.serializer,
        "RESULT_EXTENDED": "on" if variant.extended else "off",
        "RESULT_CHORD_RETRY_INTERVAL": "0.2",
        "ACCEPT_CONTENT": "json,msgpack,yaml,pickle",
    }
    true_database = databases.migrated("postgresql")
    truth = Project(interpreter, true_database.url, rabbitmq.create(), settings)
    broker = Broker(rabbitmq.create())
    fan = Fan(
        broker, {engine: databases.migrated(engine) for engine in ENGINES}, logs / str(variant)
    )
    ours = Project(
        interpreter,
        fan.databases["postgresql"].url,
        broker.url,
        settings | {"RESULT_BACKEND": "celeriac://"},
    )
    return (
        Side(truth, true_database, logs / f"{variant} django-db.log"),
        Side(ours, fan.databases["postgresql"], logs / f"{variant} celeriac.log"),
        fan,
    )


def compare(variant: Variant, truth: Side, ours: Side, fan: Fan) -> Compared:
    parity = play(str(variant), truth, ours, fan, *variant.options())
    named = frozenset(task_id for ends in parity.cases.values() for task_id in ends)
    return Compared(variant, parity, Rules(named))


def shown(different: list[tuple[str, str, Any, Any]]) -> str:
    """The beginning of the differences; results can be a megabyte long."""
    lines = [f"{len(different)} differ"]
    for case, what, true, ours in different[:15]:
        lines += [f"{case}: {what}", f"  true: {str(true)[:900]}", f"  ours: {str(ours)[:900]}"]
    return "\n".join(lines).encode("ascii", "backslashreplace").decode()


def test_the_same_tasks_have_rows(compared: Compared, engine: str) -> None:
    true, ours = compared.parity.truth["tasks"], compared.parity.ours[engine]["tasks"]
    # THEN tasks have rows on both sides or on none, and there are no dead letters
    assert compared.parity.dead == []
    different = [
        (case, f"{task_id} of {wanted}", task_id in true, task_id in ours)
        for case, ends in compared.parity.cases.items()
        for task_id, wanted in ends.items()
        if (task_id in true) != (task_id in ours)
        and not (
            task_id in ours and any(not one.columns and one.covers(case) for one in DIFFERENCES)
        )
    ]
    assert not different, shown(different)
    # THEN both sides have as many rows with ids generated by Celery, of the same tasks
    named = compared.rules.named
    unnamed = [
        Counter(
            (row["row"]["status"], row["row"]["task_name"])
            for task_id, row in rows.items()
            if task_id not in named
        )
        for rows in (true, ours)
    ]
    assert unnamed[0] == unnamed[1]


def test_texts(compared: Compared, engine: str) -> None:
    # THEN plain texts are identical
    different = [
        (case, column, true["row"][column], ours["row"][column])
        for case, true, ours in compared.rows(engine)
        for column in (*TEXTS, *DESCRIPTION)
        if true["row"][column] != ours["row"][column] and not may_differ(case, column)
    ]
    assert not different, shown(different)


def test_encoded(compared: Compared, engine: str) -> None:
    # THEN serialized values are identical, apart from process ids and the like
    different = [
        (case, column, true["row"][column], ours["row"][column])
        for case, true, ours in compared.rows(engine)
        for column in ENCODED
        if not compared.rules.same_column(column, true, ours) and not may_differ(case, column)
    ]
    assert not different, shown(different)


def test_traceback(compared: Compared, engine: str) -> None:
    different = []
    for case, true, ours in compared.rows(engine):
        left, right = (side["row"]["traceback"] for side in (true, ours))
        if left is None and right is not None:
            # THEN it is stored where django-celery-results drops it: without `result_extended`, and
            # if there was no request, and so no name
            kept = not compared.variant.extended or true["row"]["task_name"] is None
            if not kept and not may_differ(case, "traceback"):
                different.append((case, "only ours", left, right))
        elif compared.rules.traceback(left) != compared.rules.traceback(right):
            # THEN all frames but those of the result backend are the same
            if not may_differ(case, "traceback"):
                different.append((case, "traceback", left, right))
    assert not different, shown(different)


def test_a_row_comes_from_one_message(compared: Compared, engine: str) -> None:
    """If a task has several messages, the tests above check which of them counts."""
    different = []
    for task_id, ours in compared.parity.ours[engine]["tasks"].items():
        row, messages = ours["row"], compared.parity.sent[task_id]
        # THEN the outcome and its time come from the same message
        outcomes = [all(is_stored(row, one, column) for column in WHOLE) for one in messages]
        if not any(outcomes):
            different.append((task_id, "outcome", [m["status"] for m in messages], row))
        # THEN the description comes from that message, or from another if it has none
        for column in (*DESCRIPTION, "task_args", "task_kwargs"):
            told = [one[column] for one, is_own in zip(messages, outcomes) if is_own]
            if None in told:
                told += [one[column] for one in messages]
            if not any(row[column] in (one, storable(one)) for one in told):
                different.append((task_id, column, told, row[column]))
    assert not different, shown(different)


def is_stored(row: dict[str, Any], message: dict[str, Any], column: str) -> bool:
    stored, told = row[column], message[column]
    if column == "date_done":
        return datetime.datetime.fromisoformat(stored) == datetime.datetime.fromisoformat(told)
    # Characters that no text column can store are replaced.
    return stored in (told, storable(told))


def storable(text: str | None) -> str | None:
    if text is None:
        return None
    return "".join("\ufffd" if c == "\0" or "\ud800" <= c <= "\udfff" else c for c in text)


def test_dates(compared: Compared, engine: str) -> None:
    different = []
    for case, true, ours in compared.rows(engine):
        created, started, done = (
            datetime.datetime.fromisoformat(ours["row"][column]) if ours["row"][column] else None
            for column in ("date_created", "date_started", "date_done")
        )
        messages = compared.parity.sent[ours["row"]["task_id"]]
        times = {m["status"]: datetime.datetime.fromisoformat(m["date_done"]) for m in messages}
        kept = {
            # THEN a task that was seen starting has a start
            "has a start": (started is None) == (true["row"]["date_started"] is None)
            or may_differ(case, "date_started"),
            # THEN a task's times are in order, except that a start after a final state comes last
            "in order": created <= (started or created) <= done or case.startswith("late."),
            # THEN they are those of the messages, to the microsecond
            "created": created
            == min(datetime.datetime.fromisoformat(m["date_done"]) for m in messages),
            "started": started in (None, times.get("STARTED")) or case.startswith("late."),
        }
        if not all(kept.values()):
            different.append((case, str(kept), (created, started, done), times))
    assert not different, shown(different)


def test_async_result(compared: Compared, engine: str) -> None:
    different = []
    for case, true, ours in compared.rows(engine):
        for name, left in true["view"].items():
            right = ours["view"][name]
            # THEN an AsyncResult returns the same on both sides
            same = compared.rules.normalised(left) == compared.rules.normalised(right)
            if name in ("date_done", "traceback"):
                # THEN it returns what the row contains
                same = same or right == repr(ours["row"][name])
            if not same and not may_differ(case, VIEWED.get(name, name)):
                different.append((case, name, left, right))
    assert not different, shown(different)


def test_groups(compared: Compared, engine: str) -> None:
    if compared.variant.cases == "few":
        pytest.skip("no groups are among these cases")
    true, ours = compared.parity.truth["groups"], compared.parity.ours[engine]["groups"]
    assert len(true) >= 4

    def described(groups: dict[str, Any], named: set[str]) -> list[tuple[object, ...]]:
        # The group of a chord's header gets a new id in each run.
        return sorted(
            (
                group_id if group_id in named else "ID",
                group["row"]["content_type"],
                group["row"]["content_encoding"],
                compared.rules.normalised(group["decoded"]["result"]),
                compared.rules.normalised(group["view"]["members"]),
            )
            for group_id, group in groups.items()
        )

    # THEN saved groups have the same rows, and restore the same results
    named = set(true) & set(ours)
    assert len(named) >= 3
    assert described(true, named) == described(ours, named)
    for group_id in named:
        assert true[group_id]["row"]["result"] == ours[group_id]["row"]["result"]
        [*_, message] = compared.parity.sent[group_id]
        row = ours[group_id]["row"]
        assert row["date_done"] == message["date_done"]
        assert row["date_created"] == compared.parity.sent[group_id][0]["date_done"]
