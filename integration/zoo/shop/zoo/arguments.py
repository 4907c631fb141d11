"""Arguments: as texts in the headers of the message, or as values in its body."""

import datetime
import decimal

from celery import current_app, shared_task

from .cases import ENDS, MAYBE, ZOO, called, echo, send_body
from .values import Point, nest


class Secret:
    def __repr__(self):
        return "<secret>"


class Unprintable:
    def __repr__(self):
        raise RuntimeError("no repr")


@shared_task
def count_arguments(*args, **kwargs):
    """For arguments that not every result serializer can encode."""
    return [len(args), sorted(kwargs)]


@shared_task
def exactly_two(left, right):
    return [left, right]


@shared_task(typing=False)
def exactly_two_untyped(left, right):
    return [left, right]


def given(*args, **kwargs):
    return called(count_arguments, "SUCCESS", args, kwargs)


def pickled(*args):
    return called(count_arguments, "SUCCESS", args, serializer="pickle")


def echoed(args, kwargs, **options):
    return called(echo, "SUCCESS", args, kwargs, **options)


def publish_protocol_1(task_id):
    """Such a message has no `argsrepr` and `kwargsrepr`."""
    message = current_app.amqp.as_task_v1(
        task_id, count_arguments.name, args=(1, "two"), kwargs={"three": [3]}
    )
    send_body(task_id, message.body, {"periodic_task_name": "protocol 1"})
    return {task_id: "SUCCESS"}


def publish_without_reprs(task_id):
    """A message as a client in another language might send it."""
    headers = {"lang": "js", "task": count_arguments.name, "id": task_id, "root_id": task_id}
    send_body(task_id, [[5, {"deep": ["x"]}], {"k": "v"}, {}], headers)
    return {task_id: "SUCCESS"}


def publish_with_odd_reprs(task_id):
    """`argsrepr` and `kwargsrepr` that are not strings."""
    headers = {
        "lang": "js",
        "task": count_arguments.name,
        "id": task_id,
        "root_id": task_id,
        "argsrepr": ["a", "list"],
        "kwargsrepr": 7,
    }
    send_body(task_id, [[5], {}, {}], headers)
    return {task_id: "SUCCESS"}


def publish_too_few(task_id):
    """`send_task` does not check arguments, because the client does not know the task."""
    current_app.send_task(exactly_two_untyped.name, (1,), task_id=task_id)
    return {task_id: "FAILURE"}


STOCK = {
    "args.positional": echoed((1, "two", None, [3.5]), {}),
    "args.keyword": echoed((), {"a": 1, "b": {"c": "crème"}}),
    "args.types": echoed(
        (datetime.date(2026, 1, 2), decimal.Decimal("1.50"), ZOO), {"raw": b"\xff\x00"}
    ),
    "args.odd_text": echoed(("\0", "\ud800", "🥬", "'\""), {}),
    "args.long": echoed(("x" * 5000, list(range(500))), {}),
    "args.shadowed": echoed((), {}, shadow="another name"),
}

CASES = {
    **STOCK,
    "args.types": called(
        echo, ENDS, (datetime.date(2026, 1, 2), decimal.Decimal("1.50"), ZOO), {"raw": b"\xff\x00"}
    ),
    # msgpack cannot encode a lone surrogate, and then neither backend stores a row.
    "args.odd_text": called(echo, MAYBE, ("\0", "\ud800", "🥬", "'\"")),
    "args.none": given(),
    "args.one": given("alone"),
    "args.numbers": given(0, -1, 10**30, 1e300, 0.1, True, None, float("inf")),
    "args.text_edges": given("", " ", "\n\t\\", "'", '"', "a\u0301", "\u2028", "{}", "%s", "\x7f"),
    "args.long_unicode": given("é" * 1023, "🥬" * 700),
    "args.long_middle": given("start", ["y" * 2000], {"key": "z" * 2000}, "end"),
    "args.deep": given(nest(8)),
    "args.wide": given(*range(1500)),
    "args.wide_dict": given({f"key {n}": n for n in range(400)}),
    "args.keywords_many": given(**{f"option_{n}": "x" * 10 for n in range(150)}),
    "args.keywords_unicode": given(crème="brûlée", 數量=1),
    "args.keywords_odd": given(**{"with space": 1, "1": 2, "": 3, "quote'": 4}),
    "args.bytes": given(b"\xff\x00\xfe", b"plain", b""),
    "args.surrogates": called(
        count_arguments, MAYBE, ("\ud800", ["\udfff"], {"k": "\ud83e\udd6c"})
    ),
    "args.megabyte": given("0123456789abcdef" * 65536),
    "args.pickled_set": pickled({1}, frozenset([2]), (3, (4,))),
    "args.pickled_objects": pickled(Secret(), Point(1, 2), datetime.timedelta(1), 3 + 4j),
    "args.pickled_unprintable": pickled(Unprintable(), [Unprintable()]),
    "args.pickled_exception": pickled(ValueError("an argument"), range(3), ...),
    "args.yaml": called(count_arguments, "SUCCESS", ({"a": [1, "é"]},), serializer="yaml"),
    "args.msgpack": called(
        count_arguments, "SUCCESS", ({"a": [1, b"\xff"]},), serializer="msgpack"
    ),
    "args.compressed": called(count_arguments, "SUCCESS", ("c" * 3000,), compression="gzip"),
    "args.repr_given": called(
        count_arguments,
        "SUCCESS",
        ("secret",),
        {"card": "4242"},
        argsrepr="('***',)",
        kwargsrepr="{'card': '***'}",
    ),
    "args.repr_empty": called(
        count_arguments, "SUCCESS", ("secret",), {"a": 1}, argsrepr="", kwargsrepr=""
    ),
    "args.repr_unicode": called(
        count_arguments, MAYBE, (1,), argsrepr="crème 🥬 \ud800 \0 \\ ' \"", kwargsrepr="\n"
    ),
    "args.repr_long": called(count_arguments, "SUCCESS", (1,), argsrepr="r" * 9000),
    "args.repr_in_headers": called(
        count_arguments, "SUCCESS", (1,), headers={"argsrepr": "from a header"}
    ),
    "args.list": called(count_arguments, "SUCCESS", [1, 2]),
    "args.mistyped": called(exactly_two_untyped, "FAILURE", (1, 2, 3)),
    "args.unknown_keyword": called(exactly_two_untyped, "FAILURE", (1, 2), {"third": 3}),
    "args.too_few": publish_too_few,
    "args.typed": called(exactly_two, "SUCCESS", (1,), {"right": 2}),
    "args.protocol_1": publish_protocol_1,
    "args.foreign": publish_without_reprs,
    "args.foreign_odd": publish_with_odd_reprs,
}
