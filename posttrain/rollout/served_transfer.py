"""How weights get from the main rank to the replicas: as files, here or over HTTP; over NCCL in `served_nccl`."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

import aiohttp
import torch
from torch import Tensor

from posttrain.errors import RunError
from posttrain.rollout.publish import Published, Publisher
from posttrain.rollout.served_files import FileServer
from posttrain.rollout.served_replica import Replica


class Version(Protocol):
    """Weights that replicas are to run. label: names these and no others; what a replica says that it runs."""

    @property
    def version(self) -> int:
        """The policy version."""

    @property
    def label(self) -> str:
        """As in `12-3f2a9c0d1e4b5a67`."""


V = TypeVar("V", bound=Version)


class Transfer(Protocol[V]):
    """One way for weights, on the main rank. What `publish` gives is told to the other ranks too (pickled)."""

    async def open(self) -> None:
        """Be ready; in the event loop's thread, as all that waits for replicas."""

    def publish(self, weights: Iterable[tuple[str, Tensor]], version: int) -> V:
        """Hold `weights` for replicas that ask now or later. All are taken even where it fails; RunError then."""

    async def load(self, session: aiohttp.ClientSession, replica: Replica, published: V) -> None:
        """Have a replica run a version; ReplicaError where it does not, in `sync_seconds`."""

    async def close(self) -> None:
        """Let go of what is held."""


class FileTransfer:
    """Files of safetensors in `directory`, which replicas read where they see it too, or fetch from here (`http`)."""

    def __init__(self, directory: Path, dtype: torch.dtype, *, http: bool) -> None:
        self._publisher = Publisher(directory, dtype)
        self._server = FileServer(directory) if http else None

    async def open(self) -> None:
        """Listen, where files are fetched."""
        if self._server is not None:
            await self._server.open()

    def publish(self, weights: Iterable[tuple[str, Tensor]], version: int) -> Published:
        """Write them; see `Publisher.publish`."""
        try:
            return self._publisher.publish(weights, version)
        except OSError as error:
            place = self._publisher.directory
            text = f"policy version {version} cannot be written to {place}: {error.strerror or error}"
            raise RunError(text) from error

    async def load(self, session: aiohttp.ClientSession, replica: Replica, published: Published) -> None:
        """Have a replica read them."""
        here = published.directory
        place = self._server.url(here, replica.url) if self._server is not None else str(here)
        work = partial(replica.read, session, place, published.digest)
        await replica.load(session, published.version, published.label, f"at {place}", work)

    async def close(self) -> None:
        """Stop listening, and remove the files: nobody reads them any more."""
        if self._server is not None:
            await self._server.close()
        self._publisher.remove()
