"""Publishes to RabbitMQ with publisher confirms, over connections that are used for nothing else.

Each publish uses a connection exclusively until the broker has confirmed the message. So threads
and greenlets never share a connection, and a connection that may be broken is simply closed. A
process opens as many connections as it publishes messages at the same moment, at most
`broker_pool_limit` (Celery's setting, 10). A prefork child or a solo worker opens one. A quorum
queue confirms in about a millisecond, so ten connections carry more messages than one Python
process can produce, even with 1,000 greenlets.
"""

from __future__ import annotations

import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

import amqp
from amqp import spec
from amqp.exceptions import MessageNacked
from celery.exceptions import BackendStoreError, ImproperlyConfigured
from celery.utils.log import get_logger
from kombu.transport import pyamqp
from kombu.utils.functional import fxrange

from .options import Options
from .shared import Shared

if TYPE_CHECKING:
    from celery import Celery
    from kombu import Connection

logger = get_logger(__name__)

T = TypeVar("T")

#: How long the broker may take to answer in one attempt. A confirmation takes milliseconds, or some
#: seconds while a quorum queue elects a leader. Reconnecting during an election would only add to
#: the load.
ANSWER_SECONDS = 30.0

#: How long to retry if Celery's `result_backend_always_retry` is off. This is longer than the
#: twenty retries of Celery's own policy, and longer than the timeout of one confirmation.
PUBLISH_SECONDS = 60.0

#: What py-amqp raises if the broker is not available or refuses a message.
FAILURES = (
    *amqp.Connection.connection_errors,
    *amqp.Connection.channel_errors,
    MessageNacked,
)

#: The failures that are not caused by a connection that was closed while idle.
ANSWERS = (*amqp.Connection.channel_errors, MessageNacked, socket.timeout)


class PublishError(BackendStoreError):
    """RabbitMQ did not accept a message; the text says why. A later attempt may succeed."""


class RefusedError(PublishError):
    """RabbitMQ refuses a message, and will do so until permissions or names are changed."""


class Publisher(Shared):
    """Publishes the messages of one app to the queue in `options`."""

    def __init__(self, app: Celery, options: Options) -> None:
        super().__init__(app, options)
        self._limit = app.conf.broker_pool_limit
        self._is_failing = False
        self._reset()

    def publish(
        self,
        message: amqp.Message,
        retry_policy: Mapping[str, Any] | None = None,
        *,
        is_chord: bool = False,
    ) -> bool:
        """Returns True when the broker has confirmed that the message is in the queue, and False if
        it is about a chord and the daemon does not accept chords.

        Without a retry policy (kombu's, with `max_retries` and `interval_…` in seconds) there is
        one attempt. Raises `PublishError`.
        """
        policy = {"max_retries": 0, **(retry_policy or {})}
        waits = fxrange(
            policy.get("interval_start", 0),
            policy.get("interval_max", 1),
            policy.get("interval_step", 1),
            repeatlast=True,
        )
        deadline = time.monotonic() + PUBLISH_SECONDS
        retries = 0
        while True:
            try:
                is_queued = self._attempt(message, deadline, is_chord)
            except FAILURES as error:
                failure = self._failure(error)
                wait = next(waits)
                limit = policy["max_retries"]
                is_last = limit is not None and retries >= limit
                is_late = time.monotonic() + wait > deadline
                if is_last or is_late or isinstance(failure, RefusedError):
                    raise failure from error
                retries += 1
                time.sleep(wait)
            else:
                break
        if self._is_failing:
            self._is_failing = False
            logger.info("results are published again")
        return is_queued

    def _attempt(self, message: amqp.Message, deadline: float, is_chord: bool) -> bool:
        """Publishes the message on the connection of a free slot.

        A soft time limit may raise its exception between any two steps. So a slot is marked with
        `user` while it is in use.
        """
        user = object()
        try:
            while True:
                slot = self._claim(user, deadline)
                is_reused = slot in self._links
                try:
                    if not is_reused:
                        self._links[slot] = self._connect(deadline)
                    link = self._links[slot]
                    link.begin(deadline)
                    is_queued = link.publish(message, is_chord=is_chord)
                    break
                except FAILURES as error:
                    if not is_reused or isinstance(error, ANSWERS):
                        raise
                    # The broker closed the idle connection. This is not a failure, so try another
                    # one.
                    self._abandon(user)
            self._release(user)
            return is_queued
        except BaseException as error:
            self._abandon(user, is_sound=isinstance(error, MessageNacked))
            raise

    def _claim(self, user: object, deadline: float) -> int:
        """Claims the first free slot, so that as few connections as possible are used. Waits for a
        free slot until the deadline."""
        while True:
            for slot in self._slots:
                if self._users.setdefault(slot, user) is user:
                    return slot
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise TimeoutError(
                    f"all {self._limit} connections for results are busy (`broker_pool_limit`)"
                )
            waiter = threading.Lock()
            waiter.acquire()
            self._waiting.append(waiter)
            # Waits only briefly, because a slot may have become free before this waiter was added.
            if not waiter.acquire(timeout=min(remaining, 0.1)):
                with suppress(ValueError):
                    self._waiting.remove(waiter)

    def _claimed(self, user: object) -> list[int]:
        return [slot for slot, one in list(self._users.items()) if one is user]

    def _release(self, user: object) -> None:
        for slot in self._claimed(user):
            if not self._limit and (link := self._links.pop(slot, None)):
                link.drop()
            del self._users[slot]
            with suppress(IndexError):
                self._waiting.popleft().release()

    def _abandon(self, user: object, *, is_sound: bool = False) -> None:
        """Releases a slot after an error, and drops its connection unless it is sound."""
        for slot in self._claimed(user):
            try:
                link = self._links.get(slot)
                if link and not is_sound:
                    del self._links[slot]
                    link.drop()
            finally:
                self._release(user)

    def _broker(self) -> Connection:
        """Celery's connection for publishing: its URL, TLS, login, timeouts and options."""
        return self._app.connection_for_write(
            self._options.broker, transport_options={"confirm_publish": False}
        )

    def _connect(self, deadline: float) -> Link:
        return connect(self._broker(), lambda line: Link(line, self._options, deadline))

    def _failure(self, error: BaseException) -> PublishError:
        """The exception to raise. Logs the first failure of a series, because Celery up to 5.6
        retries without a log message."""
        cause = str(error) or type(error).__name__
        words = f"a result could not be published to {self._broker().as_uri()}: {cause}"
        is_answer = getattr(error, "method_sig", None) == spec.Basic.Publish
        if isinstance(error, (amqp.AccessRefused, amqp.NotAllowed)):
            words += (
                "; check the login, the virtual host and the user's permission to write to the "
                f"exchange `{self._options.exchange}`"
            )
        # PreconditionFailed: the message is larger than `max_message_size`. A refused login is not
        # final, because an authentication service may be unavailable or a limit of connections may
        # be reached.
        is_final = is_answer and isinstance(error, (amqp.AccessRefused, amqp.PreconditionFailed))
        failure = RefusedError(words) if is_final else PublishError(words)
        if not self._is_failing:
            self._is_failing = True
            logger.warning("%s", failure)
        return failure

    def _reset(self) -> None:
        # A limit of 0 or None means a new connection for each publish, as in Celery's own pools.
        self._slots = range(self._limit or 2**31)
        self._links: dict[int, Link] = {}
        #: The attempt that uses each slot.
        self._users: dict[int, object] = {}
        self._waiting: deque[threading.Lock] = deque()

    def forget_inherited(self) -> None:
        """For a child process after a fork: forgets the connections of the parent.

        They are kept but never used, because closing one would shut down the parent's socket.
        """
        _inherited.extend(self._links.values())
        self._reset()


