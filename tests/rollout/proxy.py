"""A TCP relay in front of a replica, whose network can be taken away or slowed down."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any
from urllib.parse import urlsplit


class Proxy:
    """Relays to the server at `url`. slow_seconds: how long completions are held back; other routes are not."""

    def __init__(self, url: str) -> None:
        self._target = urlsplit(url)
        self.slow_seconds = 0.0
        self._port = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self.open()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def open(self) -> None:
        """Accept connections."""
        self._do(self._open())

    def shut(self) -> None:
        """Refuse connections, and cut those there are."""
        self._do(self._shut())

    def stop(self) -> None:
        """For good."""
        self._do(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _open(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    async def _shut(self) -> None:
        if self._server is not None:
            self._server.close()
        for writer in [*self._writers]:
            writer.transport.abort()

    async def _end(self) -> None:
        await self._shut()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(self._target.hostname, self._target.port)
        self._writers |= {writer, back}
        try:
            await asyncio.gather(self._relay(reader, back, asked=True), self._relay(there, writer))
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            for one in (writer, back):
                one.close()
                self._writers.discard(one)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, asked: bool = False) -> None:
        while chunk := await reader.read(1 << 16):
            if asked and chunk.startswith(b"POST /inference"):
                await asyncio.sleep(self.slow_seconds)
            writer.write(chunk)
            await writer.drain()
        writer.close()
