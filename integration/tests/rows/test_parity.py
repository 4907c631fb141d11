"""`celeriac://` leaves the rows that django-celery-results would have written, in every column.

The zoo runs twice under the same task ids: on a worker with `django-db`, whose rows are the
truth, and on one with `celeriac://`, whose messages reach the daemons of all three databases.
What differs on purpose is in the README's table, and named here with the cases that show it.
"""

from __future__ import annotations

import datetime
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from harness.broker import Broker
from harness.daemon import REPOSITORY
from harness.database import ENGINES, Databases
from harness.parity import Fan, Parity, Rules, Side, play, winner
from harness.project import Project
from harness.services import RabbitMQ

#: Columns that two runs have in common.
TEXTS = ("status", "content_type", "content_encoding")
ENCODED = ("result", "meta", "task_args", "task_kwargs")
DESCRIPTION = ("task_name", "worker", "periodic_task_name")

#: The columns that an AsyncResult shows under other names.
VIEWED = {
    "state": "status",
    "info": "result",
    "got": "result",
    "children": "meta",
    "name": "task_name",
    "args": "task_args",
    "kwargs": "task_kwargs",
}

README = REPOSITORY / "README.md"


@dataclass(frozen=True)
class Variant:
    celery: str
    serializer: str
    extended: bool

    def options(self) -> tuple[str, ...]:
        """What does not depend on the serializer is done with one of them."""
        return () if self.serializer == "json" else ("--brief",)

    def reason_to_skip(self) -> str | None:
        if self.celery == "celery-5.2" and sys.version_info >= (3, 12):
            return "Celery 5.2 finds no result backend of others on Python 3.12"
        return None

    def __str__(self) -> str:
        return f"{self.celery}-{self.serializer}-{'extended' if self.extended else 'plain'}"


VARIANTS = [
    *(
        Variant("celery-5.7", serializer, extended)
        for serializer in ("json", "msgpack", "yaml", "pickle")
        for extended in (True, False)
    ),
    Variant("celery-5.2", "json", True),
    Variant("celery-5.4", "json", True),
    Variant("celery-5.6", "json", True),
]

# Intended differences ------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """A line of the README's table by its words, and the cases in which it shows.

    `columns` are those that may differ from the truth; they are what the message says all the
    same. Where there are none, the truth may have no row.
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

