"""One task for every way in which a task can end, and what becomes of its row.

`CASES` names them. Each case publishes under task ids that follow from the name of a run, so
that the same run on two workers gives rows that can be laid side by side.
"""

import collections
import datetime
import decimal
import enum
import time
import uuid

import celery
from celery import chain, current_app, group, shared_task
from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded

ZOO = uuid.UUID("5a2b8f54-3c0f-4c53-9d0e-0f4f6d1f7c11")


def task_id_of(run, name):
    return str(uuid.uuid5(ZOO, f"{run}/{name}"))


def child_id_of(parent_id, name):
    return str(uuid.uuid5(uuid.UUID(parent_id), name))


# Return values ------------------------------------------------------------------------------


class Size(enum.IntEnum):
    LARGE = 3


Point = collections.namedtuple("Point", "x y")


def nest(depth):
    value = "the bottom"
    for _ in range(depth):
        value = {"in": [value]}
    return value


VALUES = {
    "none": lambda: None,
    "true": lambda: True,
    "false": lambda: False,
    "zero": lambda: 0,
    "negative": lambda: -1234567890123456789,
    "huge_integer": lambda: 10**40,
    "float": lambda: 0.1 + 0.2,
    "float_whole": lambda: 1.0,
    "float_large": lambda: 1e300,
    "float_small": lambda: 1e-7,
    "float_minus_zero": lambda: -0.0,
    "nan": lambda: float("nan"),
    "infinities": lambda: [float("inf"), float("-inf")],
    "text": lambda: "hello",
    "text_empty": lambda: "",
    "text_latin": lambda: "crème brûlée",
    "text_beyond_bmp": lambda: "celery 🥬 𝕏",
    "text_lone_surrogate": lambda: "half \ud800 of it",
    "text_nul": lambda: "a\0b",
    "text_quotes": lambda: "\"'\\\n\r\t\x07\u2028",
    "text_escaped_escape": lambda: "\\u0000 \\ud800",
    "list": lambda: [1, "two", None, [3.0]],
    "list_empty": lambda: [],
    "tuple": lambda: (1, 2),
    "dict": lambda: {"b": 1, "a": {"z": [], "status": "FAILURE", "task_id": "no"}},
    "dict_empty": lambda: {},
    "dict_odd_keys": lambda: {1: "one", None: "none", 2.5: "float"},
    "datetime": lambda: datetime.datetime(2026, 1, 2, 3, 4, 5, 678901),
    "datetime_aware": lambda: datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.timezone.utc),
    "date": lambda: datetime.date(2026, 1, 2),
    "time": lambda: datetime.time(3, 4, 5),
    "decimal": lambda: decimal.Decimal("12.3400"),
    "uuid": lambda: ZOO,
    "bytes_text": lambda: b"plain",
    "bytes_binary": lambda: b"\xff\x00\xfe",
    "looks_like_envelope": lambda: {"__type__": "made up", "__value__": 1},
    "enum": lambda: Size.LARGE,
    "namedtuple": lambda: Point(1, 2),
    "deep": lambda: nest(60),
    "wide": lambda: list(range(5000)),
    "megabyte": lambda: "0123456789abcdef" * 65536,
}


@shared_task
def give(name):
    return VALUES[name]()


@shared_task
def give_object():
    return object()


@shared_task
def echo(*args, **kwargs):
    return [args, kwargs]


# Failures -----------------------------------------------------------------------------------


class Shop:
    class Closed(Exception):
        """Its qualified name has a dot in it."""


class Strict(Exception):
    """Cannot be pickled: its constructor wants a keyword."""

    def __init__(self, *, code):
        super().__init__("strict", code)


def raise_chained():
    try:
        {}["missing"]
    except KeyError as error:
        raise RuntimeError("because of the key") from error


def raise_local():
    class Local(Exception):
        pass

    raise Local("nobody can import me")


def raise_(error):
    raise error


FAILURES = {
    "value_error": lambda: raise_(ValueError("bad value")),
    "without_args": lambda: raise_(ValueError()),
    "many_args": lambda: raise_(ValueError("code", 7, None, [1, {"a": 2.5}])),
    "unicode": lambda: raise_(ValueError('crème 🥬 "quoted"\n second line')),
    "surrogate_in_args": lambda: raise_(KeyError("k\ud800")),
    "object_in_args": lambda: raise_(ValueError({1, 2}, 3 + 4j)),
    "nested_class": lambda: raise_(Shop.Closed("until nine")),
    "keyword_only": lambda: raise_(Strict(code=7)),
    "local_class": raise_local,
    "chained": raise_chained,
    "long_message": lambda: raise_(ValueError("long " * 4000)),
    "zero_division": lambda: 1 / 0,
}


@shared_task
def fail(name):
    FAILURES[name]()


# Tasks that tell their story in several messages --------------------------------------------


@shared_task(bind=True, max_retries=3)
def retry_then(self, retries, outcome):
    if self.request.retries < retries:
        raise self.retry(exc=ConnectionError("try again"), countdown=0)
    return outcome


