"""Confirmed publishing to RabbitMQ, over connections that are used for nothing else.

A publish has a connection to itself until the broker has confirmed the message, so threads and
greenlets never share one, and any doubt about a connection ends with that connection. A process
has as many as it ever publishes at the same moment, at most `broker_pool_limit` (Celery's setting,
10): one in a prefork child or a solo worker. Confirms of a quorum queue take about a millisecond,
so ten connections carry more than one Python process can produce, 1,000 greenlets or not.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import amqp
from celery.exceptions import BackendStoreError, ImproperlyConfigured
from celery.utils.log import get_logger
from kombu.transport import pyamqp
from kombu.utils.functional import fxrange

from .options import Options

if TYPE_CHECKING:
    from celery import Celery
    from kombu import Connection

logger = get_logger(__name__)

#: How long one answer of the broker may take. A confirmation takes milliseconds, and some seconds
#: while a quorum queue elects a leader; a new connection before that would add to its troubles.
ANSWER_SECONDS = 30.0

#: How long to go on trying where Celery's `result_backend_always_retry` is off.
PUBLISH_SECONDS = 60.0

#: What py-amqp raises where the connection or the channel is of no use any more.
FAILURES = amqp.Connection.connection_errors + amqp.Connection.channel_errors


class PublishError(BackendStoreError):
    """RabbitMQ did not take a message; the text says why. It may do so later."""


class RefusedError(PublishError):
    """RabbitMQ does not take a message from us until somebody changes rights or names."""


class Publisher:
    """Publishes messages for one app to the queue that `options` name."""

    def __init__(self, app: Celery, options: Options) -> None:
        self._app = app
        self._options = options
        self._limit = app.conf.broker_pool_limit
        self._is_failing = False
        self._reset()

    def publish(self, message: amqp.Message, retry_policy: Mapping[str, Any] | None = None) -> None:
        """Returns when the broker has confirmed that the message is in the queue.

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
                self._attempt(message)
            except PublishError as error:
                wait = next(waits)
                limit = policy["max_retries"]
                is_last = limit is not None and retries >= limit
                if (
                    is_last
                    or isinstance(error, RefusedError)
                    or time.monotonic() + wait > deadline
                ):
                    raise
                retries += 1
                time.sleep(wait)
            else:
                return

    def _attempt(self, message: amqp.Message) -> None:
        try:
            with self._link() as link:
                link.publish(message)
        except FAILURES as error:
            failure: PublishError = self._failure(error)
            raise self._noted(failure) from error
        except PublishError as failure:
            raise self._noted(failure)
        if self._is_failing:
            self._is_failing = False
            logger.info("results are published again")

    def _noted(self, failure: PublishError) -> PublishError:
        """Logs the first failure of a series, as Celery up to 5.6 retries in silence."""
        if not self._is_failing:
            self._is_failing = True
            logger.warning("%s", failure)
        return failure

    @contextmanager
    def _link(self) -> Iterator[Link]:
        """A connection that is alive as far as can be known, to be used by the caller only."""
        with self._slots:
            link = None
            while self._idle and link is None:
                # Whoever used it last did so without trouble, but maybe long ago.
                link = self._idle.pop()
                if not link.is_alive():
                    self._drop(link)
                    link = None
            if link is None:
                link = self._connect()
            is_sound = False
            try:
                yield link
                is_sound = True
            except PublishError:
                is_sound = True
                raise
            finally:
                # A soft time limit too can come between a message and its confirmation. A pool
                # of no connections means one for each publish, as for Celery's own pools.
                if is_sound and self._limit:
                    self._idle.append(link)
                else:
                    self._drop(link)

    def _broker(self) -> Connection:
        """Celery's connection for publishing: its URL, TLS, login, timeouts and options."""
        return self._app.connection_for_write(
            self._options.broker, transport_options={"confirm_publish": False}
        )

    def _connect(self) -> Link:
        """A new connection, to the first of the brokers that takes one."""
        broker = self._broker()
        last = len(broker.alt or [None]) - 1
        for number in range(last + 1):
            try:
                link = Link(transport(broker).establish_connection(), self._options)
            except FAILURES:
                if number == last:
                    raise
                broker.maybe_switch_next()
            else:
                self._links.add(link)
                return link
        raise AssertionError("there is at least one broker")

    def _drop(self, link: Link) -> None:
        self._links.discard(link)
        link.drop()

    def _failure(self, error: BaseException) -> PublishError:
        cause = str(error) or type(error).__name__
        words = f"a result could not be published to {self._broker().as_uri()}: {cause}"
        if isinstance(error, (amqp.AccessRefused, amqp.NotAllowed)):
            return RefusedError(
                f"{words}; check the login, the virtual host and the user's permission to write "
                f"to the exchange `{self._options.exchange}`"
            )
        return PublishError(words)

    def _reset(self) -> None:
        self._slots = threading.BoundedSemaphore(self._limit or 2**31)
        self._links: set[Link] = set()
        self._idle: list[Link] = []

    def forget_inherited(self) -> None:
        """For a child process: the parent's connections are the parent's.

        They are kept and never touched, because closing one would shut down the socket itself.
        """
        _inherited.extend(self._links)
        self._reset()