class Link:
    """A connection with one channel in confirm mode, used by one thread at a time."""

    def __init__(self, connection: amqp.Connection, options: Options, deadline: float) -> None:
        self._connection = connection
        self._options = options
        self._channel: amqp.Channel | None = None
        self._is_awaited = False
        self._is_missing = False
        self._is_nacked = False
        self._is_blocked = False
        self._refused: list[str] = []
        try:
            # py-amqp waits for every answer through this method, without a timeout of its own.
            connection.blocking_read = self._read
            self.begin(deadline)
            connection.on_blocked = self._on_blocked
            connection.on_unblocked = self._on_unblocked
            self._open()
        except BaseException:
            self.drop()
            raise

    def begin(self, deadline: float) -> None:
        """Begins an attempt, which ends at the deadline at the latest."""
        self._deadline = min(deadline, time.monotonic() + ANSWER_SECONDS)
        if not self._connection.connected:
            raise amqp.RecoverableConnectionError("connection already closed")
        self._connection.transport.sock.settimeout(self._remaining())

    def _remaining(self) -> float:
        remaining = self._deadline - time.monotonic()
        if remaining <= 0:
            raise socket.timeout("timed out")
        return remaining

    def _read(self, timeout: float | None = None) -> Any:
        """Reads one frame. Heartbeats are frames too, so each read gets only the remaining time.
        """
        timeout = self._remaining() if timeout is None else timeout
        return amqp.Connection.blocking_read(self._connection, timeout)

    def publish(self, message: amqp.Message, *, is_chord: bool = False) -> bool:
        """Returns True when the broker has confirmed the message, and False if it is about a chord
        and the broker has returned it."""
        names = self._options
        key = names.chords_key if is_chord else names.queue
        self._send(message, key)
        if self._is_missing:
            # The exchange, the queue or the binding was deleted, so all are declared again.
            self._open()
            if is_chord:
                return False
            self._send(message, key)
        if self._is_missing:
            raise amqp.NotFound(
                f"the exchange `{names.exchange}` or the queue `{names.queue}` bound to it is "
                f"missing{self._hint()}"
            )
        if self._is_nacked:
            self._is_nacked = False
            raise MessageNacked(
                f"the broker refused it (basic.nack), as the queue `{names.queue}` is full or has "
                "no leader"
            )
        return True

    def _send(self, message: amqp.Message, routing_key: str) -> None:
        """Publishes the message and waits for the broker's answer."""
        self._is_awaited = True
        try:
            # py-amqp first checks whether the broker has closed the connection or the channel.
            self._channel.basic_publish(
                message,
                exchange=self._options.exchange,
                routing_key=routing_key,
                mandatory=True,
            )
            self._wait()
        except amqp.NotFound:
            # The broker has closed the channel, so no confirmation will come on it.
            self._is_missing = True

    def _wait(self) -> None:
        try:
            while self._is_awaited:
                self._connection.blocking_read()
        except socket.timeout:
            because = (
                "it has blocked the connection, as it is short of memory or disk space"
                if self._is_blocked
                else "the connection or the queue is stuck"
            )
            raise socket.timeout(
                f"RabbitMQ has not confirmed it in time: {because}"
            ) from None

    def _on_ack(self, _delivery_tag: int, _multiple: bool) -> None:
        self._is_awaited = False

    def _on_nack(self, _delivery_tag: int, _multiple: bool) -> None:
        self._is_nacked = True
        self._is_awaited = False

    def _on_return(self, *_details: object) -> None:
        """Called before the confirmation of the same message."""
        self._is_missing = True

    def _on_blocked(self, _reason: str) -> None:
        self._is_blocked = True

    def _on_unblocked(self) -> None:
        self._is_blocked = False

    def _open(self) -> None:
        """Opens a channel, declares what `docs/message-format.md` lists and enables confirms.

        If a declaration fails, the broker closes the channel and py-amqp opens it again at once.
        """
        names, channel = self._options, self._connection.channel()
        queues = {
            names.queue: {
                "x-queue-type": "quorum",
                "x-dead-letter-exchange": "",
                "x-dead-letter-routing-key": names.dead_queue,
                "x-dead-letter-strategy": "at-least-once",
                "x-overflow": "reject-publish",
                "x-delivery-limit": 100,
            },
            names.dead_queue: {"x-queue-type": "quorum", "x-delivery-limit": 2**31 - 1},
        }
        self._is_missing = self._is_nacked = False
        self._refused = []
        with self._declaring(f"the exchange `{names.exchange}`"):
            channel.exchange_declare(names.exchange, "direct", durable=True, auto_delete=False)
        for queue, arguments in queues.items():
            with self._declaring(f"the queue `{queue}`"):
                channel.queue_declare(queue, durable=True, auto_delete=False, arguments=arguments)
        with self._declaring(f"the binding of `{names.queue}`"):
            channel.queue_bind(names.queue, names.exchange, names.queue)
        channel.events["basic_ack"].add(self._on_ack)
        channel.events["basic_nack"].add(self._on_nack)
        channel.events["basic_return"].add(self._on_return)
        channel.confirm_select()
        if self._channel is not None:
            self._channel.close()
        self._channel = channel

    @contextmanager
    def _declaring(self, what: str) -> Iterator[None]:
        try:
            yield
        except amqp.PreconditionFailed as error:
            if what not in _warned:
                _warned.add(what)
                logger.warning(
                    "%s exists with other arguments and is used as it is: %s",
                    what,
                    error.reply_text,
                )
        except (amqp.AccessRefused, amqp.NotFound) as error:
            # The daemon or another worker may have declared it; the first publish will show.
            logger.debug("%s could not be declared: %s", what, error.reply_text)
            self._refused.append(what)

    def _hint(self) -> str:
        if not self._refused:
            return ""
        return (
            f", and this user may not declare {', '.join(self._refused)}: start `celeriac run`, "
            "which does, or give the user the permission to configure"
        )

    def drop(self) -> None:
        """Closes the connection without waiting for an answer."""
        try:
            self._connection.collect()
        except FAILURES:
            logger.debug("a broken connection could not be closed", exc_info=True)


def transport(broker: Connection) -> pyamqp.Transport:
    """The py-amqp transport for this broker, even if librabbitmq is installed, which does not
    support confirms."""
    found = broker.transport
    if isinstance(found, pyamqp.Transport):
        return found
    if found.driver_name == "librabbitmq":
        return pyamqp.Transport(broker)
    raise ImproperlyConfigured(
        f"celeriac:// publishes results to RabbitMQ, and the app's broker is {found.driver_name}: "
        "name a RabbitMQ in the URL, result_backend = 'celeriac://?broker=amqp%3A%2F%2F…'"
    )


def connect(broker: Connection, use: Callable[[amqp.Connection], T]) -> T:
    """Opens a connection to the first broker that accepts it, and returns what `use` makes of it.
    """
    last = len(broker.alt or [None]) - 1
    for number in range(last + 1):
        try:
            return use(transport(broker).establish_connection())
        except FAILURES:
            if number == last:
                raise
            broker.maybe_switch_next()
    raise AssertionError("there is at least one broker")


_inherited: list[Link] = []
_warned: set[str] = set()
