"""Figures of a model on held-out prompts: what it solves, what it earns, how far it is from another model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from posttrain import catalog
from posttrain.batch import TokenSequence
from posttrain.config.schema import EpisodeSettings, ModelSettings, SourceSettings, TokenizerSettings
from posttrain.data.chat import stop_token_ids
from posttrain.data.sources import load_source
from posttrain.models.load import load_model
from posttrain.models.tokenizer import load_tokenizer
from posttrain.reward import Grader, RewardSpec
from posttrain.rollout.collector import Collector
from posttrain.rollout.engine import Sampling
from posttrain.rollout.sequences import rollout_sequences
from posttrain.rollout.transformers_engine import TransformersEngine
from posttrain.trajectory import Group

_ROWS_AT_ONCE = 512


@dataclass(frozen=True)
class Loaded:
    """A model and its tokenizer."""

    model: Any
    tokenizer: Any

    @classmethod
    def of(cls, path: str | Path) -> Loaded:
        """Those of a model directory."""
        settings = ModelSettings(path=str(path))
        tokenizer = load_tokenizer(TokenizerSettings(), settings)
        return cls(load_model(settings, tokenizer, seed=0), tokenizer)


@dataclass(frozen=True)
class Asking:
    """Held-out prompts, a file of rows or tasks by seed (`config`), and how they are asked."""

    rows: str
    rewards: tuple[str, ...] = ("exact",)
    max_tokens: int = 8
    samples: int = 1
    temperature: float = 0.0
    environment: Mapping[str, Any] = field(default_factory=lambda: {"name": "single_turn"})
    limits: EpisodeSettings = field(default_factory=EpisodeSettings)
    config: Mapping[str, Any] = field(default_factory=dict)

    def play(self, loaded: Loaded, seed: int) -> list[Group]:
        """The graded completions."""
        own = dict(self.environment)
        source = SourceSettings(path=self.rows, config=self.config, chat=own["name"] == "single_turn")
        sampling = Sampling(
            max_tokens=self.max_tokens,
            stop_token_ids=stop_token_ids(loaded.tokenizer),
            temperature=self.temperature,
        )
        engine = TransformersEngine(loaded.model, dtype="float32")
        with closing(catalog.build("environments", own.pop("name"), own)) as environment:
            grader = _grader(self.rewards)
            collector = Collector(engine, environment, grader, loaded.tokenizer, sampling, limits=self.limits)
            return collector.collect(list(load_source(source, "prompts")), self.samples, seed)


@lru_cache
def _grader(rewards: tuple[str, ...]) -> Grader:
    return Grader([RewardSpec(name) for name in rewards], workers=1)


def mean_reward(groups: Iterable[Group]) -> float:
    """Mean over completions."""
    return fmean(t.reward for group in groups for t in group.trajectories if t.reward is not None)


def pass_rate(groups: Iterable[Group]) -> float:
    """Share of completions that are solved."""
    return fmean(t.solved is True for group in groups for t in group.trajectories)


def win_rate(played: Sequence[Group], against: Sequence[Group]) -> float:
    """How often a completion earns more than another's of the same prompt, over all pairs; half for a tie."""
    return fmean(
        (one > other) + 0.5 * (one == other)
        for mine, theirs in zip(played, against, strict=True)
        for one, other in product(_rewards(mine), _rewards(theirs))
    )


def _rewards(group: Group) -> list[float]:
    return [trajectory.reward for trajectory in group.trajectories if trajectory.reward is not None]


def sequences(groups: Iterable[Group]) -> list[TokenSequence]:
    """The completions as training sequences."""
    return [
        sequence
        for index, group in enumerate(groups)
        for number, trajectory in enumerate(group.trajectories)
        for sequence in rollout_sequences(trajectory, index, number)
    ]


@torch.no_grad()
def divergence(played: Sequence[TokenSequence], model: Any, other: Any) -> float:
    """KL(model || other) in nats a completion: the mean over completions that `model` sampled at temperature 1.

    At each token the divergence over the whole vocabulary is taken, so only the prefixes are sampled.
    """
    total = 0.0
    for rows, logprobs, others in _both(played, model, other):
        kl = (logprobs.exp() * (logprobs - others)).sum(-1)
        total += float((kl * rows).sum())
    return total / len(played)


def _both(played: Sequence[TokenSequence], *models: Any) -> Iterator[tuple[Tensor, ...]]:
    """The action mask [B, T-1], and each model's logprobs [B, T-1, V], of some sequences at a time."""
    for start in range(0, len(played), _ROWS_AT_ONCE):
        part = played[start : start + _ROWS_AT_ONCE]
        width = max(one.num_tokens for one in part)
        ids = torch.tensor([(*one.token_ids, *[0] * (width - one.num_tokens)) for one in part])
        mask = torch.tensor([(*one.action_mask, *[False] * (width - one.num_tokens)) for one in part])[:, 1:]
        logits = (model(input_ids=ids, use_cache=False).logits[:, :-1] for model in models)
        yield mask, *(torch.log_softmax(values.float(), -1) for values in logits)
