"""Waits for results: in Celery's way (celery/backends/asynchronous.py, 5.7.0) and for `await`."""

from __future__ import annotations

import asyncio
import socket
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
from contextlib import closing, suppress
from itertools import islice
from typing import TYPE_CHECKING, Any

from celery.backends.asynchronous import BaseResultConsumer, Drainer
from celery.exceptions import TimeoutError
from celery.result import ResultSet
from celery.utils.log import get_logger

from .hints import EVERY_SECONDS, LONGEST_SECONDS, SHORTEST_SECONDS, Hints, Wait
from .shared import Forgetful, notice_fork

if TYPE_CHECKING:
    from celery.result import AsyncResult, ResultBase

logger = get_logger(__name__)

#: How many results with callbacks are kept although nobody refers to them. Celery adds a callback
#: to each member of a `GroupResult`, and would keep the members of a chord for ever.
KEPT = 1000

#: How many of the results with callbacks are read in a second without a hint.
MOST_WATCHED = 250

Meta = dict[str, Any]


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
                yield self.read(wait)
                if not wait.ids:
                    return
                if wait.is_over():
                    raise TimeoutError(self._explain(timeout))
                if max_iterations is not None and (max_iterations := max_iterations - 1) <= 0:
                    return
                if time.monotonic() >= interval_at:
                    interval_at = time.monotonic() + interval
                    if on_interval:
                        on_interval()
                wait.sleep(max(interval_at - time.monotonic(), 0))

    def read(self, wait: Wait) -> list[Meta]:
        """The final metas of the wait's tasks among those that are due."""
        if not (due := wait.due()):
            return []
        found = self.backend.final_metas(due | self._others(wait))
        own = [found[task_id] for task_id in found if task_id in wait.ids]
        for task_id, meta in found.items():
            if isinstance(meta, Exception):
                if task_id in wait.ids:
                    raise meta
                logger.warning("the result of the task %s cannot be read: %s", task_id, meta)
                self.cancel_for(task_id)
            elif task_id in self._watched:
                self.on_state_change(meta, None)
        wait.read(found)
        return own

    def _others(self, wait: Wait) -> set[str]:
        """Once a second, some of the results with callbacks that no wait is for."""
        if not self._watched or time.monotonic() < self._watched_at:
            return set()
        self._watched_at = time.monotonic() + EVERY_SECONDS
        others = self._watched.difference(*self.hints.waited_for())
        return set(islice(others, MOST_WATCHED))

    def _explain(self, timeout: float | None) -> str:
        # The question takes up to two seconds if the broker does not answer.
        is_short = timeout is not None and timeout < 1
        return "The operation timed out." if is_short else self.hints.explain()


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


class AsyncWait(Wait):
    """A wait that blocks no thread."""

    def _new_event(self) -> asyncio.Event:
        self._loop = asyncio.get_running_loop()
        return asyncio.Event()

    def _wake(self) -> None:
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._event.set)

    async def sleep_async(self) -> None:
        self._hints.start()
        timer = self._loop.call_later(self.pause(), self._event.set)
        try:
            await self._event.wait()
        finally:
            timer.cancel()


async def aget(result: ResultBase, timeout: float | None = None, propagate: bool = True) -> Any:
    """See `celeriac.aget`."""
    from asgiref.sync import sync_to_async

    waiting = {} if getattr(result, "ignored", False) else unready(result)
    if waiting:
        consumer = getattr(result.backend, "result_consumer", None)
        if not isinstance(consumer, ResultConsumer):
            raise TypeError("aget waits for results of celeriac://, and this is another backend's")
        wait = AsyncWait(consumer.hints, set(waiting), consumer._watched, timeout, LONGEST_SECONDS)

        def read() -> None:
            settle(waiting, consumer.read(wait))

        with consumer.hints.waiting(wait):
            while wait.ids:
                await sync_to_async(read)()
                if wait.ids and wait.is_over():
                    explain = sync_to_async(consumer._explain, thread_sensitive=False)
                    raise TimeoutError(await explain(timeout))
                if wait.ids:
                    await wait.sleep_async()
    # Everything is known now, except perhaps whether a parent failed.
    return await sync_to_async(result.get)(propagate=propagate)
