"""Calls of a model by a program that plays an episode with it: what its requests ask, and what they are answered.

Two APIs: OpenAI's chat completions, and vLLM's /inference/v1/generate, where tokens go in and tokens come out. What a
request says of sampling (temperature, max_tokens, stop tokens, seed) is not read: the recipe says how the policy is
sampled, and only so its logprobs are what is trained on. What would change the meaning of an answer is refused: several
choices, a forced tool or format, stop strings, pictures.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

from posttrain.environments import Observation
from posttrain.environments.tool_calls import ToolCall, parse_tool_calls, typed
from posttrain.errors import PosttrainError
from posttrain.trajectory import Message, StopReason, Turn

MODEL = "policy"
"""The only model there is."""


class CallError(Exception):
    """A request that cannot be answered as it asks."""


class CallLostError(Exception):
    """A call that nobody answers any more."""


@dataclass(eq=False)
class Call:
    """A request. token_ids: what it asks to continue; None: `messages`, with `tools`. speaker: who of them asks.

    options: of its answer's form ("stream", "logprobs", ...). answer: the turn that the policy took.
    """

    messages: tuple[Message, ...] = ()
    tools: tuple[Mapping[str, Any], ...] = ()
    token_ids: tuple[int, ...] | None = None
    speaker: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    answer: Future[Turn] = field(default_factory=Future)

    @property
    def abandoned(self) -> bool:
        """Whether who asked no longer waits for the answer."""
        return self.answer.cancelled()


@dataclass(frozen=True)
class Ended:
    """How a program ended: what it earned, None where nothing says so; error: why it failed, None where it did not.

    mistake: of the user's, which ends the run.
    """

    reward: float | None = None
    truncated: bool = False
    info: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None
    mistake: PosttrainError | None = None


def read_chat(body: Any, speaker: str = "") -> Call:
    """The call of a request to /v1/chat/completions. CallError where it asks for what is not done here."""
    asked = _checked(body)
    for name, allowed in (("tool_choice", ("auto", "none")), ("response_format", ({"type": "text"},))):
        if asked.get(name) is not None and asked[name] not in allowed:
            raise CallError(f"{name} is {asked[name]!r}; allowed: {allowed[0]!r}")
    messages = asked.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(one, dict) for one in messages):
        raise CallError("messages: missing; allowed: a list of at least one")
    tools = () if asked.get("tool_choice") == "none" else tuple(asked.get("tools") or ())
    return Call(_messages(messages), tools, speaker=speaker, options=asked)


def read_generate(body: Any, speaker: str = "") -> Call:
    """The call of a request to /inference/v1/generate. CallError where it asks for what is not done here."""
    asked = _checked(body)
    _checked(asked.get("sampling_params") or {})
    ids = asked.get("token_ids")
    if not isinstance(ids, list) or not ids or not all(type(one) is int and one >= 0 for one in ids):
        raise CallError("token_ids: missing; allowed: a list of at least one token")
    for name in ("features", "content_parts", "stream"):
        if asked.get(name):
            raise CallError(f"{name}: not covered; allowed: tokens of text, and an answer in one piece")
    return Call(token_ids=tuple(ids), speaker=speaker, options=asked)


def _checked(body: Any) -> dict[str, Any]:
    if not isinstance(body, dict):
        raise CallError("the request is no JSON object")
    if body.get("n") not in (None, 1):
        raise CallError(f"n is {body['n']!r}; allowed: 1")
    if body.get("stop"):
        raise CallError(f"stop is {body['stop']!r}; allowed: none, since the recipe says where a completion ends")
    return body


def _messages(given: Sequence[Mapping[str, Any]]) -> tuple[Message, ...]:
    """Messages as chat templates take them: texts, arguments of calls as objects, tools' answers with their name."""
    names: dict[str, str] = {}
    found = []
    for message in given:
        kept = {key: value for key, value in message.items() if value is not None}
        kept["content"] = _text(message.get("content"))
        kept["role"] = "system" if message.get("role") == "developer" else str(message.get("role"))
        if message.get("tool_calls"):
            kept["tool_calls"] = [_called(one, names) for one in message["tool_calls"]]
        if kept["role"] == "tool" and message.get("tool_call_id") in names:
            kept.setdefault("name", names[message["tool_call_id"]])
        found.append(kept)
    return tuple(found)


