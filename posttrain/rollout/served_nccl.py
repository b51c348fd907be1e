"""Weights over NCCL: from the main rank's GPU to those of the replicas, through vLLM's own weight transfer.

Written after the source of vLLM 0.32 (`distributed/weight_transfer`, `entrypoints/rl/online/api_router.py`). It HAS NOT
RUN ON GPUS YET: only its calls of a replica's routes, their deadlines and their errors are tested.

Each replica is a NCCL group of its own: rank 0 is the trainer, its workers (tensor, pipeline and data parallel) follow.
So a replica that hangs, or comes back later, concerns no other. A group is kept while the replica says that it runs
what the group brought last; else a new one is made.

A version is held on the host, in the sampler's precision, until the next is loaded (for a moment there are two): a
replica may come back while the trainer changes its own weights. On the main rank's GPU this takes the room of the
largest weight, a few times over. Not covered: CUDA IPC, workers that reach the trainer at another address than their
server does.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import threading
from collections.abc import Callable, Coroutine, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

import aiohttp
import torch
from torch import Tensor

from posttrain.config.schema import ServedSettings
from posttrain.errors import UserError
from posttrain.rollout.served_files import own_address
from posttrain.rollout.served_replica import Replica, ReplicaError
from posttrain.rollout.vllm_process import as_it_was, missing

_LOCK_SECONDS = 1.0
_NOT_CONFIGURED = "Weight transfer not configured"  # what vLLM says


@dataclass(frozen=True)
class Held:
    """A version that is held on the main rank. label: drawn anew each time, so that no other weights ever have it."""

    version: int
    label: str


class Group(Protocol):
    """The trainer's end of a group with one replica's workers; all but `end` block, in a thread of their own."""

    def join(self, address: str, port: int, world_size: int) -> None:
        """Meet the workers at `address`, where rank 0 listens."""

    def send(self, weights: Mapping[str, Tensor]) -> None:
        """Send all, in order; returns once they are sent."""

    def end(self) -> None:
        """Give up: what is in progress fails."""


class NcclTransfer:
    """A `Transfer` over NCCL, in `dtype` where a weight is a float. make_group: a new trainer's end."""

    def __init__(self, dtype: torch.dtype, settings: ServedSettings, make_group: Callable[[], Group]) -> None:
        self._dtype, self._settings, self._make_group = dtype, settings, make_group
        self._held: dict[str, dict[str, Tensor]] = {}
        self._groups: dict[str, tuple[Group, str]] = {}  # of a replica's URL: its group, and what that brought last

    async def open(self) -> None:
        """Nothing: groups are made when they are needed."""

    def publish(self, weights: Iterable[tuple[str, Tensor]], version: int) -> Held:
        """Copy them to the host."""
        taken, held = iter(weights), dict[str, Tensor]()
        try:
            for name, tensor in taken:
                to = self._dtype if tensor.is_floating_point() else tensor.dtype
                held[name] = tensor.detach().to("cpu", to, copy=True).contiguous()
        finally:
            for _ in taken:  # sharded weights are gathered by all ranks together
                pass
        published = Held(version, f"{version}-{secrets.token_hex(8)}")
        self._held[published.label] = held
        return published

    async def load(self, session: aiohttp.ClientSession, replica: Replica, published: Held) -> None:
        """Send a version to a replica's workers; ReplicaError where it does not get there within `sync_seconds`."""
        weights = self._of(published)
        kept, brought = self._groups.pop(replica.url, (None, None))
        if kept is not None and replica.said != brought:  # started again: its end of the group is gone
            _aside(kept.end)
            kept = None
        group = kept or self._make_group()

        async def work() -> None:
            seconds = self._settings.sync_seconds
            try:
                async with asyncio.timeout(seconds):
                    if kept is None:
                        await _join(session, replica, group)
                    await _send(session, replica, group, weights)
            except (ReplicaError, TimeoutError, RuntimeError, ValueError, OSError) as error:
                raise _explained(error, seconds) from error

        try:
            await replica.load(session, published.version, published.label, "over NCCL", work)
            self._groups[replica.url] = group, published.label
        finally:
            if replica.url not in self._groups:
                _aside(group.end)

    def _of(self, published: Held) -> dict[str, Tensor]:
        """The weights of a version; those of older ones are let go. ReplicaError where a newer one was asked for."""
        if published.label not in self._held:
            raise ReplicaError(f"policy version {published.version} is not held any more")
        for label in list(self._held):
            if label == published.label:
                break
            del self._held[label]
        return self._held[published.label]

    async def close(self) -> None:
        """End the groups."""
        await asyncio.gather(*(_aside(group.end) for group, _ in self._groups.values()))
        self._held, self._groups = {}, {}


