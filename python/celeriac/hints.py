"""Receives the daemon's hints that rows of finished tasks are committed (`docs/message-format.md`).

A hint is only a reason to read: it may be forged, late, doubled or lost. While somebody waits, one
thread of the process receives the hints of an app; it only collects ids and wakes the waits, which
read the rows in their own threads. Without hints, waits read in growing intervals.
"""

from __future__ import annotations

import json
import logging
import random
import socket
import threading
import time
import uuid
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import amqp
from celery.exceptions import ImproperlyConfigured
from celery.utils.log import get_logger

from .options import Options
from .publisher import FAILURES, connect, transport
from .shared import Shared

if TYPE_CHECKING:
    from celery import Celery
    from kombu import Connection

    from .waiting import Wait

logger = get_logger(__name__)

#: The exchange to which the daemon publishes hints, and the version that is understood.
EXCHANGE = "celeriac.stored"
VERSION = 1

#: When the queue is full, the oldest hints are dropped.
QUEUE_ARGUMENTS = {
    "x-queue-type": "classic",
    "x-max-length": 1000,
    "x-max-length-bytes": 1024 * 1024,
    "x-overflow": "drop-head",
}

#: How long the connection is kept when nobody waits any more.
IDLE_SECONDS = 30.0

#: How long to wait before connecting again; doubled after each failure.
FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS = 0.5, 30.0

#: A connection on which nothing arrives for two to three times as long is given up.
HEARTBEAT_SECONDS = 10.0

#: How long the broker may take to answer.
ANSWER_SECONDS = 10.0

#: The same for the question why nothing has come, which delays an error.
EXPLAIN_SECONDS = 1.0

#: What is raised if hints cannot be received; the last two are about the client of another broker.
UNUSABLE = (*FAILURES, ImproperlyConfigured, ImportError, LookupError)


class Hints(Shared):
    """The hints for one app in this process, and the waits that they wake.

    `AsyncResult.__del__` and the end of a generator can be called by the garbage collector at any
    point, so dictionaries are changed without a lock.
    """

    def __init__(self, app: Celery, options: Options) -> None:
        super().__init__(app, options)
        self._has_threads = has_threads()
        self._ask_at, self._reason = 0.0, ""
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        # Weak, as an interruption can also come just before a wait is taken out.
        self._waits: weakref.WeakValueDictionary[int, Wait] = weakref.WeakValueDictionary()
        self._thread: threading.Thread | None = None
        self._listener: Listener | None = None
        self.is_listening = self.is_failing = False
        self._used_at = self._retry_at = time.monotonic()
        self._retry_seconds = FIRST_RETRY_SECONDS

    # For waits ----------------------------------------------------------------------------------

    @contextmanager
    def waiting(self, wait: Wait) -> Iterator[None]:
        """Passes hints on to the wait. The connection is only opened when the wait sleeps."""
        self._waits[id(wait)] = wait
        try:
            yield
        finally:
            self._waits.pop(id(wait), None)
            if not self._has_threads and not self._waits:
                self._drop()

    def _present(self) -> list[Wait]:
        # Unlike `values`, this is safe while other threads begin to wait.
        return [wait for one in self._waits.valuerefs() if (wait := one())]

    def waited_for(self) -> list[set[str]]:
        return [wait.ids for wait in self._present()]

    def sleep(self, event: Any, seconds: float) -> None:
        """Waits until the event is set, but not longer than this."""
        if self._has_threads:
            self.start()
            event.wait(seconds)
            return
        try:
            self._step(seconds)
        except BaseException:
            # Half a frame may have been read.
            self._drop()
            raise

    def start(self) -> None:
        """Starts the thread unless it runs."""
        if not self._has_threads or (self._thread and self._thread.is_alive()):
            return
        with self._lock:
            if self._thread and self._thread.is_alive():
                return
            self._used_at = time.monotonic()
            self._thread = threading.Thread(target=self._run, name="celeriac-hints", daemon=True)
            try:
                self._thread.start()
            except RuntimeError as error:  # there are too many threads
                self._fail(error)

    # For the thread -----------------------------------------------------------------------------

    def _run(self) -> None:
        while self._thread is threading.current_thread():
            self._step(1.0)
            self._end_if_idle()

    def _end_if_idle(self) -> None:
        now = time.monotonic()
        if self._waits:
            self._used_at = now
        if now - self._used_at < IDLE_SECONDS:
            return
        with self._lock:
            # A wait is entered first, and then looks whether hints are received.
            self.is_listening = False
            if self._waits:
                self.is_listening = self._listener is not None
                return
            self._thread = None
            listener, self._listener = self._listener, None
        if listener:
            listener.close()

    def _step(self, seconds: float) -> None:
        """Receives hints or connects, for about this long."""
        pause = self._retry_at - time.monotonic()
        try:
            if self._listener:
                self._listener.listen(seconds)
            elif pause > 0:
                time.sleep(min(pause, seconds))
            else:
                broker = self._broker(heartbeat=HEARTBEAT_SECONDS)
                self._listener = connect(
                    broker, lambda line: Listener(line, self._options, self._deliver)
                )
                if self.is_failing:
                    logger.info("hints of stored results are received again")
                self.is_failing = False
                self.is_listening = True
                self._tell(None)
        except Exception as error:
            # Without a thread of our own, a time limit of the caller may end here.
            if not self._has_threads and not isinstance(error, UNUSABLE):
                raise
            self._fail(error)

    def _broker(self, **settings: Any) -> Connection:
        return self._app.connection_for_write(self._options.broker, **settings)

    def _fail(self, error: Exception) -> None:
        """Notes that there are no hints for now, and logs the first failure of a series."""
        lasted = self._listener.lasted() if self._listener else 0.0
        self._drop()
        if lasted > LAST_RETRY_SECONDS:
            self._retry_seconds = FIRST_RETRY_SECONDS
        # Many processes may have lost their connections at the same moment.
        self._retry_at = time.monotonic() + self._retry_seconds * random.uniform(0.5, 1.0)
        self._retry_seconds = min(self._retry_seconds * 2, LAST_RETRY_SECONDS)
        if self.is_failing:
            return
        self.is_failing = True
        self._tell(None)
        # The exchange is missing if no daemon that publishes hints has run yet.
        is_usual = isinstance(error, (ImproperlyConfigured, amqp.NotFound)) or not self._waits
        logger.log(
            logging.INFO if is_usual else logging.WARNING,
            "waiting for results goes on by reading the database again and again, as there are no "
            "hints: %s",
            str(error) or type(error).__name__,
        )

    def _drop(self) -> None:
        self.is_listening = False
        listener, self._listener = self._listener, None
        if listener:
            listener.drop()

    def _tell(self, news: set[str] | None) -> None:
        for wait in self._present():
            wait.tell(news)

    def _deliver(self, ids: set[str]) -> None:
        """Wakes the waits for these tasks. Any wait can read the others that are watched."""
        waits = self._present()
        for wait in waits:
            if mine := ids & wait.ids:
                wait.tell(mine)
        others = ids.difference(*(wait.ids for wait in waits))
        for wait in waits:
            if mine := others & wait.watched:
                wait.tell(mine)
                others -= mine

    # For errors ---------------------------------------------------------------------------------

    def explain(self) -> str:
        """Why a wait timed out, as far as the broker knows. It is asked every ten seconds at most.
        """
        if time.monotonic() >= self._ask_at:
            self._ask_at = time.monotonic() + 10
            try:
                self._reason = self._ask()
            except Exception:
                logger.debug("the results queue could not be looked at", exc_info=True)
                self._reason = ""
        return f"The operation timed out{self._reason}."

    def _ask(self) -> str:
        name = self._options.queue
        broker = self._broker(connect_timeout=EXPLAIN_SECONDS)
        connection = limited(transport(broker).establish_connection(), EXPLAIN_SECONDS)
        try:
            found = connection.channel().queue_declare(name, passive=True)
        except amqp.NotFound:
            return f": the results queue `{name}` does not exist; start `celeriac run`"
        finally:
            with suppress(*FAILURES):
                connection.close()
        if found.consumer_count:
            return ""
        count = found.message_count
        messages = "1 message waits" if count == 1 else f"{count} messages wait"
        return (
            f": nobody consumes the results queue `{name}`, in which {messages}; start "
            "`celeriac run`"
        )

    def forget_inherited(self) -> None:
        """For a child process after a fork. The parent's connection is kept, but never used."""
        _inherited.append(self._listener)
        self._reset()


