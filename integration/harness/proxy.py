"""A TCP proxy that simulates network faults: it closes, stalls, drops or refuses connections."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any
from urllib.parse import urlsplit

from harness.services import HOST, free_port


class Proxy:
    """Forwards connections to the server of `url`. Its methods take effect immediately.

    It runs an event loop in its own thread, so that tests can stay synchronous.
    """

    def __init__(self, url: str, standard_port: int) -> None:
        parts = urlsplit(url)
        self._target = (parts.hostname, parts.port or standard_port)
        self.port = free_port()
        credentials = f"{parts.netloc.rpartition('@')[0]}@" if "@" in parts.netloc else ""
        #: The same URL, but through the proxy.
        self.url = parts._replace(netloc=f"{credentials}{HOST}:{self.port}").geturl()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._flow = asyncio.Event()

    def __enter__(self) -> Proxy:
        self._thread.start()
        self._call(self._listen())
        self._loop.call_soon_threadsafe(self._flow.set)
        return self

    def __exit__(self, *_: object) -> None:
        self._call(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def cut(self) -> None:
        """Resets every connection, but accepts new ones."""
        self._call(self._reset())

    def refuse(self) -> None:
        """Resets every connection and accepts no new ones until `accept` is called."""
        self._call(self._close())

    def accept(self) -> None:
        """Accepts connections again."""
        self._call(self._listen())

    def stall(self) -> None:
        """Holds back the data of all connections, in both directions, until `flow` is called."""
        self._loop.call_soon_threadsafe(self._flow.clear)

    def flow(self) -> None:
        """Ends `stall`."""
        self._loop.call_soon_threadsafe(self._flow.set)

    def swallow(self) -> None:
        """Drops all further data of the present connections without closing them."""
        self._call(self._forget())

    def _call(self, coroutine: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, HOST, self.port)

    async def _close(self) -> None:
        if self._server:
            self._server.close()
            self._server = None
        await self._reset()

    async def _end(self) -> None:
        """Ends all tasks: asyncio warns about tasks that are pending when the loop is closed."""
        await self._close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _reset(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()
        self._writers.clear()

    async def _forget(self) -> None:
        self._writers.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            other_reader, other_writer = await asyncio.open_connection(*self._target)
        except (OSError, asyncio.CancelledError):
            writer.transport.abort()
            return
        self._writers |= {writer, other_writer}
        try:
            await asyncio.gather(self._pump(reader, other_writer), self._pump(other_reader, writer))
        except asyncio.CancelledError:
            # Not raised again: Python 3.11 logs an error for each handler that was cancelled.
            writer.transport.abort()
            other_writer.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Copies data in one direction, and drops it if `swallow` has forgotten the connection."""
        try:
            while data := await reader.read(65536):
                await self._flow.wait()
                if writer in self._writers:
                    writer.write(data)
                    await writer.drain()
        except OSError:
            pass
        finally:
            if writer in self._writers:
                self._writers.discard(writer)
                writer.close()
