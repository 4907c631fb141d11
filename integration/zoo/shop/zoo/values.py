"""Return values that each serializer encodes or refuses."""

import array
import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import pathlib
import uuid
import zoneinfo

from celery import current_app, group, shared_task
from celery.result import EagerResult, ResultSet
from django.utils.functional import SimpleLazyObject
from django.utils.safestring import mark_safe
from django.utils.translation import gettext_lazy

from .cases import ENDS, ZOO, add, child_id_of, echo, simple, spawning


class Size(enum.IntEnum):
    LARGE = 3


class Colour(enum.Enum):
    GREEN = "green"


class Unit(str, enum.Enum):
    GRAM = "g"


Point = collections.namedtuple("Point", "x y")


@dataclasses.dataclass
class Article:
    name: str
    price: decimal.Decimal


class Price:
    """Has a method that returns its JSON form."""

    def __json__(self):
        return {"amount": "9.99", "currency": "EUR"}


class Word(str):
    pass


class Basket(dict):
    pass


class Shelf:
    """Has no `__dict__`."""

    __slots__ = ("name", "place")

    def __init__(self, name, place):
        self.name = name
        self.place = place


class Label(str):
    """Its constructor has a keyword argument."""

    def __new__(cls, text, *, colour="green"):
        label = super().__new__(cls, text)
        label.colour = colour
        return label

    def __getnewargs_ex__(self):
        return (str(self),), {"colour": self.colour}


def nest(depth):
    value = "the bottom"
    for _ in range(depth):
        value = {"in": [value]}
    return value


def endless():
    value = []
    value.append(value)
    return value


def endless_dict():
    value = {"name": "endless"}
    value["self"] = value
    return value


def endless_tuple():
    value = ([],)
    value[0].append(value)
    return value


def twice_the_same_scalars():
    on, price, raw = datetime.date(2026, 1, 2), 10**20, b"\xff\x00"
    at = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.timezone.utc)
    return {"on": [on, on], "at": [at, at], "price": [price, price], "raw": [raw, raw]}


def shared_widely():
    """Contains each part twice in the next one, so that it is large when it is written out."""
    part = ["the innermost"]
    for _ in range(5):
        part = [part, {"again": part}]
    return part


def many_lists():
    """More than 256 lists, the last of them twice."""
    value = [[number] for number in range(300)]
    return [*value, value[-1]]


def twice_the_same():
    part = {"shared": [1, 2]}
    return [part, part]


def unsaved_model():
    from django.contrib.contenttypes.models import ContentType

    return ContentType(app_label="shop", model="article")