class Link:
    """A connection with one channel in confirm mode, for one message at a time."""

    def __init__(self, connection: amqp.Connection, options: Options) -> None:
        self._connection = connection
        self._options = options
        self._answer = ""
        self._is_returned = False
        self._is_blocked = False
        self._refused: list[str] = []
        try:
            # For all that waits for the broker; py-amqp itself would wait for ever.
            connection.transport.sock.settimeout(ANSWER_SECONDS)
            connection.on_blocked = self._on_blocked
            connection.on_unblocked = self._on_unblocked
            self._channel = connection.channel()
            self._channel.events["basic_ack"].add(self._on_ack)
            self._channel.events["basic_nack"].add(self._on_nack)
            self._channel.events["basic_return"].add(self._on_return)
            self._open()
        except BaseException:
            self.drop()
            raise

    def publish(self, message: amqp.Message) -> None:
        """Returns when the broker has confirmed the message, and otherwise raises one of
        `FAILURES`, or `PublishError` where the link can still be used."""
        names = self._options
        if not self._send(message):
            # The exchange, the queue or the binding was deleted: all are made again.
            self._open()
            if not self._send(message):
                raise amqp.NotFound(
                    f"the exchange `{names.exchange}` or the queue `{names.queue}` bound to it is "
                    f"missing{self._hint()}"
                )
        if self._answer == "nack":
            raise PublishError(
                f"RabbitMQ refused a result (basic.nack): the queue `{names.queue}` is full or "
                "has no leader"
            )

    def _send(self, message: amqp.Message) -> bool:
        """Publishes and waits for the answer; False where there is nothing to publish to."""
        self._answer = ""
        self._is_returned = False
        # Heartbeats end a read too, so that the timeout of the socket alone is no limit.
        deadline = time.monotonic() + ANSWER_SECONDS
        try:
            self._channel.basic_publish(
                message,
                exchange=self._options.exchange,
                routing_key=self._options.queue,
                mandatory=True,
            )
            while not self._answer:
                self._wait(deadline)
        except amqp.NotFound:
            return False
        return not self._is_returned

    def _wait(self, deadline: float) -> None:
        try:
            if time.monotonic() > deadline:
                raise socket.timeout
            self._connection.blocking_read()
        except socket.timeout:
            because = (
                "it has blocked the connection, as it is short of memory or disk space"
                if self._is_blocked
                else "the connection or the queue is stuck"
            )
            raise socket.timeout(
                f"RabbitMQ did not confirm within {ANSWER_SECONDS:.0f} s: {because}"
            ) from None

    def _open(self) -> None:
        """Declares all of `docs/message-format.md` and turns confirmations on.

        An error of the broker closes a channel, which py-amqp opens again at once.
        """
        names, channel = self._options, self._channel
        queues = {
            names.queue: {
                "x-queue-type": "quorum",
                "x-dead-letter-exchange": "",
                "x-dead-letter-routing-key": names.dead_queue,
                "x-dead-letter-strategy": "at-least-once",
                "x-overflow": "reject-publish",
                "x-delivery-limit": 100,
            },
            names.dead_queue: {"x-queue-type": "quorum"},
        }
        self._refused = []
        with self._declaring(f"the exchange `{names.exchange}`"):
            channel.exchange_declare(names.exchange, "direct", durable=True, auto_delete=False)
        for queue, arguments in queues.items():
            with self._declaring(f"the queue `{queue}`"):
                channel.queue_declare(queue, durable=True, auto_delete=False, arguments=arguments)
        with self._declaring(f"the binding of `{names.queue}`"):
            channel.queue_bind(names.queue, names.exchange, names.queue)
        channel.confirm_select()

    @contextmanager
    def _declaring(self, what: str) -> Iterator[None]:
        try:
            yield
        except amqp.PreconditionFailed as error:
            if what not in _warned:
                _warned.add(what)
                logger.warning(
                    "%s is there with other arguments and is used as it is: %s",
                    what,
                    error.reply_text,
                )
        except (amqp.AccessRefused, amqp.NotFound) as error:
            # Somebody else may have declared it, which the first publish will show.
            logger.debug("%s could not be declared: %s", what, error.reply_text)
            self._refused.append(what)

    def _hint(self) -> str:
        if not self._refused:
            return ""
        return (
            f", and this user may not declare {', '.join(self._refused)}: start `celeriac run`, "
            "which does, or give the user the permission to configure"
        )

    def is_alive(self) -> bool:
        """Looks at what the broker has said since the last use: a closed connection says so."""
        try:
            while True:
                self._connection.drain_events(timeout=0)
        except socket.timeout:
            return True
        except FAILURES:
            return False

    def drop(self) -> None:
        """Closes the connection without waiting for an answer."""
        try:
            self._connection.collect()
        except FAILURES:
            logger.debug("a broken connection could not be closed", exc_info=True)

    def _on_ack(self, _delivery_tag: int, _multiple: bool) -> None:
        self._answer = "ack"

    def _on_nack(self, _delivery_tag: int, _multiple: bool) -> None:
        self._answer = "nack"

    def _on_return(self, *_details: object) -> None:
        """Comes before the confirmation of the same message."""
        self._is_returned = True

    def _on_blocked(self, _reason: str) -> None:
        self._is_blocked = True

    def _on_unblocked(self) -> None:
        self._is_blocked = False