def _text(content: Any) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list) or not all(isinstance(part, dict) and "text" in part for part in content):
        raise CallError("content: not text; allowed: a text, or parts that are texts")
    return "".join(str(part["text"]) for part in content)


def _called(call: Any, names: dict[str, str]) -> dict[str, Any]:
    """A call of a tool with its arguments as an object where they are JSON; its name is noted by its id."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise CallError('tool_calls: a call must be {"id": ..., "type": "function", "function": {"name": ..., ...}}')
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        with suppress(ValueError):
            arguments = json.loads(arguments or "{}")
    names[str(call.get("id"))] = function["name"]
    return {**call, "function": {**function, "arguments": arguments}}


class Calls:
    """The calls of one episode's program in the order that they came in, and its end; used from any thread."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._events: deque[Call | Ended] = deque()
        self._waiting: Future[Call | Ended] | None = None
        self._open: list[Call] = []
        self._closed = False
        self._trained: dict[str, Future[bool]] = {}
        self._said: dict[tuple[int, str, tuple[str, ...]], str] = {}
        self._num_tools = 0

    def put(self, event: Call | Ended) -> None:
        """A call came in, or the program ended. CallLostError for a call to an episode that is over."""
        with self._lock:
            if isinstance(event, Call):
                if self._closed:
                    raise CallLostError("the episode is over")
                self._open.append(event)
            if self._waiting is not None and self._waiting.set_running_or_notify_cancel():
                self._waiting.set_result(event)
            else:
                self._events.append(event)
            self._waiting = None

    def next(self) -> Future[Call | Ended]:
        """The call that comes next, or the end."""
        found: Future[Call | Ended] = Future()
        with self._lock:
            if self._events:
                found.set_result(self._events.popleft())
            else:
                self._waiting = found
        return found

    def answer(self, call: Call, turn: Turn) -> None:
        """Tell who asked what the policy said; nobody where it is abandoned."""
        with self._lock:
            self._open.remove(call)
        with suppress(InvalidStateError):
            call.answer.set_result(turn)

    def close(self) -> None:
        """The episode is over: no call is answered any more."""
        with self._lock:
            self._closed = True
            left, self._open = self._open, []
        for call in left:
            with suppress(InvalidStateError):
                call.answer.set_exception(CallLostError("the episode is over"))

    def trained(self, speaker: str) -> Future[bool]:
        """Whether what this speaker says is trained on, once that is known."""
        with self._lock:
            return self._trained.setdefault(speaker, Future())

    def know(self, speaker: str, trained: bool) -> None:
        """Whether what this speaker says is trained on."""
        with suppress(InvalidStateError):
            self.trained(speaker).set_result(trained)

    def observation(self, call: Call) -> Observation:
        """What the policy reads: what it said before stands there in its own words, not as the answers put it."""
        if call.token_ids is not None:
            return Observation(prompt_ids=call.token_ids)
        messages = list(call.messages)
        for place, message in enumerate(messages):
            said = self._said.get(_key(place, message)) if message["role"] == "assistant" else None
            if said is not None:
                messages[place] = {"role": "assistant", "content": said}
        return Observation(tuple(messages), call.tools)

    def message(self, call: Call, turn: Turn) -> dict[str, Any]:
        """The policy's turn as the message that answers a chat: its thoughts, its text, and its calls apart."""
        thought, closed, spoken = turn.text.rpartition("</think>")
        parsed = parse_tool_calls(turn.text) if call.tools else None
        calls = () if parsed is None else parsed.calls
        text = parsed.text if parsed is not None and calls else spoken.strip() if closed else turn.text
        found: dict[str, Any] = {"role": "assistant", "content": text or (None if calls else "")}
        if closed:
            found["reasoning_content"] = thought.strip().removeprefix("<think>").strip()
        if calls:
            found["tool_calls"] = [self._written(one, call.tools) for one in calls]
        self._said[_key(len(call.messages), found)] = turn.text
        return found

    def _written(self, call: ToolCall, tools: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        self._num_tools += 1
        schemas = (tool.get("function", {}) for tool in tools)
        schema: Mapping[str, Any] = next((one for one in schemas if one.get("name") == call.name), {})
        arguments = json.dumps(dict(typed(call, schema.get("parameters") or {}).arguments))
        function = {"name": call.name, "arguments": arguments}
        return {"id": f"call{self._num_tools:05d}", "type": "function", "function": function}


def _key(place: int, message: Mapping[str, Any]) -> tuple[int, str, tuple[str, ...]]:
    calls = message.get("tool_calls") or ()
    return place, message.get("content") or "", tuple(str(one.get("id")) for one in calls)


def chat_answer(call: Call, turn: Turn, message: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON of a chat completion; its token ids beside it where they are asked for."""
    choice = {"index": 0, "message": message, "finish_reason": _reason(turn, message)}
    if call.options.get("logprobs"):
        choice["logprobs"] = _logprobs(turn.completion_ids, turn.logprobs)
    if call.options.get("return_token_ids"):
        choice["token_ids"] = list(turn.completion_ids)
    num_prompt, num_said = len(turn.prompt_ids), len(turn.completion_ids)
    usage = {"prompt_tokens": num_prompt, "completion_tokens": num_said, "total_tokens": num_prompt + num_said}
    answer = {"id": "chatcmpl-0", "object": "chat.completion", "created": 0, "model": MODEL, "usage": usage}
    if call.options.get("return_token_ids"):
        answer["prompt_token_ids"] = list(turn.prompt_ids)
    return {**answer, "choices": [choice]}


def chunks(call: Call, answer: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A chat completion as the events of a stream: all of the message, why it ended, and the usage where asked for."""
    choice = dict(answer["choices"][0])
    reason, delta = choice.pop("finish_reason"), dict(choice.pop("message"))
    if delta.get("tool_calls"):
        delta["tool_calls"] = [{"index": index, **one} for index, one in enumerate(delta["tool_calls"])]
    head = {key: value for key, value in answer.items() if key not in ("choices", "usage")}
    head["object"] = "chat.completion.chunk"
    found = [
        {**head, "choices": [{**choice, "delta": delta, "finish_reason": None}]},
        {**head, "choices": [{"index": 0, "delta": {}, "finish_reason": reason}]},
    ]
    if (call.options.get("stream_options") or {}).get("include_usage"):
        found.append({**head, "choices": [], "usage": answer["usage"]})
    return found


def generate_answer(call: Call, turn: Turn) -> dict[str, Any]:
    """The JSON that vLLM's /inference/v1/generate answers: every token after the given ones, with its logprob."""
    assert call.token_ids is not None
    ids = (*turn.prompt_ids[len(call.token_ids) :], *turn.completion_ids)
    logprobs = (*(0.0 for _ in range(len(ids) - len(turn.logprobs))), *turn.logprobs)
    reason = _reason(turn, {})
    choice = {"index": 0, "token_ids": list(ids), "logprobs": _logprobs(ids, logprobs), "finish_reason": reason}
    return {"request_id": "generate-0", "choices": [choice]}


def _reason(turn: Turn, message: Mapping[str, Any]) -> str:
    if turn.stop_reason is StopReason.LENGTH:
        return "length"
    return "tool_calls" if message.get("tool_calls") else "stop"


def _logprobs(ids: Sequence[int], logprobs: Sequence[float]) -> dict[str, Any]:
    pairs = zip(ids, logprobs, strict=True)
    content = [{"token": f"token_id:{one}", "logprob": logprob, "top_logprobs": []} for one, logprob in pairs]
    return {"content": content}
