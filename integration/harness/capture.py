"""Messages of real workers, kept in `captures/`, to be published again in another order.

A line is one message: the `queue` it was taken from (`results` or `events`), its labels, and its
body as `text` or in `base64`. They are the results and the events of a worker with `rpc://` that
ran a zoo of tasks, with their times moved to June 2024, and without what is very long.
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
    """One message. Those with the same `follows`, which is the id of a task, say nothing of when
    they were published and have to come in that order."""

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

    What follows something else is shuffled with the rest, and then dealt out anew to the places
    that it has come to. When it comes twice, it does so at once, as the broker would deliver it.
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
