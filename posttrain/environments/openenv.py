"""Environments behind OpenEnv's WebSocket protocol: any server of it, local or remote, nothing of it installed here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from posttrain.environments import Environment, Observation, Step, told
from posttrain.errors import RecipeError, RunError
from posttrain.trajectory import Message, Prompt


def openenv(
    *,
    url: str,
    action_field: str | None = None,
    observation_field: str | None = None,
    system: str = "",
    solved_return: float = 1.0,
    sessions: int = 32,
    seconds: float = 60.0,
) -> Environment:
    """Episodes on the OpenEnv server at `url`; each is a session of its own, `sessions` at once (its own limit counts).

    action_field: the action's field that takes the policy's text; without it the policy writes a JSON object, and is
    told when it is none. observation_field: the observation's field that is shown; without it all of it, as JSON.
    system: a message in front. solved_return: the episode is solved where its rewards add up to it. The row's columns
    other than its prompt go to reset (seed, episode_id, ...). seconds: of one call. RecipeError where `url` is none.
    """
    if not url.startswith(("http://", "https://", "ws://", "wss://")):
        raise RecipeError(f"environment openenv: url is {url!r}; allowed: http://HOST:PORT (https, ws, wss)")
    address = url.replace("http", "ws", 1).rstrip("/") + "/ws" if url.startswith("http") else url.rstrip("/") + "/ws"
    opening: tuple[Message, ...] = ({"role": "system", "content": system},) if system else ()
    return _OpenEnv(address, action_field, observation_field, opening, solved_return, sessions, seconds)


@dataclass(frozen=True)
class _OpenEnv:
    address: str
    action_field: str | None
    observation_field: str | None
    opening: tuple[Message, ...]
    solved_return: float
    capacity: int
    seconds: float

    async def reset(self, prompt: Prompt, columns: Mapping[str, Any], seed: int) -> tuple[Observation, _Session]:
        """A new session: the server's first observation."""
        import aiohttp

        client = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None, sock_connect=self.seconds))
        try:
            socket = await client.ws_connect(self.address, max_msg_size=0)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            await client.close()
            raise RunError(f"environment openenv: {self.address} cannot be reached: {error}") from error
        session = _Session(self, client, socket)
        asked = {"seed": seed, **{name: value for name, value in columns.items() if name != "prompt"}}
        try:
            first = await session.ask("reset", asked)
        except BaseException:
            await session.close()
            raise
        return Observation((*self.opening, *told(self.shown(first["observation"])))), session

    def close(self) -> None:
        """Sessions are the episodes'."""

    def shown(self, observation: Mapping[str, Any]) -> str:
        """What the policy reads of an observation."""
        if self.observation_field is None:
            return json.dumps(observation, ensure_ascii=False)
        if self.observation_field not in observation:
            raise RecipeError(
                f"environment openenv: observation_field is {self.observation_field!r}; the server's observations have "
                f"{', '.join(sorted(observation))}"
            )
        value = observation[self.observation_field]
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


class SessionError(Exception):
    """The server refused or failed: the episode's failure."""


@dataclass
class _Session:
    environment: _OpenEnv
    client: Any
    socket: Any
    earned: float = field(default=0.0)

    async def step(self, action: str) -> Step:
        """The server's answer; an action that it does not take is invalid."""
        given: Any = {self.environment.action_field: action}
        if self.environment.action_field is None:
            try:
                given = json.loads(action)
            except ValueError as error:
                return Step(invalid=f"not a JSON object: {error}")
            if not isinstance(given, dict):
                return Step(invalid="not a JSON object")
        try:
            answer = await self.ask("step", given)
        except _RefusedError as error:
            return Step(invalid=str(error))
        reward = answer.get("reward")
        self.earned += reward or 0.0
        done = bool(answer.get("done"))
        solved = self.earned >= self.environment.solved_return if done else None
        shown = self.environment.shown(answer["observation"])
        return Step(Observation(told(shown)), reward=reward, terminated=done, solved=solved)

    async def close(self) -> None:
        """End the session."""
        import aiohttp

        try:
            await self.socket.send_json({"type": "close"})
            await self.socket.close()
        except (aiohttp.ClientError, ConnectionError):  # it is closed already
            pass
        finally:
            await self.client.close()

    async def ask(self, kind: str, data: Mapping[str, Any]) -> Mapping[str, Any]:
        """The data of the answer to one message."""
        await self.socket.send_json({"type": kind, "data": dict(data)})
        answer = await self.socket.receive_json(timeout=self.environment.seconds)
        found: Mapping[str, Any] = answer.get("data") or {}
        if answer.get("type") == "error":
            text = f"{found.get('code')}: {found.get('message')}"
            raise _RefusedError(text) if found.get("code") == "VALIDATION_ERROR" else SessionError(text)
        return found


class _RefusedError(SessionError):
    """The action does not fit the server's schema."""
