"""A client of OpenAI-compatible servers: completions with deadlines, retries and a limit of requests at a time.

What a request leaves out (penalties, top_k) is as the server's own defaults have it. The key is read from an
environment variable (OPENAI_API_KEY unless another is named) and sent to that server alone.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from posttrain.errors import UserError, did_you_mean
from posttrain.trajectory import Prompt, StopReason

if TYPE_CHECKING:
    import aiohttp

KEY = "OPENAI_API_KEY"
_LIST_SECONDS = 30.0
_MOST_PAUSE_SECONDS = 60.0
_SHOWN_CHARACTERS = 300
_BUSY = (408, 409, 425, 429)
_UNUSABLE = {401: "the key is read from {key}", 403: "the key is read from {key}", 404: "--model-name, or the address"}


class EndpointError(Exception):
    """A request came to nothing. status: of the server's answer, where there was one.

    again: another try may end otherwise, after `wait_seconds` where the server says so.
    """

    def __init__(
        self, text: str, status: int | None = None, *, again: bool = False, wait_seconds: float | None = None
    ) -> None:
        super().__init__(text)
        self.status, self.again, self.wait_seconds = status, again, wait_seconds


@dataclass(frozen=True)
class Answer:
    """What a server completed: the text, why it ended, and how many tokens it says that it sampled and read."""

    text: str
    stop_reason: StopReason
    num_tokens: int
    num_prompt_tokens: int


@dataclass(frozen=True)
class Endpoint:
    """A server's address, which of its models is asked, and how patiently.

    url: up to and with its version, as in http://host:8000/v1. request_seconds: the deadline of one try. attempts: of
    one request; before the n-th repetition it waits as long as the server asks for, else pause_seconds * 2^(n-1).
    """

    url: str
    model: str
    concurrency: int = 32
    request_seconds: float = 600.0
    attempts: int = 5
    pause_seconds: float = 1.0
    key: str = KEY

    async def ask(self, requests: Sequence[tuple[Prompt, Mapping[str, Any]]]) -> list[Answer | EndpointError]:
        """An answer, or why there is none, to each (prompt, fields), in order; `concurrency` are under way at a time.

        A conversation goes to /chat/completions, plain text to /completions. fields: of the request, such as
        {"temperature": 0.6}. UserError where the server refuses the key or does not know the model.
        """
        import aiohttp

        free = asyncio.Semaphore(self.concurrency)

        async def one(session: aiohttp.ClientSession, prompt: Prompt, fields: Mapping[str, Any]) -> Any:
            async with free:
                return await self._patiently(session, prompt, fields)

        async with aiohttp.ClientSession(
            headers=_headers(self.key), connector=aiohttp.TCPConnector(limit=0)
        ) as session:
            return list(await asyncio.gather(*(one(session, *request) for request in requests)))

    async def _patiently(
        self, session: aiohttp.ClientSession, prompt: Prompt, fields: Mapping[str, Any]
    ) -> Answer | EndpointError:
        attempt = 0
        while True:
            attempt += 1
            try:
                return await self._once(session, prompt, fields)
            except EndpointError as error:
                if error.status in _UNUSABLE:
                    hint = _UNUSABLE[error.status].format(key=self.key)
                    raise UserError(f"{self.url}, model {self.model}: {error}; {hint}") from error
                if not error.again or attempt >= self.attempts:
                    return error
                asked = self.pause_seconds * 2 ** (attempt - 1) if error.wait_seconds is None else error.wait_seconds
            await asyncio.sleep(min(asked, _MOST_PAUSE_SECONDS))

    async def _once(self, session: aiohttp.ClientSession, prompt: Prompt, fields: Mapping[str, Any]) -> Answer:
        body: dict[str, Any] = {"model": self.model, **fields}
        if isinstance(prompt, str):
            path, body["prompt"] = "/completions", prompt
        else:
            path, body["messages"] = "/chat/completions", [dict(message) for message in prompt]
        content = await _call(session, "POST", self.url + path, self.request_seconds, body)
        try:
            choice = content["choices"][0]
            text = choice["text"] if isinstance(prompt, str) else text_of(choice["message"])
            used = content.get("usage") or {}
            reason = StopReason.LENGTH if choice.get("finish_reason") == "length" else StopReason.STOP
            return Answer(text, reason, int(used.get("completion_tokens", 0)), int(used.get("prompt_tokens", 0)))
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise EndpointError(f"an answer of another form: {str(content)[:_SHOWN_CHARACTERS]}") from error


def find_endpoint(url: str, model: str | None, concurrency: int = 32, key: str = KEY) -> Endpoint:
    """The endpoint at `url`, asked once for its models; model None is the only one that it has.

    UserError where nothing answers there, the key is refused, or it does not list the model.
    """
    url = url.rstrip("/")
    try:
        known = asyncio.run(_models(url, key))
    except EndpointError as error:
        hint = _UNUSABLE.get(
            error.status or 0, "allowed: the address of an OpenAI-compatible server, http://HOST:8000/v1"
        )
        raise UserError(f"{url}: {error}; {hint.format(key=key)}") from error
    if model is None and len(known) == 1:
        (model,) = known
    if model is None:
        raise UserError(f"--model-name: missing; models at {url}: {', '.join(known) or 'it lists none'}")
    if known and model not in known:
        raise UserError(f"--model-name {model!r}: not a model at {url}; {did_you_mean(model, known)}")
    return Endpoint(url, model, concurrency, key=key)


async def _models(url: str, key: str) -> list[str]:
    """The names of the models at `url`; none where it has no list of them."""
    import aiohttp

    try:
        async with aiohttp.ClientSession(headers=_headers(key)) as session:
            content = await _call(session, "GET", url + "/models", _LIST_SECONDS)
        return [str(one["id"]) for one in content["data"]]
    except EndpointError as error:
        if error.status in (404, 405, 501):
            return []
        raise
    except (KeyError, TypeError):
        return []


async def _call(
    session: aiohttp.ClientSession, method: str, url: str, seconds: float, body: Mapping[str, Any] | None = None
) -> Any:
    """The JSON answer; EndpointError where there is none in time, or one of failure."""
    import aiohttp

    try:
        async with asyncio.timeout(seconds), session.request(method, url, json=body) as answer:
            content = await answer.read()
    except TimeoutError as error:
        raise EndpointError(f"no answer within {seconds:g} s", again=True) from error
    except aiohttp.InvalidURL as error:
        raise EndpointError(f"not an address: {error}") from error
    except (aiohttp.ClientError, OSError) as error:
        raise EndpointError(f"{type(error).__name__}: {error}", again=True) from error
    if answer.status != 200:
        again = answer.status in _BUSY or answer.status >= 500
        wait = answer.headers.get("Retry-After", "")
        seconds_to_wait = float(wait) if wait.isdecimal() else None
        text = f"status {answer.status}: {_message(content)}"
        raise EndpointError(text, answer.status, again=again, wait_seconds=seconds_to_wait)
    try:
        return json.loads(content)
    except ValueError as error:
        raise EndpointError(f"not JSON: {content[:_SHOWN_CHARACTERS]!r}", again=True) from error


def text_of(message: Mapping[str, Any]) -> str:
    """The text of an assistant's message; calls of tools that the server read out of it stand in it again."""
    functions = [call["function"] for call in message.get("tool_calls") or ()]
    calls = [f'{{"name": {json.dumps(one["name"])}, "arguments": {one["arguments"]}}}' for one in functions]
    return (message.get("content") or "") + "".join(f"\n<tool_call>\n{call}\n</tool_call>" for call in calls)


def _headers(variable: str) -> dict[str, str]:
    key = os.environ.get(variable)
    return {"Authorization": f"Bearer {key}"} if key else {}


def _message(content: bytes) -> str:
    """The text of a server's error, wherever it put it."""
    text = content.decode(errors="replace")
    try:
        found = json.loads(text)
    except ValueError:
        return text[:_SHOWN_CHARACTERS]
    inner = found.get("error", found.get("message", found)) if isinstance(found, dict) else found
    return str(inner.get("message", inner) if isinstance(inner, dict) else inner)[:_SHOWN_CHARACTERS]
