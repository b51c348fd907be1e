"""An OpenAI-compatible server as an engine to evaluate with: text goes in and text comes out.

The collector speaks in tokens, and a server does not say which. So all that is said is one token of a vocabulary that
grows: a prompt is the token of its whole text, a completion the token of its text and as many empty ones as make up the
number that the server tells. Counts are the server's, texts are exact, and nothing can be trained on.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from posttrain.endpoint import Answer, Endpoint, EndpointError
from posttrain.errors import UserError
from posttrain.picture import Context
from posttrain.rollout.engine import Completion, Request, Sampling
from posttrain.trajectory import Prompt, StopReason

_EMPTY = 0
_SEED_BITS = 31


class Texts:
    """The growing vocabulary, with what the collector asks of a tokenizer; the chat template's text is JSON."""

    chat_template = "the server's own"

    @property
    def images(self) -> Texts:
        """What reads images, as the collector asks for it: they go to the server with their messages."""
        return self

    def place(self, token_ids: tuple[int, ...], _images: Sequence[str]) -> Context:
        """The tokens as they are."""
        return Context(token_ids)

    def __init__(self, name: str) -> None:
        self.name_or_path = name
        self._texts = [""]
        self._ids = {"": _EMPTY}
        self._conversations: dict[str, Mapping[str, Any]] = {}

    def __call__(self, text: str, **_: Any) -> SimpleNamespace:
        """The one token of `text`."""
        return SimpleNamespace(input_ids=[self.token(text)])

    def token(self, text: str) -> int:
        """The number of `text`, a new one where it was not said before."""
        if text not in self._ids:
            self._ids[text] = len(self._texts)
            self._texts.append(text)
        return self._ids[text]

    def apply_chat_template(self, messages: Sequence[Mapping[str, Any]], tools: Any = None, **_: Any) -> str:
        """A name for the conversation that `request` finds it by."""
        conversation = {"messages": list(messages)} | ({"tools": list(tools)} if tools else {})
        text = json.dumps(conversation, default=str)
        self._conversations[text] = conversation
        return text

    def decode(self, token_ids: Sequence[int], **_: Any) -> str:
        """The text of some tokens."""
        return "".join(self._texts[token] for token in token_ids)

    def batch_decode(self, rows: Iterable[Sequence[int]], **_: Any) -> list[str]:
        """The text of each row of tokens."""
        return [self.decode(row) for row in rows]

    def request(self, token_ids: Sequence[int]) -> tuple[Prompt, dict[str, Any]]:
        """The prompt that some tokens stand for, and what a request says beside it."""
        text = self.decode(token_ids)
        found = self._conversations.get(text)
        if found is None:
            return text, {}
        return tuple(found["messages"]), {name: value for name, value in found.items() if name != "messages"}


class EndpointEngine:
    """An `Engine` that samples at `endpoint`; its tokens are those of `tokenizer`. It cannot score, nor be synced."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.tokenizer = Texts(endpoint.url)
        self.policy_version = 0
        self.window: int | None = None

    @property
    def dtype(self) -> torch.dtype:
        """The server does not tell."""
        raise UserError(f"{self.endpoint.url}: an endpoint does not say what it computes in")

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        """One completion per request, in order; a request without an answer is that completion's error."""
        asked = []
        for request in requests:
            if request.choices:
                raise UserError(f"{self.endpoint.url}: an endpoint cannot be kept to listed actions")
            prompt, fields = self.tokenizer.request(request.prompt_ids)
            asked.append((prompt, fields | _fields(request, sampling)))
        with ThreadPoolExecutor(1) as thread:  # the collector's event loop is running in this one
            answers = thread.submit(asyncio.run, self.endpoint.ask(asked)).result()
        return [self._completion(answer) for answer in answers]

    def score(self, token_ids: Sequence[int]) -> list[float]:
        """UserError: it has no logprobs of a given text."""
        raise UserError(f"{self.endpoint.url}: an endpoint does not score texts; allowed: a model directory or hub id")

    def sync(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """UserError: its weights are its own."""
        raise UserError(f"{self.endpoint.url}: an endpoint does not take weights; allowed: to evaluate it")

    def release(self) -> None:
        """Nothing is held here."""

    def _completion(self, answer: Answer | EndpointError) -> Completion:
        if isinstance(answer, EndpointError):
            return Completion((), (), StopReason.ERROR, 0, f"{self.endpoint.url}: {answer}")
        ids = (self.tokenizer.token(answer.text), *(_EMPTY for _ in range(answer.num_tokens - 1)))
        return Completion(ids, (0.0,) * len(ids), answer.stop_reason, 0)


def _fields(request: Request, sampling: Sampling) -> dict[str, Any]:
    fields = {
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": request.seed % 2**_SEED_BITS,
    }
    return fields | ({"top_k": sampling.top_k} if sampling.top_k else {})
