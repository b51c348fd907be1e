"""Published weights over HTTP, for replicas that do not see the trainer's disk: its main process hands them out."""

from __future__ import annotations

import secrets
import socket
from pathlib import Path
from urllib.parse import urlsplit

from aiohttp import web


class FileServer:
    """Serves a directory below a path that nobody can guess, on a port of the system's choice, read only."""

    def __init__(self, directory: Path) -> None:
        self._path = f"/{secrets.token_urlsafe(16)}"
        app = web.Application()
        app.router.add_static(self._path, directory)
        self._runner = web.AppRunner(app, access_log=None)
        self._port = 0

    async def open(self) -> None:
        """Listen."""
        await self._runner.setup()
        await web.TCPSite(self._runner, "0.0.0.0", 0).start()
        self._port = self._runner.addresses[0][1]

    async def close(self) -> None:
        """Stop listening."""
        await self._runner.cleanup()

    def url(self, directory: Path, reader: str) -> str:
        """The address of a version's directory, as the server at the URL `reader` can reach it."""
        return f"http://{own_address(reader)}:{self._port}{self._path}/{directory.name}"


def own_address(reader: str) -> str:
    """This machine's address on the way to a server; no packet is sent."""
    target = urlsplit(reader)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as found:
        found.connect((target.hostname or "127.0.0.1", target.port or 80))
        address: str = found.getsockname()[0]
        return address