class Listener:
    """A connection with a queue of its own for the hints about one results queue."""

    def __init__(self, connection: amqp.Connection, options: Options, deliver: Any) -> None:
        self._connection = limited(connection, ANSWER_SECONDS)
        self._deliver = deliver
        self._began_at = self._ticked_at = time.monotonic()
        try:
            self._open(options)
        except BaseException:
            self.drop()
            raise

    def _open(self, options: Options) -> None:
        """The exchange is not declared: if it exists, there is a daemon that publishes hints."""
        channel = self._connection.channel()
        channel.auto_decode = False
        queue = f"celeriac.waiting.{uuid.uuid4().hex}"
        channel.queue_declare(
            queue, durable=False, exclusive=True, auto_delete=True, arguments=QUEUE_ARGUMENTS
        )
        channel.queue_bind(queue, EXCHANGE, f"{options.queue}.final.#")
        channel.basic_consume(queue, no_ack=True, callback=self._on_message)

    def lasted(self) -> float:
        return time.monotonic() - self._began_at

    def listen(self, seconds: float) -> None:
        """Waits for a hint or a heartbeat, and sends heartbeats."""
        with suppress(socket.timeout):
            self._connection.drain_events(timeout=max(seconds, 0.001))
        if time.monotonic() >= self._ticked_at + 1:
            self._ticked_at = time.monotonic()
            self._connection.heartbeat_tick()

    def _on_message(self, message: amqp.Message) -> None:
        try:
            ids = ended(json.loads(message.body))
        except (ValueError, TypeError, AttributeError, LookupError, RecursionError):
            logger.debug("a hint cannot be read", exc_info=True)
        else:
            self._deliver(ids)

    def close(self) -> None:
        """Closes the connection as the protocol wants it. The broker logs a warning otherwise."""
        with suppress(*FAILURES):
            self._connection.close()

    def drop(self) -> None:
        """Closes the connection without waiting for an answer."""
        with suppress(*FAILURES):
            self._connection.collect()


def ended(hint: dict[str, Any]) -> set[str]:
    """The tasks that have ended according to a hint. The states are not believed."""
    return {str(one[0]) for one in hint["final"]} if hint["version"] == VERSION else set()


def limited(connection: amqp.Connection, seconds: float) -> amqp.Connection:
    """Gives py-amqp, which waits for every answer with this method, a limit."""

    def read(timeout: float | None = None) -> Any:
        timeout = seconds if timeout is None else timeout
        return amqp.Connection.blocking_read(connection, timeout)

    connection.blocking_read = read
    return connection


def has_threads() -> bool:
    """uWSGI runs no threads unless it is asked to."""
    try:
        from uwsgi import opt
    except ImportError:
        return True
    off = (None, False, b"false", b"0", "false", "0")
    return any(opt.get(name) not in off for name in ("enable-threads", "threads", "gevent"))


_inherited: list[object] = []