@shared_task(bind=True, max_retries=1)
def retry_for_ever(self, with_error):
    raise self.retry(exc=ConnectionError("never") if with_error else None, countdown=0)


@shared_task(bind=True)
def retry_with_other_args(self, number):
    """The row's arguments are those of the last attempt."""
    if number < 2:
        raise self.retry(args=(number + 1,), countdown=0)
    return number


@shared_task(autoretry_for=(OSError,), retry_kwargs={"max_retries": 1, "countdown": 0})
def autoretry():
    raise OSError(5, "input/output error")


@shared_task(bind=True)
def progress(self, state, meta, end):
    """Tells a state of its own, and then ends as told or leaves it at that."""
    self.update_state(state=state, meta=meta)
    if end == "ignore":
        raise Ignore()
    if end == "fail":
        raise ValueError("after progress")
    return end


@shared_task(bind=True)
def tell_of_another(self, other_id):
    self.update_state(task_id=other_id, state="PROGRESS", meta={"told by": "another"})


@shared_task
def ignore():
    raise Ignore()


@shared_task
def reject():
    raise Reject("rejected", requeue=False)


@shared_task(bind=True)
def replace(self, number):
    raise self.replace(echo.s("replacement", number=number))


@shared_task(bind=True)
def spawn(self, names):
    """Its children stand in the row's `meta`."""
    for name in names:
        child_id = child_id_of(self.request.id, name)
        echo.apply_async((name,), task_id=child_id)
    return len(names)


@shared_task(bind=True)
def spawn_group(self, names):
    members = [echo.s(name).set(task_id=child_id_of(self.request.id, name)) for name in names]
    group(members).apply_async(task_id=child_id_of(self.request.id, "group"))


@shared_task(bind=True)
def give_async_result(self):
    return echo.apply_async(("child",), task_id=child_id_of(self.request.id, "child"))


@shared_task
def add(left, right):
    return left + right


@shared_task
def sleep(seconds):
    time.sleep(seconds)


@shared_task(soft_time_limit=0.5)
def sleep_softly(caught):
    try:
        time.sleep(30)
    except SoftTimeLimitExceeded:
        if not caught:
            raise
        return "cleaned up"


@shared_task(time_limit=1)
def sleep_too_long():
    time.sleep(30)


# Cases --------------------------------------------------------------------------------------

#: The status that no row at all stands for.
NO_ROW = None


def simple(task, status, *args, **options):
    """A case of one task that is published once."""

    def publish(task_id):
        task.apply_async(args, task_id=task_id, **options)
        return {task_id: status}

    return publish


def publish_echo(args, kwargs, **options):
    def publish(task_id):
        echo.apply_async(args, kwargs, task_id=task_id, **options)
        return {task_id: "SUCCESS"}

    return publish


def publish_with_children(task, names, *args):
    def publish(task_id):
        task.apply_async(args, task_id=task_id)
        children = {child_id_of(task_id, name): "SUCCESS" for name in names}
        return {task_id: "SUCCESS", **children}

    return publish


def publish_by_name(task_id):
    current_app.send_task("shop.zoo.echo", ("by name",), task_id=task_id)
    return {task_id: "SUCCESS"}


def publish_unregistered(task_id):
    current_app.send_task("shop.zoo.nowhere", ("lost",), task_id=task_id)
    return {task_id: "FAILURE"}


def publish_stamped(task_id):
    signature = echo.s("stamped")
    signature.stamp(customer="c-1")
    signature.apply_async(task_id=task_id)
    return {task_id: "SUCCESS"}


def publish_chain(task_id):
    first, second = child_id_of(task_id, "first"), child_id_of(task_id, "second")
    chain(
        add.s(1, 2).set(task_id=first),
        add.s(4).set(task_id=second),
        add.s(8).set(task_id=task_id),
    ).apply_async()
    return dict.fromkeys((first, second, task_id), "SUCCESS")


def publish_chain_that_fails(task_id):
    """Celery stores the failure for the elements that never run, too: the last, here."""
    first, second = child_id_of(task_id, "first"), child_id_of(task_id, "second")
    chain(
        add.s(1, 2).set(task_id=first),
        fail.si("value_error").set(task_id=second),
        add.s(8).set(task_id=task_id),
    ).apply_async()
    return {first: "SUCCESS", second: "FAILURE", task_id: "FAILURE"}


def publish_group(task_id):
    ids = [child_id_of(task_id, str(number)) for number in range(3)]
    members = [add.s(number, number).set(task_id=id) for number, id in enumerate(ids)]
    group(members).apply_async(task_id=task_id)
    return dict.fromkeys(ids, "SUCCESS")


