"""Recorded messages of real workers in `captures/`, which tests publish in other orders.

A line is one message: the `queue` it came from (`results` or `events`), its content type and
encoding, and its body as `text` or in `base64`. They are the results and events of a worker with
`rpc://` that ran the zoo. Their times were moved to June 2024, and very long messages were removed.
"""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.broker import Message

CAPTURES = Path(__file__).resolve().parent.parent / "captures"


@dataclass(frozen=True)
class Captured:
    """One message. Messages with the same `follows`, the id of a task, do not contain the time at
    which they were published, so they must be published in their original order.
    """

    message: Message
    is_event: bool
    follows: str | None = None


def load(name: str) -> list[Captured]:
    """The messages in the order in which they were published."""
    return [_captured(json.loads(line)) for line in (CAPTURES / f"{name}.jsonl").open()]


def _captured(line: dict[str, Any]) -> Captured:
    text = line.get("text")
    body = base64.b64decode(line["base64"]) if text is None else text.encode()
    is_event = line["queue"] == "events"
    properties = {name: line[name] for name in ("content_type", "content_encoding")}
    return Captured(
        Message(body, properties | {"delivery_mode": 2, "priority": 0}),
        is_event,
        None if is_event else line["task_id"],
    )


def shuffled(captured: Sequence[Captured], seed: int) -> Iterator[Captured]:
    """All messages in another order, most of them twice.

    Messages with the same `follows` keep their order among themselves: they are shuffled with the
    others, and then their places are filled in the original order. A duplicate of such a message
    follows immediately, as when the broker delivers it again.
    """
    chance = random.Random(seed)
    twice = [one for one in captured for _ in range(chance.choice((1, 2, 2)))]
    places = chance.sample(twice, len(twice))
    waiting: dict[str, list[Captured]] = {}
    for one in reversed(twice):
        if one.follows is not None:
            waiting.setdefault(one.follows, []).append(one)
    for one in places:
        yield one if one.follows is None else waiting[one.follows].pop()
