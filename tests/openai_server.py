"""An OpenAI-compatible server for tests: it samples with a real engine, and fails as it is told to."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from aiohttp import web

from posttrain.data.chat import encode_context, stop_token_ids
from posttrain.rollout.engine import Request, Sampling
from posttrain.rollout.transformers_engine import TransformersEngine
from posttrain.trajectory import StopReason

NAME = "tiny"
KEY = "secret"


class OpenAIServer:
    """Serves a model at `url` from a thread.

    faults: what the next requests get in place of an answer, first to last: a status, or "hang". seen: the bodies of
    all requests. most_at_once: how many were under way together.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.engine, self.tokenizer = TransformersEngine(model, dtype="float32"), tokenizer
        self.faults: list[int | str] = []
        self.seen: list[dict[str, Any]] = []
        self.under_way, self.most_at_once = 0, 0
        self._closing = asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._runner, port = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(30)
        self.url = f"http://127.0.0.1:{port}/v1"

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._closing.set)
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _start(self) -> tuple[web.AppRunner, int]:
        app = web.Application()
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/chat/completions", self._complete)
        app.router.add_post("/v1/completions", self._complete)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return runner, runner.addresses[0][1]

    async def _models(self, request: web.Request) -> web.Response:
        if request.headers.get("Authorization") != f"Bearer {KEY}":
            return web.json_response({"error": {"message": "Incorrect API key"}}, status=401)
        return web.json_response({"data": [{"id": NAME}]})

    async def _complete(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.seen.append(body)
        self.under_way += 1
        self.most_at_once = max(self.most_at_once, self.under_way)
        try:
            await asyncio.sleep(0.01)
            fault = self.faults.pop(0) if self.faults else None
            if fault == "hang":
                await self._closing.wait()
            if isinstance(fault, int):
                headers = {"Retry-After": "0"} if fault == 429 else {}
                return web.json_response({"error": {"message": f"as told: {fault}"}}, status=fault, headers=headers)
            return web.json_response(self._answer(body))
        finally:
            self.under_way -= 1

    def _answer(self, body: dict[str, Any]) -> dict[str, Any]:
        prompt = tuple(body["messages"]) if "messages" in body else body["prompt"]
        context = encode_context(prompt, self.tokenizer)
        sampling = Sampling(
            body["max_tokens"], stop_token_ids(self.tokenizer), body.get("temperature", 1.0), body.get("top_p", 1.0)
        )
        (made,) = self.engine.generate([Request(context.token_ids, body["seed"], context.pictures)], sampling)
        text = self.tokenizer.decode(list(made.token_ids), skip_special_tokens=True)
        said = {"message": {"role": "assistant", "content": text}} if "messages" in body else {"text": text}
        reason = "length" if made.stop_reason is StopReason.LENGTH else "stop"
        return {
            "choices": [said | {"finish_reason": reason}],
            "usage": {"prompt_tokens": len(context.token_ids), "completion_tokens": len(made.token_ids)},
        }