def publish_chain_of_groups(task_id):
    """Groups that end a chain, which need no chord."""
    first = child_id_of(task_id, "first")
    ids = [child_id_of(task_id, str(number)) for number in range(2)]
    members = group([add.s(number).set(task_id=id) for number, id in enumerate(ids)])
    members.set(task_id=child_id_of(task_id, "group"))
    chain(add.s(1, 1).set(task_id=first), members).apply_async()
    return dict.fromkeys((first, *ids), "SUCCESS")


def publish_link(task_id):
    linked, errback = child_id_of(task_id, "linked"), child_id_of(task_id, "errback")
    add.apply_async(
        (1, 1),
        task_id=task_id,
        link=echo.s("linked").set(task_id=linked),
        link_error=echo.si("never").set(task_id=errback),
    )
    return {task_id: "SUCCESS", linked: "SUCCESS", errback: NO_ROW}


def publish_other(task_id):
    other = child_id_of(task_id, "other")
    tell_of_another.apply_async((other,), task_id=task_id)
    return {task_id: "SUCCESS", other: "PROGRESS"}


def publish_ignored(task_id):
    echo.apply_async(("nobody asks",), task_id=task_id, ignore_result=True)
    return {task_id: NO_ROW}


def publish_expired(task_id):
    """The worker holds the message until its countdown is over, which is past its expiry."""
    echo.apply_async(("late",), task_id=task_id, countdown=2, expires=1)
    return {task_id: "REVOKED"}


def publish_revoked(task_id):
    """The worker knows before the task arrives."""
    current_app.control.revoke(task_id, reply=True)
    echo.apply_async(("revoked",), task_id=task_id)
    return {task_id: "REVOKED"}


def publish_terminated(task_id):
    sleep.apply_async((60,), task_id=task_id)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        active = current_app.control.inspect().active() or {}
        if any(task["id"] == task_id for tasks in active.values() for task in tasks):
            current_app.control.revoke(task_id, terminate=True, signal="SIGKILL")
            return {task_id: "REVOKED"}
    raise TimeoutError("no worker took the task that was to be terminated")


REJECTED = "FAILURE" if celery.VERSION >= (5, 7) else "STARTED"

CASES = {
    "terminated": publish_terminated,
    "expired": publish_expired,
    "time_limit.hard": simple(sleep_too_long, "FAILURE"),
    "time_limit.soft": simple(sleep_softly, "FAILURE", False),
    "time_limit.soft_caught": simple(sleep_softly, "SUCCESS", True),
    **{f"give.{name}": simple(give, "SUCCESS", name) for name in VALUES},
    "give.unserialisable": simple(give_object, "FAILURE"),
    **{f"fail.{name}": simple(fail, "FAILURE", name) for name in FAILURES},
    "args.positional": publish_echo((1, "two", None, [3.5]), {}),
    "args.keyword": publish_echo((), {"a": 1, "b": {"c": "crème"}}),
    "args.types": publish_echo(
        (datetime.date(2026, 1, 2), decimal.Decimal("1.50"), ZOO), {"raw": b"\xff\x00"}
    ),
    "args.odd_text": publish_echo(("\0", "\ud800", "🥬", "'\""), {}),
    "args.long": publish_echo(("x" * 5000, list(range(500))), {}),
    "args.shadowed": publish_echo((), {}, shadow="another name"),
    "retry.success": simple(retry_then, "SUCCESS", 2, "at last"),
    "retry.exhausted": simple(retry_for_ever, "FAILURE", True),
    "retry.exhausted_without_error": simple(retry_for_ever, "FAILURE", False),
    "retry.other_args": simple(retry_with_other_args, "SUCCESS", 0),
    "retry.automatic": simple(autoretry, "FAILURE"),
    "state.progress": simple(progress, "SUCCESS", "PROGRESS", {"done": 1}, "finished"),
    "state.progress_fail": simple(progress, "FAILURE", "PROGRESS", [1, 2], "fail"),
    "state.left": simple(progress, "WAITING FOR STOCK", "WAITING FOR STOCK", {"n": 1}, "ignore"),
    "state.left_null": simple(progress, "PAUSED", "PAUSED", None, "ignore"),
    "state.other": publish_other,
    "ignored": simple(ignore, "STARTED"),
    "ignored.result": publish_ignored,
    "rejected": simple(reject, REJECTED),
    "replaced": simple(replace, "SUCCESS", 7),
    "revoked": publish_revoked,
    "by_name": publish_by_name,
    "unregistered": publish_unregistered,
    "stamped": publish_stamped,
    "chain": publish_chain,
    "chain.fails": publish_chain_that_fails,
    "chain.of_groups": publish_chain_of_groups,
    "group": publish_group,
    "link": publish_link,
    "children": publish_with_children(spawn, ("left", "right"), ("left", "right")),
    "children.group": publish_with_children(spawn_group, ("one", "two"), ("one", "two")),
    "children.returned": publish_with_children(give_async_result, ("child",)),
}


def publish_all(run):
    """Publishes every case; tells which task ids each has and how they are to end."""
    return {name: publish(task_id_of(run, name)) for name, publish in CASES.items()}
