#!/usr/bin/env python3
"""Makes `pickle_bodies.json.xz`: bodies of results as Python pickles them, and the columns that
django-celery-results would have for the same values.

    python3 tests/data/pickle_bodies.py
"""

from __future__ import annotations

import base64
import collections
import copyreg
import datetime
import decimal
import enum
import functools
import json
import lzma
import pickle
import uuid
from pathlib import Path
from typing import Any

#: The body that contains itself.
WHOLE = "the whole body"

Point = collections.namedtuple("Point", "x y")


class Color(enum.Enum):
    RED = 1


class Plain:
    pass


class Number(int):
    """It is made with a keyword argument."""

    def __new__(cls, value: int = 0, *, unit: str = "") -> Number:
        number = super().__new__(cls, value)
        number.unit = unit
        return number

    def __getnewargs_ex__(self) -> tuple[tuple[int], dict[str, str]]:
        return (int(self),), {"unit": self.unit}


class Called:
    """Its state is set by a call, whose result is thrown away."""


class Holder:
    """It is made of a list, which can hold it."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __reduce__(self) -> Any:
        return Holder, (self.items,)


def set_state(called: Called, state: dict[str, Any]) -> None:
    called.__dict__.update(state)


copyreg.pickle(Called, lambda it: (Called, (), it.__dict__, None, None, set_state))


def called(**state: Any) -> Called:
    it = Called()
    it.__dict__.update(state)
    return it


def plain(**state: Any) -> Plain:
    it = Plain()
    it.__dict__.update(state)
    return it


def failed(**state: Any) -> Exception:
    error = ValueError("bad", 7)
    error.__dict__.update(state)
    error.__cause__ = KeyError("cause")
    return error


def values() -> dict[str, Any]:
    """Results that share nothing with what is around them, unless Python does it of itself."""
    tail: list[Any] = []
    tail.append(tail)
    loop: dict[str, Any] = {}
    loop["self"] = loop
    triple: tuple[Any, ...] = ([],)
    triple[0].append(triple)
    four: tuple[Any, ...] = (1, [], 2, 3)
    four[1].append(four)
    holder = Holder([])
    holder.items.append(holder)
    shared = ["shared"]
    return {
        "none": None,
        "true": True,
        "integers": [0, -1, 255, 256, 65535, 65536, 2**31, -(2**31), 2**63, 10**40, -(1 << 2100)],
        "floats": [0.0, -0.0, 1.5, float("inf"), float("nan")],
        "text": "crème brûlée 🥬\n\\ '\"",
        "surrogate": ["\ud83d", "half \ud83d of it"],
        "bytes": [b"", b"\xff\0", b"x" * 256, bytearray(b"ab")],
        "long text": "x" * 256,
        "containers": [(), [], {}, set(), frozenset(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)],
        "sets": [{1}, {1, 2}, frozenset({1, 2})],
        "times": [
            datetime.datetime(2026, 1, 2, 3, 4, 5, 6, datetime.timezone.utc),
            datetime.date(2026, 1, 2),
            datetime.timedelta(1, 2, 3),
        ],
        "others": [decimal.Decimal("1.50"), uuid.UUID(int=7), complex(1, 2), range(3), Color.RED],
        "classes": [Plain, len, type(None), Ellipsis, functools.partial(plain, a=1)],
        "objects": [Point(1, 2), plain(a=1, b=[2]), Number(7, unit="m"), plain()],
        "ordered": collections.OrderedDict(a=1, b=2),
        "default": collections.defaultdict(list, a=[1]),
        "deque": collections.deque([1, 2], 3),
        "exception": ValueError("bad", 7),
        "exception with state": failed(code=7),
        "called": [called(a=1), called(b=shared), shared, called(c="result"), "result"],
        "shared": [shared, shared, {"a": shared}],
        "many": list(range(2001)),
        "many in the memo": [f"{number}" for number in range(300)] * 2,
        "many keys": {f"key {number}": number for number in range(1001)},
        "recursive list": tail,
        "recursive dict": loop,
        "recursive tuple": triple,
        "recursive tuple of four": [four, four],
        "recursive holder": holder,
        "names": ["result", "status", "children", "SUCCESS", "task_id", "w@h"],
    }


def large() -> dict[str, Any]:
    """What does not fit into one frame."""
    return {
        "large text": ["x" * 65535, "x" * 65536, 1, "é" * 40000],
        "large bytes": ["a", b"x" * 65536, b"y" * 65535, bytearray(70000), "b"],
        "only large": "x" * 65536,
        "many texts": [("x" * 10, [number], {"a": (1, 2, 3, number)}) for number in range(3000)],
        "many pairs": {f"key {number}": {number} for number in range(5000)},
        "large number": [1 << 800000, 7],
    }


def related() -> dict[str, dict[str, Any]]:
    """Members that share something."""
    item = {"id": 7}
    payload = {"items": [item, "x"], "item": item}
    error = failed()
    error.payload = payload
    loop: list[Any] = [1]
    loop.append({"loop": loop})
    triple: tuple[Any, ...] = ([],)
    triple[0].append(triple)
    four: tuple[Any, ...] = (1, [], 2, 3)
    four[1].append(four)
    state: dict[Any, Any] = {}
    key = (called(state=state),)
    state[key] = key[0]
    return {
        "the same": {"result": payload, "args": payload, "kwargs": payload, "children": payload},
        "a part": {"result": payload, "args": [item], "kwargs": {"item": item}},
        "a part, and later all": {"result": (1, payload), "args": (item, payload, [item])},
        "a key": {"result": {"status": 1, "args": 2}, "args": ["children", "kwargs"]},
        "a class": {"result": plain(), "args": [plain(), Plain], "kwargs": {"x": Point(1, 2)}},
        "a state": {"result": called(x=item), "args": [item, called(x=item)], "kwargs": item},
        "a state that is recursive": {"result": key, "args": state, "kwargs": key[0]},
        "an exception": {"result": error, "args": [payload], "kwargs": {"error": error}},
        "a loop from inside": {"result": loop, "args": loop[1], "kwargs": {"x": loop}},
        "a recursive list": {"result": triple, "args": triple[0]},
        "a recursive tuple": {"result": triple[0], "args": triple, "kwargs": (triple,)},
        "another": {"result": four[1], "args": four},
    }


def column(value: Any, protocol: int) -> str:
    return base64.b64encode(pickle.dumps(value, protocol)).decode()


def case(name: str, protocol: int, members: dict[str, Any]) -> dict[str, Any]:
    body: dict[str, Any] = {
        "status": "SUCCESS",
        "result": None,
        "traceback": None,
        "children": [],
        "date_done": "2026-11-23T06:51:16.000321+00:00",
        "name": "shop.pay",
        "args": (),
        "kwargs": {},
        "worker": "w@h",
        "retries": 0,
        "queue": "celery",
        "task_id": "t",
    } | members
    if name == WHOLE:
        body["result"] = body
        body["children"] = [body]
    columns = {member: column(body[member], protocol) for member in ("result", "args", "kwargs")}
    columns["meta"] = column({"children": body["children"]}, protocol)
    return {
        "name": f"{name}, protocol {protocol}",
        "body": column(body, protocol),
        "columns": columns,
    }


def cases() -> list[dict[str, Any]]:
    made = []
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        for name, value in values().items():
            made.append(case(name, protocol, {"result": value, "children": [value]}))
        for name, members in related().items():
            made.append(case(name, protocol, members))
        made.append(case(WHOLE, protocol, {}))
    for name, value in large().items():
        made.append(case(name, 5, {"result": value}))
    return made


if __name__ == "__main__":
    text = json.dumps(cases())
    path = Path(__file__).with_suffix(".json.xz")
    path.write_bytes(lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME))