class NcclGroup:
    """The trainer's end of a group on `device`, as vLLM's own trainer side is: it must be installed here too.

    NCCL's calls cannot be interrupted: what hangs is left behind in its thread, and aborted by `end`.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._lock = threading.Lock()
        self._communicator: Any = None
        self._ended = False

    def join(self, address: str, port: int, world_size: int) -> None:
        """Meet the workers. RuntimeError where NCCL is not to be had."""
        from vllm.distributed.weight_transfer.nccl_common import trainer_init

        with torch.cuda.device(self._device):
            made = trainer_init({"master_address": address, "master_port": port, "world_size": world_size})
        if made.disabled:
            raise RuntimeError("vLLM finds no NCCL in the trainer's process")
        with self._lock:
            self._communicator = made
        if self._ended:
            self.end()

    def send(self, weights: Mapping[str, Tensor]) -> None:
        """Send all, one by one as the workers take them, on a stream of its own: the trainer's do not wait for it."""
        with torch.cuda.device(self._device):
            cuda: Any = torch.cuda  # whose streams have no types
            stream = cuda.Stream()
            with torch.cuda.stream(stream):
                for tensor in weights.values():
                    self._broadcast(tensor.to(self._device), stream)
            stream.synchronize()

    def _broadcast(self, tensor: Tensor, stream: Any) -> None:
        with self._lock:
            if self._ended:  # the communicator is freed
                raise RuntimeError("the group was given up")
            self._communicator.broadcast(tensor, src=0, stream=stream)

    def end(self) -> None:
        """Abort the communicator; a call that hangs in it holds the lock, and is what this frees."""
        self._ended = True
        locked = self._lock.acquire(timeout=_LOCK_SECONDS)
        try:
            if self._communicator is not None:
                self._communicator.destroy()
        finally:
            if locked:
                self._lock.release()


def nccl_transfer(dtype: torch.dtype, settings: ServedSettings, device: torch.device) -> NcclTransfer:
    """The transfer from `device`. UserError where that is no GPU; MissingDependencyError without vLLM."""
    if device.type != "cuda":
        text = f"'nccl' is not allowed: the trainer runs on {device.type}, and NCCL joins GPUs"
        raise UserError(f"rollout.weights_transfer: {text}; allowed: files, http")
    with as_it_was():
        try:
            import_module("vllm.distributed.weight_transfer.nccl_common")  # in a thread it would move random states
        except ModuleNotFoundError as error:
            if error.name != "vllm":
                raise
            raise missing() from error
    index = torch.cuda.current_device() if device.index is None else device.index
    return NcclTransfer(dtype, settings, lambda: NcclGroup(torch.device("cuda", index)))


def update_info(weights: Mapping[str, Tensor]) -> dict[str, list[Any]]:
    """What the workers are told of the weights that come: names, types and shapes, in the order of sending."""
    return {
        "names": list(weights),
        "dtype_names": [str(tensor.dtype).removeprefix("torch.") for tensor in weights.values()],
        "shapes": [list(tensor.shape) for tensor in weights.values()],
    }


async def _join(session: aiohttp.ClientSession, replica: Replica, group: Group) -> None:
    await replica.post(session, "/shutdown_weight_transfer_engine")  # its end of a former group
    world_size = 1 + (await replica.get(session, "/get_world_size"))["world_size"]
    address = own_address(replica.url)
    with socket.create_server((address, 0)) as found:
        port: int = found.getsockname()[1]
    info = {
        "master_address": address,
        "master_port": port,
        "rank_offset": 1,
        "world_size": world_size,
        "packed": False,
    }
    asked = replica.post(session, "/init_weight_transfer_engine", {"init_info": info})
    await _together(asked, lambda: group.join(address, port, world_size))


async def _send(session: aiohttp.ClientSession, replica: Replica, group: Group, weights: Mapping[str, Tensor]) -> None:
    await replica.post(session, "/start_weight_update")
    asked = replica.post(session, "/update_weights", {"update_info": update_info(weights)})
    await _together(asked, lambda: group.send(weights))
    await replica.post(session, "/finish_weight_update")


async def _together(asked: Coroutine[Any, Any, object], work: Callable[[], None]) -> None:
    """A replica's call and our side of it, which meet in NCCL; the first error of either."""
    call = asyncio.ensure_future(asked)
    try:
        await asyncio.gather(call, _aside(work))
    finally:
        call.cancel()


def _aside(work: Callable[[], None]) -> asyncio.Future[None]:
    """`work` in a thread that nobody needs to wait for, now or when the process ends."""
    future: Future[None] = Future()
    future.set_running_or_notify_cancel()

    def run() -> None:
        try:
            work()
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(None)

    threading.Thread(target=run, name="nccl", daemon=True).start()
    return asyncio.wrap_future(future)


def _explained(error: Exception, seconds: float) -> ReplicaError:
    said = f"no end within {seconds:g} s" if isinstance(error, TimeoutError) else str(error)
    text = said if isinstance(error, ReplicaError | TimeoutError) else f"{type(error).__name__}: {said}"
    refused = getattr(error, "refused", False)
    if _NOT_CONFIGURED in said:
        text, refused = f'{text}; allowed: a server with --weight-transfer-config \'{{"backend": "nccl"}}\'', True
    return ReplicaError(f"{text} (weights_transfer: files or http needs no NCCL)", refused=refused)
