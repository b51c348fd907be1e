"""A speaker whose lines an engine samples: those of many dialogues in one call."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from posttrain.data.chat import encode_prompt
from posttrain.environments.speaker import SpeakerError
from posttrain.rollout.engine import Completion, Engine, Request, Sampling
from posttrain.trajectory import Prompt, StopReason

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_Asked = tuple[Request, "asyncio.Future[Completion]"]


class EngineSpeaker:
    """A `Speaker`. tokenizer: the engine's own. sampling: of each line.

    Requests wait until every dialogue between two actions of the policy has asked or has gone on to its next action;
    then all are drawn at once, in an order of their own. What is drawn is decided by each request's seed.
    """

    def __init__(self, engine: Engine, tokenizer: PreTrainedTokenizerBase, sampling: Sampling) -> None:
        self.engine, self.tokenizer, self.sampling = engine, tokenizer, sampling
        self._num_inside = 0
        self._waiting: list[_Asked] = []

    @contextmanager
    def turn(self) -> Iterator[None]:
        """See `Speaker.turn`."""
        self._num_inside += 1
        try:
            yield
        finally:
            self._num_inside -= 1
            self._answer_soon()

    async def say(self, messages: Prompt, seed: int) -> str:
        """A sampled line. SpeakerError where the engine has none, as for a conversation beyond its window."""
        asked = Request(encode_prompt(messages, self.tokenizer), seed), asyncio.get_running_loop().create_future()
        self._waiting.append(asked)
        self._answer_soon()
        try:
            completion = await asked[1]
        finally:
            self._waiting = [other for other in self._waiting if other is not asked]
        if completion.error is not None or completion.stop_reason is StopReason.ERROR:
            raise SpeakerError(f"the partner's engine: {completion.error}")
        return str(self.tokenizer.decode(list(completion.token_ids), skip_special_tokens=True))

    def _answer_soon(self) -> None:
        """Look again once the dialogues that are about to begin their turn have begun it."""
        asyncio.get_running_loop().call_soon(self._answer)

    def _answer(self) -> None:
        if not self._waiting or len(self._waiting) < self._num_inside:
            return
        asked = sorted(self._waiting, key=lambda one: (len(one[0].prompt_ids), one[0].prompt_ids, one[0].seed))
        self._waiting = []
        try:
            completions = self.engine.generate([request for request, _ in asked], self.sampling)
        except Exception as error:  # raised again by each of those who asked
            for _, future in asked:
                future.set_exception(error)
            return
        for (_, future), completion in zip(asked, completions, strict=True):
            if not future.done():
                future.set_result(completion)