def transport(broker: Connection) -> pyamqp.Transport:
    """py-amqp for this broker, also where librabbitmq is installed, which has no confirmations."""
    found = broker.transport
    if isinstance(found, pyamqp.Transport):
        return found
    if found.driver_name == "librabbitmq":
        return pyamqp.Transport(broker)
    raise ImproperlyConfigured(
        f"celeriac:// publishes results to RabbitMQ, and the app's broker is {found.driver_name}: "
        "name a RabbitMQ in the URL, result_backend = 'celeriac://?broker=amqp%3A%2F%2F…'"
    )


# One publisher serves all backends of an app: up to Celery 5.2 each thread has its own backend.
_publishers: WeakKeyDictionary[Celery, dict[Options, Publisher]] = WeakKeyDictionary()
_lock = threading.Lock()
_inherited: list[Link] = []
_warned: set[str] = set()


def publisher(app: Celery, options: Options) -> Publisher:
    """The publisher of this process for an app and where its results go."""
    with _lock:
        publishers = _publishers.setdefault(app, {})
        if options not in publishers:
            publishers[options] = Publisher(app, options)
        return publishers[options]


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.Lock()
    for publishers in list(_publishers.values()):
        for one in publishers.values():
            one.forget_inherited()


# Not on Windows, which has no fork.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
