"""One replica as the trainer talks to it: vLLM's HTTP routes, each call with a deadline, each failure with its text."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from posttrain.config.schema import ServedSettings
from posttrain.errors import RunError
from posttrain.rollout.publish import REFUSED
from posttrain.rollout.server_process import ServerProcess

LOADING = "loading"
"""What a replica says that it runs while its weights change, and after a change that failed."""

_SHOWN_CHARACTERS = 600


class ReplicaError(Exception):
    """A replica did not do what it was asked. refused: it said so itself, and another try would end the same way."""

    def __init__(self, text: str, *, refused: bool = False) -> None:
        super().__init__(text)
        self.refused = refused


@dataclass
class Replica:
    """A server, what is known of it, and the calls it answers.

    label: the weights that it is known to run (`Version.label`); None where it is not to be used. said: what it has
    last told that it runs. process: where the run has started it itself. last_error: why it went out of use last.
    """

    url: str
    settings: ServedSettings
    process: ServerProcess | None = None
    label: str | None = None
    said: str | None = None
    calls: set[asyncio.Task[dict[str, Any]]] = field(default_factory=set)
    restarts: int = 0
    last_error: str = "not tried yet"
    given_up: bool = False

    async def check(self, session: aiohttp.ClientSession) -> None:
        """Whether it answers at all."""
        await self.get(session, "/health")

    async def describe(self, session: aiohttp.ClientSession) -> dict[str, Any]:
        """Its precision and window, as `server_worker` tells them."""
        found: dict[str, Any] = await self._of_worker(session, "posttrain_describe", [], self.settings.health_seconds)
        return found

    async def running(self, session: aiohttp.ClientSession) -> str:
        """The label of the weights that it runs, by its own account: its engine must be alive to say it."""
        self.said = str((await self.get(session, "/weight_info"))["weight_version"])
        return self.said

    async def load(
        self,
        session: aiohttp.ClientSession,
        version: int,
        label: str,
        how: str,
        work: Callable[[], Awaitable[None]],
    ) -> None:
        """Have it load a version by `work`; how: in which way, for errors.

        Afterwards it runs that version, or says that it is loading: then it is not to be used.
        """
        self.label = None
        await self._say(session, LOADING)
        try:
            await work()
        except ReplicaError as error:
            raise ReplicaError(f"policy version {version} {how}: {error}", refused=error.refused) from error
        await self._say(session, label)
        self.label = label

    async def read(self, session: aiohttp.ClientSession, place: str, digest: str) -> None:
        """Have its workers load the published weights at `place`, as `server_worker` does it."""
        seconds = self.settings.sync_seconds
        await self._of_worker(session, "posttrain_load", [place, digest, str(seconds)], seconds)

    async def generate(self, session: aiohttp.ClientSession, body: dict[str, Any]) -> dict[str, Any]:
        """One completion of `/inference/v1/generate`: its answer whole; ReplicaError also where `drop` ends it."""
        work = self._call(session, "POST", "/inference/v1/generate", self.settings.request_seconds, body)
        call = asyncio.create_task(work)
        self.calls.add(call)
        try:
            return await call
        except asyncio.CancelledError:
            this = asyncio.current_task()
            if this is not None and this.cancelling():
                call.cancel()
                raise
            raise ReplicaError(self.last_error) from None
        finally:
            self.calls.discard(call)

    def drop(self, error: ReplicaError) -> None:
        """Put it out of use and end what it is asked at the moment."""
        self.label = None
        self.last_error = str(error)
        for call in self.calls:
            call.cancel()

    async def get(self, session: aiohttp.ClientSession, path: str) -> dict[str, Any]:
        """What it says at once."""
        return await self._call(session, "GET", path, self.settings.health_seconds)

    async def post(self, session: aiohttp.ClientSession, path: str, body: Any = None) -> None:
        """One call of those that change its weights."""
        await self._call(session, "POST", path, self.settings.sync_seconds, body)

    async def _say(self, session: aiohttp.ClientSession, label: str) -> None:
        await self.post(session, "/update_weight_version", {"new_version": label})

    async def _of_worker(
        self, session: aiohttp.ClientSession, method: str, arguments: list[str], seconds: float
    ) -> Any:
        """A method of its workers: the first one's answer; ReplicaError where any of them fails."""
        body = {"method": method, "args": arguments}
        try:
            found = await self._call(session, "POST", "/collective_rpc", seconds, body)
        except ReplicaError as error:
            text = str(error)
            if REFUSED in text:
                raise ReplicaError(text[text.index(REFUSED) :], refused=True) from error
            if error.refused or method in text:
                allowed = "a server that `posttrain serve` has started, or the line of `posttrain doctor --recipe`"
                raise ReplicaError(f"{text}; allowed: {allowed}", refused=True) from error
            raise
        return found["results"][0]

    async def _call(
        self, session: aiohttp.ClientSession, method: str, path: str, seconds: float, body: Any = None
    ) -> dict[str, Any]:
        """The JSON answer ({} where it is empty); ReplicaError where there is none in time, or one of failure."""
        try:
            async with (
                asyncio.timeout(seconds),
                session.request(method, self.url + path, json=body, headers=_headers()) as answer,
            ):
                content = await answer.read()
        except TimeoutError as error:
            raise ReplicaError(f"{path}: no answer within {seconds:g} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise ReplicaError(f"{path}: {type(error).__name__}: {error}") from error
        if answer.status != 200:
            text = f"{path}: status {answer.status}: {_message(content)}"
            raise ReplicaError(text, refused=400 <= answer.status < 500 or answer.status == 501)
        parsed: dict[str, Any] = json.loads(content) if content else {}
        return parsed

    def why_out(self) -> str:
        """One line: its address and why it is not used, with its own last words where it has died."""
        words = ""
        if self.process is not None and self.process.pid is not None and not self.process.alive:
            words = f"; it ended, and its last lines are ({self.process.log}):\n{self.process.last_words()}"
        return f"{self.url}: {self.last_error}{words}"


def nobody_left(replicas: list[Replica], what: str) -> RunError:
    """The error where no replica is of use: each with its reason."""
    return RunError(f"{what}:\n" + "\n".join(replica.why_out() for replica in replicas))


def _headers() -> dict[str, str]:
    key = os.environ.get("VLLM_API_KEY")
    return {"Authorization": f"Bearer {key}"} if key else {}


def _message(content: bytes) -> str:
    """The text of vLLM's error, wherever it put it."""
    text = content.decode(errors="replace")
    try:
        found = json.loads(text)
    except ValueError:
        return text[:_SHOWN_CHARACTERS]
    if isinstance(found, dict):
        inner = found.get("error", found.get("detail", text))
        text = str(inner.get("message", inner) if isinstance(inner, dict) else inner)
    return text[:_SHOWN_CHARACTERS]