DIFFERENCES = [
    Difference(
        "a late state never overwrites a final one",
        # Up to 5.6 Celery revokes the members of a body that it has just failed.
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
    # Up to 5.2 Celery tells the failure of what cannot be pickled twice, and the body has either.
    Difference(
        "the body of a chord that never runs",
        ("chord.group_body_never", "chord.header_fails_oddly"),
        ("result",),
    ),
    # Up to 5.6 Celery gives no id for such a body, and the table refuses the row.
    Difference(
        "the body of a chord that never runs",
        ("chord.chain_body_never", "chord.in_chain_fails"),
        ("status", "result", "traceback", "meta"),
    ),
    Difference(
        "the body of a chord that never runs", ("chord.header_unregistered", "chord.nested_fails")
    ),
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


def test_differences_are_in_the_readme() -> None:
    text = README.read_text()
    assert not [one.line for one in DIFFERENCES if one.line not in text]


# The runs ------------------------------------------------------------------------------------


@dataclass
class Compared:
    """One run on both sides, and how to look at it."""

    variant: Variant
    parity: Parity
    rules: Rules

    def rows(self, engine: str) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
        """Case, true row, our row, of every task that has both."""
        true, ours = self.parity.truth["tasks"], self.parity.ours[engine]["tasks"]
        for case, ends in self.parity.cases.items():
            for task_id in ends:
                if task_id in true and task_id in ours:
                    yield case, true[task_id], ours[task_id]


@pytest.fixture(scope="module")
def runs(
    request: pytest.FixtureRequest,
    python: dict[str, Path],
    rabbitmq: RabbitMQ,
    databases: Databases,
    logs: Path,
) -> Iterator[dict[Variant, Future[Compared]]]:
    """The runs of all variants that are tested, two at a time: much of a run is waiting."""
    wanted = {
        item.callspec.params["compared"]: None
        for item in request.session.items
        if "compared" in getattr(item, "fixturenames", ())
    }
    with ThreadPoolExecutor(max_workers=2) as two:
        made = {}
        for variant in wanted:
            if not variant.reason_to_skip():
                sides = make_sides(variant, python[variant.celery], rabbitmq, databases, logs)
                made[variant] = two.submit(compare, variant, *sides)
        yield made
        two.shutdown(cancel_futures=True)


@pytest.fixture(scope="module", params=VARIANTS, ids=str)
def compared(
    request: pytest.FixtureRequest, runs: dict[Variant, Future[Compared]]
) -> Iterator[Compared]:
    if reason := request.param.reason_to_skip():
        pytest.skip(reason)
    yield runs[request.param].result()
    # Ten of them would be much to keep.
    del runs[request.param]


def make_sides(
    variant: Variant,
    interpreter: Path,
    rabbitmq: RabbitMQ,
    databases: Databases,
    logs: Path,
) -> tuple[Side, Side, Fan]:
    """The truth, ours, and what is between our worker and the databases."""
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
    """Enough of the differences to see what they are; results can be a megabyte long."""
    lines = [f"{len(different)} differ"]
    for case, what, true, ours in different[:15]:
        lines += [f"{case}: {what}", f"  true: {str(true)[:900]}", f"  ours: {str(ours)[:900]}"]
    return "\n".join(lines).encode("ascii", "backslashreplace").decode()


def test_there_is_much_to_compare(compared: Compared, engine: str) -> None:
    assert len(compared.parity.cases) >= 120
    assert len(list(compared.rows(engine))) >= 300


def test_the_same_tasks_have_rows(compared: Compared, engine: str) -> None:
    true, ours = compared.parity.truth["tasks"], compared.parity.ours[engine]["tasks"]
    # THEN tasks have rows here where they have some there, and nothing was undeliverable
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
    # THEN the rows of ids that Celery has made up are as many, and of the same tasks
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


@pytest.mark.parametrize("column", [*TEXTS, *DESCRIPTION])
def test_text(compared: Compared, engine: str, column: str) -> None:
    # THEN what was not encoded is the same to the letter
    different = [
        (case, column, true["row"][column], ours["row"][column])
        for case, true, ours in compared.rows(engine)
        if true["row"][column] != ours["row"][column] and not may_differ(case, column)
    ]
    assert not different, shown(different)


@pytest.mark.parametrize("column", ENCODED)
def test_encoded(compared: Compared, engine: str, column: str) -> None:
    # THEN what a serializer wrote is the same to the letter, apart from process ids and the like
    different = [
        (case, column, true["row"][column], ours["row"][column])
        for case, true, ours in compared.rows(engine)
        if not compared.rules.same_column(column, true, ours) and not may_differ(case, column)
    ]
    assert not different, shown(different)


def test_traceback(compared: Compared, engine: str) -> None:
    different = []
    for case, true, ours in compared.rows(engine):
        left, right = (side["row"]["traceback"] for side in (true, ours))
        if left is None and right is not None:
            # THEN it is kept where django-celery-results drops it: without `result_extended`,
            # and of what was stored without a request, which has no name either
            kept = not compared.variant.extended or true["row"]["task_name"] is None
            if not kept and not may_differ(case, "traceback"):
                different.append((case, "only ours", left, right))
        elif compared.rules.traceback(left) != compared.rules.traceback(right):
            # THEN it is the same in all frames that are not the result backend's own
            if not may_differ(case, "traceback"):
                different.append((case, "traceback", left, right))
    assert not different, shown(different)


def test_rows_are_what_the_messages_say(compared: Compared, engine: str) -> None:
    different = []
    for task_id, ours in compared.parity.ours[engine]["tasks"].items():
        # GIVEN the message whose outcome has to win
        message = winner(compared.parity.sent[task_id])
        for column, told in message.items():
            if column in ("version", "date_done"):
                continue
            stored = ours["row"][column]
            # THEN every column is the message's, and what no text column holds is replaced
            if stored != told and stored != storable(told):
                # THEN a description that the winner lacks may be another message's
                others = [other[column] for other in compared.parity.sent[task_id]]
                if not (told is None and stored in others and column in (*DESCRIPTION, *ENCODED)):
                    different.append((task_id, column, told, stored))
    assert not different, shown(different)


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
        told = winner(messages)
        kept = {
            # THEN a task that was seen starting has a start
            "has a start": (started is None) == (true["row"]["date_started"] is None)
            or may_differ(case, "date_started"),
            # THEN a task's times are in order
            # (a start that comes after a final state is the last all the same)
            "in order": created <= (started or created) <= done or case.startswith("late."),
            # THEN they are those of the messages, to the microsecond
            "done": done == datetime.datetime.fromisoformat(told["date_done"]),
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
            # THEN whoever holds an AsyncResult sees no difference
            same = compared.rules.normalised(left) == compared.rules.normalised(right)
            if name in ("date_done", "traceback"):
                # THEN it tells what the row has
                same = same or right == repr(ours["row"][name])
            if not same and not may_differ(case, VIEWED.get(name, name)):
                different.append((case, name, left, right))
    assert not different, shown(different)


def test_groups(compared: Compared, engine: str) -> None:
    true, ours = compared.parity.truth["groups"], compared.parity.ours[engine]["groups"]
    assert len(true) >= 4

    def described(groups: dict[str, Any], named: set[str]) -> list[tuple[object, ...]]:
        # The group of a chord's header has an id of its own in each run.
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

    # THEN saved groups have the same rows, and are restored alike
    named = set(true) & set(ours)
    assert len(named) >= 3
    assert described(true, named) == described(ours, named)
    for group_id in named:
        assert true[group_id]["row"]["result"] == ours[group_id]["row"]["result"]
        [*_, message] = compared.parity.sent[group_id]
        row = ours[group_id]["row"]
        assert row["date_done"] == message["date_done"]
        assert row["date_created"] == compared.parity.sent[group_id][0]["date_done"]


def test_no_chord_is_counted(compared: Compared, engine: str) -> None:
    # THEN chords end without the table that workers would need a database for
    assert compared.parity.ours[engine]["chords"] == []
