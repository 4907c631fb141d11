"""Waits for results: in Celery's way (celery/backends/asynchronous.py, 5.7.0) and for `await`."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing, suppress
from itertools import islice
from typing import TYPE_CHECKING, Any

from celery import states
from celery.backends.asynchronous import BaseResultConsumer, Drainer
from celery.exceptions import TimeoutError
from celery.result import ResultSet
from celery.utils.log import get_logger

from .hints import Hints
from .shared import Forgetful, notice_fork

if TYPE_CHECKING:
    from celery.result import AsyncResult, ResultBase

logger = get_logger(__name__)

#: How many results with callbacks are kept although nobody refers to them. Celery adds a callback
#: to each member of a `GroupResult`, and would keep the members of a chord for ever.
KEPT = 1000

#: How many of the results with callbacks are read in a second without a hint.
MOST_WATCHED = 250

#: How often rows are read although hints are received, because a hint may be lost.
EVERY_SECONDS = 1.0

#: The growing waits between two reads without hints, or after a hint whose row is not there yet.
SHORTEST_SECONDS, LONGEST_SECONDS = 0.005, 0.5

#: The first of these waits while the connection for hints is being opened.
CONNECTING_SECONDS = 0.1

Meta = dict[str, Any]


class Wait:
    """A wait for the final rows of tasks; it knows which of them to read when.

    `ids` are the tasks that have not ended yet. `watched` are further ids, whose rows are read if
    a hint names them and no other wait is for them.
    """

    def __init__(
        self, hints: Hints, ids: set[str], watched: set[str], timeout: float | None, interval: float
    ) -> None:
        self.ids = ids
        self.watched = watched
        self._hints = hints
        now = time.monotonic()
        self._deadline = float("inf") if timeout is None else now + timeout
        self._longest = min(max(interval, SHORTEST_SECONDS), LONGEST_SECONDS)
        self._delay = SHORTEST_SECONDS if hints.is_failing else CONNECTING_SECONDS
        #: When to read everything, and when to read again what has not ended.
        self._everything_at = self._read_at = now
        #: Tasks of which a hint says that they have ended, and their rows do not yet.
        self._late: set[str] = set()
        #: What has been found, or the error that ends the wait.
        self._found: list[Meta] = []
        self._error: Exception | None = None
        #: How often in a row reading has failed, and the last time why.
        self._failures = 0
        self.failure: Exception | None = None
        #: The ids in hints, or None if hints begin or cease to be received.
        self._news: deque[set[str] | None] = deque()
        self._event = self._new_event()

    def _new_event(self) -> Any:
        return threading.Event()

    def tell(self, news: set[str] | None) -> None:
        """Called by the thread that receives hints."""
        self._news.append(news)
        self._wake()

    def _wake(self) -> None:
        self._event.set()

    def due(self) -> set[str]:
        """The ids to read now; if there are any, `read` or `fail` has to follow."""
        self._event.clear()
        now = time.monotonic()
        is_everything = now >= self._everything_at or now >= self._deadline
        hinted: set[str] = set()
        while self._news:
            news = self._news.popleft()
            is_everything = is_everything or news is None
            hinted |= news or set()
            self._delay = SHORTEST_SECONDS
        self._late |= hinted & self.ids
        is_due = now >= self._read_at
        if is_everything or (is_due and not self._hints.is_listening):
            self._everything_at = now + EVERY_SECONDS
            return self.ids | hinted
        return hinted | self._late if is_due else hinted

    def read(self, found: Mapping[str, Meta | Exception]) -> None:
        """Notes that what was due has been read, and which tasks have ended."""
        for task_id, meta in found.items():
            if task_id not in self.ids:
                continue
            if isinstance(meta, Exception):
                self._error = meta
            else:
                self._found.append(meta)
                self.ids.discard(task_id)
        self._late &= self.ids
        self._failures, self.failure = 0, None
        self._postpone()

    def fail(self, error: Exception, max_retries: float) -> None:
        """Notes that what was due could not be read, and how often it may be tried again."""
        self._failures += 1
        self.failure = error
        if self._failures > max_retries:
            self._error = error
        self._postpone()
        self._everything_at = self._read_at

    def _postpone(self) -> None:
        self._read_at = time.monotonic() + min(self._delay, self._longest)
        self._delay = min(self._delay * 2, LONGEST_SECONDS)

    def take(self) -> list[Meta]:
        """The final metas that were found since the last call."""
        if self._error:
            raise self._error
        found, self._found = self._found, []
        return found

    def is_over(self) -> bool:
        return time.monotonic() >= self._deadline

    def pause(self) -> float:
        """The seconds until something is due if no hint comes."""
        is_calm = self._hints.is_listening and not self._late
        at = self._everything_at if is_calm else self._read_at
        return max(min(at, self._deadline) - time.monotonic(), 0)

    def sleep(self, seconds: float) -> None:
        """Waits until something is due or news come, but not longer than this."""
        self._hints.sleep(self._event, min(self.pause(), seconds))


class AsyncWait(Wait):
    """A wait that blocks no thread."""

    def _new_event(self) -> asyncio.Event:
        self.loop = asyncio.get_running_loop()
        self.answered = asyncio.Event()
        return asyncio.Event()

    def call(self, function: Callable[[], object]) -> None:
        """Calls a function in the thread of the event loop."""
        with suppress(RuntimeError):  # the loop is closed
            self.loop.call_soon_threadsafe(function)

    def _wake(self) -> None:
        self.call(self._event.set)

    async def sleep_async(self) -> None:
        self._hints.start()
        timer = self.loop.call_later(self.pause(), self._event.set)
        try:
            await self._event.wait()
        finally:
            timer.cancel()


class ResultConsumer(BaseResultConsumer, Forgetful):
    """Reads the rows of results that somebody waits for, and of those that have callbacks.

    Every wait reads rows in its own thread, to which Django's connection belongs. Celery's
    registers contain only results with callbacks (`AsyncResult.then`).
    """

    def __init__(self, *args: Any) -> None:
        BaseResultConsumer.__init__(self, *args)
        Forgetful.__init__(self)
        # Those for gevent and eventlet call `drain_events` in a greenlet of their own.
        self.drainer = Drainer(self)
        #: The ids of results with callbacks.
        self._watched: set[str] = set()
        self._kept: OrderedDict[str, AsyncResult] = OrderedDict()
        self._watched_at = 0.0
        self._is_failing = False
        #: The coroutines of each event loop that want to read.
        self._asking: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, deque[AsyncWait]]
        self._asking = weakref.WeakKeyDictionary()

    @property
    def hints(self) -> Hints:
        return Hints.of(self.app, self.backend.options)

    def consume_from(self, task_id: str) -> None:
        notice_fork()
        self._watched.add(str(task_id))

    def cancel_for(self, task_id: str) -> None:
        """Called from `AsyncResult.__del__`, that is at any point of any thread."""
        self._watched.discard(str(task_id))
        self._kept.pop(str(task_id), None)

    def keep(self, result: AsyncResult) -> None:
        """Keeps a result that has a callback, until it is ready."""
        self._kept[str(result.id)] = result
        if len(self._kept) > KEPT:
            self._kept.popitem(last=False)

    def forget_inherited(self) -> None:
        # The parent calls the callbacks.
        self._watched.clear()
        self._kept.clear()

    def drain_events(self, timeout: float | None = None) -> None:
        """Waits until a result with a callback is ready, or raises a `socket.timeout`."""
        timeout = EVERY_SECONDS if timeout is None else timeout
        end = time.monotonic() + timeout
        if not self._watched:
            time.sleep(timeout)
        for metas in self.metas(set(self._watched), interval=timeout):
            if metas:
                return
            if time.monotonic() >= end:
                break
        raise socket.timeout("timed out")

    # Waiting ------------------------------------------------------------------------------------

    def _wait_for_pending(
        self,
        result: ResultBase,
        timeout: float | None = None,
        interval: float | None = None,
        on_interval: Callable[[], object] | None = None,
        on_message: Callable[[Meta], object] | None = None,
        **kwargs: Any,
    ) -> Iterator[None]:
        waiting = unready(result)
        with closing(self.metas(set(waiting), timeout, interval, on_interval)) as found:
            for metas in found:
                settle(waiting, metas, on_message)
                if on_interval and any(meta["status"] in states.PROPAGATE_STATES for meta in metas):
                    # Celery calls this before a wait ends. It raises the error of a parent, such as
                    # a member of a chord's header, in place of the chord's own.
                    on_interval()
                yield

    def metas(
        self,
        ids: set[str],
        timeout: float | None = None,
        interval: float | None = None,
        on_interval: Callable[[], object] | None = None,
        max_iterations: int | None = None,
    ) -> Iterator[list[Meta]]:
        """Yields the final metas of these tasks as they are found, until all have ended.

        Nothing is found at some times, and so at each interval.
        """
        interval = LONGEST_SECONDS if interval is None else max(interval, SHORTEST_SECONDS)
        interval_at = time.monotonic() + interval
        wait = Wait(self.hints, ids, self._watched, timeout, interval)
        with self.hints.waiting(wait):
            while wait.ids:
                self.read(wait)
                yield wait.take()
                if not wait.ids:
                    return
                if wait.is_over():
                    raise self.timed_out(wait, timeout)
                if max_iterations is not None and (max_iterations := max_iterations - 1) <= 0:
                    return
                if time.monotonic() >= interval_at:
                    interval_at = time.monotonic() + interval
                    if on_interval:
                        on_interval()
                wait.sleep(max(interval_at - time.monotonic(), 0))

    def read(self, *waits: Wait) -> None:
        """Reads what is due for these waits, with one statement."""
        asked = [(wait, due) for wait in waits if (due := wait.due())]
        if not asked:
            return
        try:
            due = self._others().union(*(due for _, due in asked))
            found = self.backend.final_metas(due)
        except Exception as error:
            is_temporary = self.backend.always_retry and self.backend.exception_safe_to_retry(error)
            for wait, _ in asked:
                wait.fail(error, self.backend.max_retries if is_temporary else 0)
            if is_temporary and not self._is_failing:
                self._is_failing = True
                logger.warning("results cannot be read, and are tried again: %s", error)
            return
        self._is_failing = False
        for task_id, meta in found.items():
            if task_id not in self._watched:
                continue
            if not isinstance(meta, Exception):
                self.on_state_change(meta, None)
            elif not any(task_id in wait.ids for wait, _ in asked):
                logger.warning("the result of the task %s cannot be read: %s", task_id, meta)
                self.cancel_for(task_id)
        for wait, _ in asked:
            wait.read(found)

    async def read_together(self, wait: AsyncWait) -> None:
        """Reads with one statement what is due for all coroutines that ask at the same time.

        Each asks in its own thread, as those of other requests may be busy. The thread that is the
        first reads for all.
        """
        from asgiref.sync import sync_to_async

        asking = self._asking.setdefault(wait.loop, deque())

        def read() -> None:
            waits: list[AsyncWait] = []
            try:
                with suppress(IndexError):
                    while True:
                        waits.append(asking.popleft())
                self.read(*waits)
            finally:
                for one in waits:
                    one.call(one.answered.set)

        wait.answered.clear()
        asking.append(wait)
        try:
            await asyncio.sleep(0)  # the others of this moment ask
            await sync_to_async(read)()
            await wait.answered.wait()
        finally:
            with suppress(ValueError):
                asking.remove(wait)

    def _others(self) -> set[str]:
        """Once a second, some of the results with callbacks that no wait is for."""
        if not self._watched or time.monotonic() < self._watched_at:
            return set()
        self._watched_at = time.monotonic() + EVERY_SECONDS
        others = self._watched.difference(*self.hints.waited_for())
        return set(islice(others, MOST_WATCHED))

    def timed_out(self, wait: Wait, timeout: float | None) -> TimeoutError:
        words = "The operation timed out."
        if wait.failure:
            words = f"The operation timed out: {wait.failure}"
        elif timeout is None or timeout >= 1:
            # The question takes up to two seconds if the broker does not answer.
            words = self.hints.explain()
        error = TimeoutError(words)
        error.__cause__ = wait.failure
        return error


def leaves(result: ResultBase) -> Iterator[AsyncResult]:
    """The results of single tasks in a result."""
    if isinstance(result, ResultSet):
        for one in result.results:
            yield from leaves(one)
    else:
        yield result


def unready(result: ResultBase) -> dict[str, list[AsyncResult]]:
    """The results of single tasks that are not known to have ended, by their ids."""
    found: dict[str, list[AsyncResult]] = {}
    for one in leaves(result):
        if one._cache is None:
            found.setdefault(str(one.id), []).append(one)
    return found


def settle(
    waiting: dict[str, list[AsyncResult]],
    metas: Collection[Meta],
    on_message: Callable[[Meta], object] | None = None,
) -> None:
    """Makes results ready. Up to Celery 5.6, the registers contain one object for each id."""
    for meta in metas:
        if on_message:
            on_message(meta)
        for result in waiting[meta["task_id"]]:
            # A result with callbacks may be ready already, and must be so only once.
            if result._cache is None:
                result._maybe_set_cache(meta)


async def aget(result: ResultBase, timeout: float | None = None, propagate: bool = True) -> Any:
    """See `celeriac.aget`."""
    from asgiref.sync import sync_to_async

    waiting = {} if getattr(result, "ignored", False) else unready(result)
    found: list[Meta] = []
    if waiting:
        consumer = getattr(result.backend, "result_consumer", None)
        if not isinstance(consumer, ResultConsumer):
            raise TypeError("aget waits for results of celeriac://, and this is another backend's")
        wait = AsyncWait(consumer.hints, set(waiting), consumer._watched, timeout, LONGEST_SECONDS)
        with consumer.hints.waiting(wait):
            while wait.ids:
                await consumer.read_together(wait)
                found += wait.take()
                if wait.ids and wait.is_over():
                    timed_out = sync_to_async(consumer.timed_out, thread_sensitive=False)
                    raise await timed_out(wait, timeout)
                if wait.ids:
                    await wait.sleep_async()

    def get() -> Any:
        settle(waiting, found)
        # Everything is known now, except perhaps whether a parent failed.
        return result.get(propagate=propagate)

    return await sync_to_async(get)()