STOCK_VALUES = {
    "none": lambda: None,
    "true": lambda: True,
    "false": lambda: False,
    "zero": lambda: 0,
    "negative": lambda: -1234567890123456789,
    "float": lambda: 0.1 + 0.2,
    "float_whole": lambda: 1.0,
    "float_large": lambda: 1e300,
    "float_small": lambda: 1e-7,
    "float_minus_zero": lambda: -0.0,
    "huge_integer": lambda: 10**40,
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

#: Not every serializer can encode these; if it cannot, the task fails.
MORE_VALUES = {
    # Numbers at the edges of 32 and 64 bits
    "int_63_bits": lambda: [2**63 - 1, -(2**63)],
    "int_64_bits": lambda: 2**64 - 1,
    "int_beyond_64_bits": lambda: 2**64,
    "int_below_64_bits": lambda: -(2**63) - 1,
    "ints_small": lambda: [127, 128, 255, 256, 2**16, 2**31, 2**32, -1, -32, -33, -129],
    "float_extremes": lambda: [5e-324, 1.7976931348623157e308, 123456789.123456789, 1e16, 1e22],
    "int_of_many_digits": lambda: [2**2100, -(2**2100)],
    "complex": lambda: 3 + 4j,
    "fraction": lambda: fractions.Fraction(1, 3),
    "decimals": lambda: [decimal.Decimal("NaN"), decimal.Decimal("-0.00"), decimal.Decimal("1E+9")],
    # Text that looks like another type
    "text_newlines": lambda: "one\ntwo\r\nthree\n",
    "text_spaces": lambda: "  padded  ",
    "text_long_line": lambda: "a text of many words that a writer of lines may fold " * 8,
    "text_c1": lambda: "\x85\xa0\u2029\ufeff\ufffe\x7f",
    "text_like_number": lambda: ["1", "1.0", "1e3", "0x10", "0o7", "1_000", "12:30:45"],
    "text_like_yaml": lambda: ["null", "~", "yes", "No", "true", "2026-01-02", "- a", "a: b", "|"],
    "text_like_markup": lambda: ["# no", "!tag", "&a", "*a", "%x", "@x", "`x`", "{}", "[]", "<<"],
    "text_like_float": lambda: [".5", "1.", "+1", "0b1", "08", "1.0e+3", ".nan", "-.inf", "1_0.5"],
    "text_like_time": lambda: ["2026-01-02 03:04:05", "2026-1-2T3:4:5Z", "12:30", "-1:30", "1:2.5"],
    "text_like_mark": lambda: ["---", "...", "--- a", "?", "? a", "-", ":", "a:", "a #b", ",", ">"],
    "text_like_word": lambda: ["y", "on", "OFF", "Null", "=", "'a'", '"a"', "''", "a\tb", "\t"],
    "text_long_word": lambda: "word" * 50,
    "text_long_quoted": lambda: "this: is 'quoted' # and folded " * 6,
    "text_long_unicode": lambda: "crème brûlée 🥬 to be folded and escaped " * 6,
    "text_long_padded": lambda: "  " + "many words   with   wide gaps " * 8 + " ",
    "text_long_lines": lambda: "\n".join(["a line of many words that is folded " * 4] * 3),
    "text_lines": lambda: "one\n\n  two\n three  \n\n",
    "texts_deep": lambda: {"in": [{"a": ["folded within a list " * 6, "one\ntwo\n", "é" * 90]}]},
    "text_large": lambda: ["0123456789abcdef" * 4400, "after what is large"],
    "text_like_base64": lambda: "aGVsbG8=",
    "text_like_result": lambda: '{"status": "FAILURE", "result": null}',
    "text_safe": lambda: mark_safe("<b>safe</b>"),
    "text_lazy": lambda: gettext_lazy("hello"),
    "text_subclass": lambda: Word("word"),
    "text_combining": lambda: "e\u0301 \u202e abc \u200d",
    "text_surrogate_pair": lambda: "\ud83e\udd6c",
    # Collections
    "set": lambda: {1, 2, 3},
    "set_empty": lambda: set(),
    "frozenset": lambda: frozenset([1, 2]),
    "tuples": lambda: [(), (1,), ((1, 2), (3,))],
    "dict_int_keys": lambda: {1: "one", 2: {3: "three"}, -4: None},
    "dict_bool_keys": lambda: {True: 1, False: 0},
    "dict_tuple_keys": lambda: {(1, 2): "pair"},
    "dict_bytes_keys": lambda: {b"key": b"value"},
    "dict_unsorted": lambda: {"z": 1, "a": 2, "é": 3, "B": 4, "": 5},
    "dict_text_keys": lambda: {"1": 1, "true": 2, "null": 3, "a: b": 4, "2026-01-02": 5, "- a": 6},
    "dict_long_keys": lambda: {"k" * 130: 1, "a key of many words " * 8: 2, "é" * 30: 3},
    "dict_date_keys": lambda: {datetime.date(2026, 1, 2): "date", 1.5: "float", b"\xff": "bytes"},
    "dict_subclass": lambda: Basket(leek=1),
    "dict_of_dates": lambda: {"on": datetime.date(2026, 1, 2), "price": decimal.Decimal("1.5")},
    "dict_like_meta": lambda: {"children": [1], "meta": {}, "traceback": "no", "date_done": "now"},
    "ordered_dict": lambda: collections.OrderedDict([("b", 1), ("a", 2)]),
    "default_dict": lambda: collections.defaultdict(list, a=[1]),
    "counter": lambda: collections.Counter("abba"),
    "deque": lambda: collections.deque([1, 2], maxlen=3),
    "range": lambda: range(3),
    "shared": twice_the_same,
    "shared_scalars": twice_the_same_scalars,
    "shared_widely": shared_widely,
    "endless": endless,
    "endless_dict": endless_dict,
    "endless_tuple": endless_tuple,
    "many_lists": many_lists,
    "nothings": lambda: [[], {}, (), "", b"", None, [[]], [{}], {"a": []}, {"a": {}}],
    "array": lambda: array.array("i", [1, 2]),
    # Times
    "timedelta": lambda: datetime.timedelta(days=1, microseconds=5),
    "datetime_zone": lambda: datetime.datetime(
        2026, 7, 2, 3, 4, 5, 6, tzinfo=zoneinfo.ZoneInfo("Europe/Paris")
    ),
    "datetime_offset": lambda: datetime.datetime(
        2026, 7, 2, 3, tzinfo=datetime.timezone(datetime.timedelta(hours=5, minutes=45))
    ),
    "datetime_edges": lambda: [datetime.datetime.min, datetime.datetime.max],
    "time_aware": lambda: datetime.time(3, 4, 5, 6, tzinfo=datetime.timezone.utc),
    "zone": lambda: zoneinfo.ZoneInfo("Europe/Paris"),
    # Bytes
    "bytes_empty": lambda: b"",
    "bytes_all": lambda: bytes(range(256)),
    "bytes_large": lambda: bytes(range(256)) * 256,
    "bytearray": lambda: bytearray(b"mutable"),
    "memoryview": lambda: memoryview(b"seen"),
    # Objects
    "enum_plain": lambda: Colour.GREEN,
    "enum_text": lambda: {Unit.GRAM: Unit.GRAM},
    "dataclass": lambda: Article("leek", decimal.Decimal("0.99")),
    "slots": lambda: Shelf("leeks", 7),
    "made_by_keyword": lambda: Label("leeks", colour="white"),
    "json_method": Price,
    "path": lambda: pathlib.PurePosixPath("/srv/shop"),
    "uuids": lambda: [uuid.UUID(int=0), uuid.UUID(int=2**128 - 1)],
    "type": lambda: ValueError,
    "function": lambda: nest,
    "local_function": lambda: lambda: 1,
    "generator": lambda: (number for number in range(3)),
    "ellipsis": lambda: ...,
    "exception": lambda: ValueError("returned, not raised", 7),
    "exceptions": lambda: [ValueError("one"), KeyError("two")],
    "model": unsaved_model,
    "lazy_object": lambda: SimpleLazyObject(lambda: "late"),
    "task": lambda: echo,
    "signature": lambda: echo.s(1, two=2),
    "signature_chain": lambda: echo.s(1) | add.s(2),
    "envelope_known": lambda: {"__type__": "uuid", "__value__": {"hex": ZOO.hex}},
    "envelope_broken": lambda: {"__type__": "datetime", "__value__": "not a time"},
    "eager_result": lambda: EagerResult(str(ZOO), 42, "SUCCESS"),
    "result_set": lambda: ResultSet([current_app.AsyncResult(str(ZOO))]),
    "async_result": lambda: current_app.AsyncResult(str(ZOO)),
    "group_result": lambda: current_app.GroupResult(
        str(ZOO), [current_app.AsyncResult("a"), current_app.AsyncResult("b")]
    ),
}

VALUES = STOCK_VALUES | MORE_VALUES


@shared_task
def give(name):
    return VALUES[name]()


@shared_task
def give_object():
    return object()


@shared_task
def generate():
    yield 1
    yield 2


@shared_task(bind=True)
def give_async_result(self):
    return echo.apply_async(("child",), task_id=child_id_of(self.request.id, "child"))


@shared_task(bind=True)
def give_group_result(self):
    members = [
        echo.s(name).set(task_id=child_id_of(self.request.id, name)) for name in ("one", "two")
    ]
    return group(members).apply_async(task_id=child_id_of(self.request.id, "group"))


@shared_task(bind=True)
def give_async_results(self):
    """Results within a dictionary; only a result by itself is stored as a tuple."""
    child = echo.apply_async(("child",), task_id=child_id_of(self.request.id, "child"))
    return {"child": child.id, "state": [child]}


STOCK = {
    **{f"give.{name}": simple(give, "SUCCESS", name) for name in STOCK_VALUES},
    "give.unserialisable": simple(give_object, "FAILURE"),
    "children.returned": spawning(give_async_result, ("child",)),
}

CASES = {
    **{f"give.{name}": simple(give, ENDS, name) for name in VALUES},
    "give.unserialisable": simple(give_object, ENDS),
    "give.generated": simple(generate, ENDS),
    "children.returned": spawning(give_async_result, ("child",)),
    "children.returned_group": spawning(give_group_result, ("one", "two")),
    "children.returned_in_dict": spawning(give_async_results, ("child",), ENDS),
}
