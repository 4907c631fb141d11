"""Clients of a virtual host: they publish, count and take messages."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

import amqp

RESULTS = "celeriac.results"
DEAD = "celeriac.dead"
EVENTS = "celeriac.events"

#: The exchanges that workers with `celeriac://` publish results and events to.
EXCHANGE = "celeriac"
EVENT_EXCHANGE = "celeryev"

#: The exchange that the daemon publishes hints to.
HINTS = "celeriac.stored"

#: The arguments with which the daemon declares its queues.
QUEUES = {
    RESULTS: {
        "x-queue-type": "quorum",
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": DEAD,
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
        "x-delivery-limit": 100,
    },
    DEAD: {"x-queue-type": "quorum", "x-delivery-limit": 2**31 - 1},
    EVENTS: {
        "x-queue-type": "classic",
        "x-overflow": "drop-head",
        "x-max-length": 100_000,
        "x-message-ttl": 3_600_000,
    },
}


@dataclass(frozen=True)
class Message:
    """A message of RabbitMQ without its delivery information."""

    body: bytes
    properties: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, received: amqp.Message) -> Message:
        properties = dict(received.properties)
        headers = properties.pop("application_headers", None) or {}
        return cls(bytes(received.body or b""), properties, headers)

    def to_amqp(self) -> amqp.Message:
        return amqp.Message(self.body, application_headers=self.headers, **self.properties)


class Raw(str):
    """A string that is sent as these bytes, even if they are not valid UTF-8."""

    bytes: bytes

    def __new__(cls, sent: bytes) -> Raw:
        made = super().__new__(cls, "?" * len(sent))
        made.bytes = sent
        return made

    def encode(self, *_: object) -> bytes:
        return self.bytes


#: A property that is not valid UTF-8, which most clients cannot read.
UNREADABLE = {"content_type": Raw(b"\xff\xfe/json")}


def connect(url: str, *, confirm: bool = True) -> amqp.Connection:
    parts = urlsplit(url)
    connection = amqp.Connection(
        host=f"{parts.hostname}:{parts.port or 5672}",
        userid=unquote(parts.username or "guest"),
        password=unquote(parts.password or "guest"),
        virtual_host=unquote(parts.path[1:]) or "/",
        confirm_publish=confirm,
        connect_timeout=10,
        read_timeout=20,
        write_timeout=20,
    )
    connection.connect()
    return connection


def open_channel(connection: amqp.Connection) -> amqp.Channel:
    """Opens a channel that does not decode bodies, as py-amqp does by default."""
    channel = connection.channel()
    channel.auto_decode = False
    return channel


class Broker:
    """One virtual host. Each method opens its own connection and closes it."""

    def __init__(self, url: str) -> None:
        self.url = url

    @contextmanager
    def channel(self) -> Iterator[amqp.Channel]:
        connection = connect(self.url)
        try:
            yield open_channel(connection)
        finally:
            connection.close()

    def declare(self, queue: str, arguments: Mapping[str, Any] | None = None) -> None:
        """Declares a queue, with the daemon's arguments unless others are given."""
        if arguments is None:
            arguments = QUEUES[queue]
        with self.channel() as channel:
            channel.queue_declare(queue, durable=True, auto_delete=False, arguments=arguments)

    def bind(self, queue: str, exchange: str, routing_key: str) -> None:
        with self.channel() as channel:
            channel.queue_bind(queue, exchange, routing_key)

    def declare_hints(self) -> None:
        """Declares the exchange for hints as the daemon does."""
        with self.channel() as channel:
            channel.exchange_declare(HINTS, "topic", durable=True, auto_delete=False)

    def delete(self, queue: str) -> None:
        with self.channel() as channel:
            channel.queue_delete(queue)

    def exists(self, queue: str) -> bool:
        try:
            self.depth(queue)
        except amqp.NotFound:
            return False
        return True

    def depth(self, queue: str) -> int:
        """The number of messages that are ready; unacknowledged ones do not count."""
        with self.channel() as channel:
            return channel.queue_declare(queue, passive=True).message_count

    def publish(self, *messages: Message, queue: str = RESULTS) -> None:
        """Publishes and waits for the confirms; a queue that does not exist is an error."""
        returned: list[object] = []
        with self.channel() as channel:
            channel.events["basic_return"].add(lambda *details: returned.append(details))
            for message in messages:
                channel.basic_publish(message.to_amqp(), routing_key=queue, mandatory=True)
        assert not returned, f"the queue {queue} is missing"

    def publish_many(self, messages: Iterable[tuple[str, Message]]) -> None:
        """Publishes to the queues with these names, and waits for the confirms only at the end."""
        connection = connect(self.url, confirm=False)
        channel = open_channel(connection)
        channel.confirm_select()
        open_tags: set[int] = set()

        def settle(tag: int, multiple: bool) -> None:
            settled = [one for one in open_tags if one <= tag] if multiple else [tag]
            open_tags.difference_update(settled)

        channel.events["basic_ack"].add(settle)
        for tag, (queue, message) in enumerate(messages, 1):
            open_tags.add(tag)
            channel.basic_publish(message.to_amqp(), routing_key=queue)
        while open_tags:
            connection.drain_events(timeout=30)
        connection.close()

    def take(self, queue: str) -> list[Message]:
        """Takes all messages out of a queue."""
        taken = []
        with self.channel() as channel:
            while received := channel.basic_get(queue, no_ack=True):
                taken.append(Message.of(received))
        return taken


class Forwarder:
    """Copies every message of one queue to the results queues of several virtual hosts.

    A worker with `rpc://` can name only one reply queue. With this, one run of the tasks supplies
    the daemons of all three databases with the same messages at the same time.
    """

    def __init__(self, source: str, targets: list[str]) -> None:
        self._source = source
        self._targets = targets
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._error: BaseException | None = None
        self.messages: list[Message] = []

    def __enter__(self) -> Forwarder:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._error:
            raise self._error

    def _run(self) -> None:
        try:
            self._forward()
        except BaseException as error:  # raised again in `__exit__`
            self._error = error

    def _forward(self) -> None:
        source = connect(self._source, confirm=False)
        targets = [connect(url) for url in self._targets]
        channels = [open_channel(target) for target in targets]

        def forward(received: amqp.Message) -> None:
            message = Message.of(received)
            self.messages.append(message)
            for channel in channels:
                channel.basic_publish(message.to_amqp(), routing_key=RESULTS)

        open_channel(source).basic_consume(RESULTS, no_ack=True, callback=forward)
        while not self._stop.is_set():
            drain(source, seconds=0.1)
        for connection in (source, *targets):
            connection.close()


def drain(connection: amqp.Connection, seconds: float) -> None:
    """Handles the messages that arrive within this time."""
    try:
        connection.drain_events(timeout=seconds)
    except TimeoutError:
        return
