"""The OpenEnv client against a server that speaks its protocol (messages as openenv 0.10's server sends them)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import WSMsgType, web

from posttrain.environments import Environment, Observation
from posttrain.environments.openenv import SessionError, openenv
from posttrain.errors import RecipeError, RunError


async def guess(request: web.Request) -> web.WebSocketResponse:
    """Guess the seed: rewarded 1 and over where it is right."""
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    goal = 0
    async for message in socket:
        if message.type is not WSMsgType.TEXT:
            break
        asked = message.json()
        if asked["type"] == "close":
            break
        data = asked["data"]
        if asked["type"] == "reset":
            goal = data["seed"]
            answer: dict[str, Any] = {"observation": {"text": "guess", "level": data["level"]}, "reward": None}
        elif not isinstance(data.get("guess"), str):
            error = {"code": "VALIDATION_ERROR", "message": "guess: a string is required"}
            await socket.send_json({"type": "error", "data": error})
            continue
        elif data["guess"] == "crash":
            error = {"code": "EXECUTION_ERROR", "message": "the environment raised"}
            await socket.send_json({"type": "error", "data": error})
            continue
        else:
            right = data["guess"] == str(goal)
            answer = {"observation": {"text": "right" if right else "wrong"}, "reward": float(right), "done": right}
        await socket.send_json({"type": "observation", "data": answer})
    return socket


def play(use: Callable[[str], Awaitable[None]]) -> None:
    async def run() -> None:
        app = web.Application()
        app.router.add_get("/ws", guess)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        assert site._server is not None
        (port, *_) = [one.getsockname()[1] for one in site._server.sockets]  # type: ignore[attr-defined]
        try:
            await use(f"http://127.0.0.1:{port}")
        finally:
            await runner.cleanup()

    asyncio.run(run())


async def started(environment: Environment, seed: int) -> tuple[Observation, Any]:
    return await environment.reset("", {"seed": seed, "level": 2, "prompt": "x"}, 99)


def test_sessions_side_by_side() -> None:
    async def use(url: str) -> None:
        environment = openenv(url=url, action_field="guess", observation_field="text", system="Play.")
        assert environment.capacity == 32
        episodes = await asyncio.gather(*(started(environment, seed) for seed in range(6)))
        for seed, (observation, episode) in enumerate(episodes):
            assert [one["content"] for one in observation.messages] == ["Play.", "guess"]
            wrong = await episode.step("no")
            assert (wrong.reward, wrong.terminated, wrong.solved) == (0.0, False, None)
            right = await episode.step(str(seed))
            assert (right.reward, right.terminated, right.solved) == (1.0, True, True)
            await episode.close()

    play(use)


def test_actions_as_json() -> None:
    async def use(url: str) -> None:
        observation, episode = await started(openenv(url=url), 3)
        assert observation.messages[-1]["content"] == '{"text": "guess", "level": 2}'
        assert (await episode.step("3")).invalid == "not a JSON object"
        assert "not a JSON object" in (await episode.step("{")).invalid
        assert (await episode.step('{"gues": "3"}')).invalid == "VALIDATION_ERROR: guess: a string is required"
        with pytest.raises(SessionError, match="EXECUTION_ERROR: the environment raised"):
            await episode.step('{"guess": "crash"}')
        assert (await episode.step('{"guess": "3"}')).solved is True
        await episode.close()

    play(use)


def test_mistakes() -> None:
    with pytest.raises(RecipeError, match="url is 'localhost'"):
        openenv(url="localhost")
    with pytest.raises(RunError, match="cannot be reached"):
        asyncio.run(started(openenv(url="http://127.0.0.1:9"), 0))

    async def use(url: str) -> None:
        with pytest.raises(RecipeError, match="observation_field is 'txt'; the server's observations have level, text"):
            await started(openenv(url=url, observation_field="txt"), 0)

    play(use)
