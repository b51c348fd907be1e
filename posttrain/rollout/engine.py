"""What the collector asks of a sampler, whichever engine runs it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from posttrain.errors import UserError
from posttrain.picture import Pictures
from posttrain.rollout.choices import Choices
from posttrain.trajectory import StopReason


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. top_k 0 and top_p 1 leave the distribution whole; temperature 0 is greedy.

    UserError where a value cannot be used.
    """

    max_tokens: int
    stop_token_ids: frozenset[int]
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0

    def __post_init__(self) -> None:
        for name, allowed, good in (
            ("max_tokens", "1 or more", self.max_tokens >= 1),
            ("temperature", "0 or more", self.temperature >= 0),
            ("top_p", "above 0, at most 1", 0 < self.top_p <= 1),
            ("top_k", "0 (all tokens) or more", self.top_k >= 0),
        ):
            if not good:
                raise UserError(f"sampling: {name} is {getattr(self, name)}; allowed: {allowed}")


@dataclass(frozen=True)
class Request:
    """One completion to draw. The seed alone decides its draws, whatever it is batched with.

    pictures: the spans of prompt_ids that are images. choices: what it must be one of, as far as max_tokens reach;
    other tokens are masked before temperature, top_k and top_p.
    """

    prompt_ids: tuple[int, ...]
    seed: int
    pictures: Pictures = ()
    choices: Choices = ()


@dataclass(frozen=True)
class Completion:
    """The sampled tokens (the stop token included), their logprobs under the sampling distribution, or an error."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    stop_reason: StopReason
    policy_version: int
    error: str | None = None


class Engine(Protocol):
    """A sampler that runs the weights it was last synced with.

    window: its longest sequence in tokens, None where there is no limit. dtype: what it computes in.
    """

    policy_version: int
    window: int | None

    @property
    def dtype(self) -> torch.dtype:
        """The precision it samples in."""
        ...

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        """One completion per request, in order. A prompt beyond the window is that completion's error, not a crash."""
        ...

    def score(self, token_ids: Sequence[int]) -> list[float]:
        """Logprobs (nats, temperature 1) of tokens 1.. of a sequence: the canary's side of the sampler."""
        ...

    def sync(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Take over the trainer's weights, named as in the Hugging Face model, as policy version `version`.

        A tensor need be valid only until the next one is taken: sharded weights are gathered one at a time.
        """
        ...

    def release(self) -> None:
        """The trainer needs the device now: free what the engine was told to. The next call takes it back."""
        ...


def prompt_error(num_tokens: int, window: int | None) -> str | None:
    """Why a prompt of so many tokens cannot be continued; None where it can."""
    if num_tokens == 0:
        return "the prompt is empty (0 tokens); allowed: 1 or more"
    if window is not None and num_tokens > window - 1:
        return f"the prompt is {num_tokens} tokens; allowed: {window - 1}, the model's window less 1"
    return None


def length_error(num_tokens: int, window: int | None) -> str | None:
    """Why a sequence of so many tokens cannot be scored; None where it can."""
    if window is not None and num_tokens > window:
        return f"the sequence is {num_tokens} tokens; allowed: {window}, the model's window"
    return None
