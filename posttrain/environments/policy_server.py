"""The policy as an HTTP server of this machine: programs that play episodes call it, and the collector answers.

    URL/v1/models, URL/v1/chat/completions (streamed or not), URL/inference/v1/generate

Each episode has a URL of its own, so that calls of many at once are told apart, and one that cannot be guessed. A call
waits until the collector samples for all episodes together; nothing is sent before its answer is whole.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import threading
from collections.abc import Callable
from typing import Any

from posttrain.environments.calls import (
    MODEL,
    Call,
    CallError,
    CallLostError,
    Calls,
    chat_answer,
    chunks,
    generate_answer,
    read_chat,
    read_generate,
)
from posttrain.trajectory import Turn

SPEAKER = "X-Session-ID"
"""The header that names who of an episode's speakers asks."""
_MOST_BYTES = 1 << 30
_START_SECONDS = 30.0


class PolicyServer:
    """Runs in a thread of its own from the first `open` on, until `close`."""

    def __init__(self) -> None:
        self._episodes: dict[str, Calls] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._runner: Any = None
        self._address = ""

    def open(self) -> tuple[str, Calls]:
        """A new episode's URL, and the calls that will come in there."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._loop.run_forever, name="policy server", daemon=True)
            self._thread.start()
            started = asyncio.run_coroutine_threadsafe(self._start(), self._loop)
            self._runner, self._address = started.result(_START_SECONDS)
        key, calls = secrets.token_urlsafe(24), Calls()
        self._episodes[key] = calls
        return f"{self._address}/{key}", calls

    def forget(self, calls: Calls) -> None:
        """The episode is over: its URL is not found any more, and calls that wait are told so."""
        self._episodes = {key: one for key, one in self._episodes.items() if one is not calls}
        calls.close()

    def close(self) -> None:
        """End the thread and what it serves."""
        for calls in [*self._episodes.values()]:
            self.forget(calls)
        if self._loop is None or self._thread is None:
            return
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(_START_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._loop = self._thread = None

    async def _start(self) -> tuple[Any, str]:
        from aiohttp import web

        app = web.Application(client_max_size=_MOST_BYTES)
        app.router.add_get("/{key}/v1/models", self._models)
        app.router.add_post("/{key}/v1/chat/completions", self._chat)
        app.router.add_post("/{key}/inference/v1/generate", self._generate)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=1.0, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return runner, f"http://127.0.0.1:{runner.addresses[0][1]}"

    async def _models(self, request: Any) -> Any:
        from aiohttp import web

        self._calls(request)
        return web.json_response({"object": "list", "data": [{"id": MODEL, "object": "model", "created": 0}]})

    async def _chat(self, request: Any) -> Any:
        from aiohttp import web

        calls, call, turn = await self._turn(request, read_chat)
        answer = chat_answer(call, turn, calls.message(call, turn))
        if not call.options.get("stream"):
            return web.json_response(answer)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
        await response.prepare(request)
        events = [json.dumps(chunk) for chunk in chunks(call, answer)]
        for event in (*events, "[DONE]"):
            await response.write(f"data: {event}\n\n".encode())
        await response.write_eof()
        return response

    async def _generate(self, request: Any) -> Any:
        from aiohttp import web

        _, call, turn = await self._turn(request, read_generate)
        return web.json_response(generate_answer(call, turn))

    async def _turn(self, request: Any, read: Callable[[Any, str], Call]) -> tuple[Calls, Call, Turn]:
        """The call, and the turn that the policy takes in answer."""
        calls = self._calls(request)
        try:
            call = read(await request.json(), request.headers.get(SPEAKER, ""))
            calls.put(call)
            return calls, call, await asyncio.wrap_future(call.answer)
        except (CallError, ValueError) as error:
            raise _refusal(400, str(error)) from error
        except CallLostError as error:
            raise _refusal(410, str(error)) from error

    def _calls(self, request: Any) -> Calls:
        calls = self._episodes.get(request.match_info["key"])
        if calls is None:
            raise _refusal(404, "no such episode")
        return calls


def _refusal(status: int, why: str) -> Exception:
    from aiohttp import web

    kinds = {400: web.HTTPBadRequest, 404: web.HTTPNotFound, 410: web.HTTPGone}
    error = {"error": {"message": why, "type": "invalid_request_error", "code": status}}
    return kinds[status](text=json.dumps(error), content_type="application/json")
