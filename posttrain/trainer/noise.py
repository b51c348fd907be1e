"""How far sampler and trainer are apart on the same weights: a recipe run for a few steps with learning rate 0.

What is measured is the noise floor of everything that compares the two: clip bands, importance weights, KL estimates.
A band narrower than the floor clips noise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from posttrain.batch import TokenSequence
from posttrain.config import Recipe
from posttrain.errors import RecipeError, RunError
from posttrain.estimator import Algorithm
from posttrain.estimator.masks import Clip, PairClip, Product, SequenceClip
from posttrain.rollout.sequences import rollout_sequences
from posttrain.trainer.step import score
from posttrain.trainer.watch import fingerprint
from posttrain.trajectory import Group

QUANTILES = (0.5, 0.9, 0.99, 0.999, 1.0)


@dataclass(frozen=True)
class Band:
    """The ratios that a mask lets through, of tokens or of whole sequences (their tokens' geometric mean)."""

    unit: str
    low: float
    high: float

    def outside(self, differences: Tensor, sequence_index: Tensor) -> float:
        """The share of tokens (or sequences) whose ratio exp(difference) is outside."""
        if self.unit == "sequences":
            counts = torch.bincount(sequence_index).clamp(min=1)
            differences = torch.zeros(len(counts), dtype=differences.dtype).index_add(0, sequence_index, differences)
            differences = differences / counts
        ratio = differences.exp()
        return float(((ratio < self.low) | (ratio > self.high)).double().mean())


@dataclass(frozen=True)
class Noise:
    """Trainer's minus sampler's logprobs of sampled tokens [A], in nats, and the sequence of each."""

    differences: Tensor
    sequence_index: Tensor

    @property
    def quantiles(self) -> list[float]:
        """Of |difference|, at QUANTILES."""
        ordered = self.differences.abs().sort().values
        return [float(ordered[min(len(ordered) - 1, int(q * len(ordered)))]) for q in QUANTILES]

    @property
    def effective_tokens(self) -> float:
        """(sum w)^2 / (n sum w^2) of the tokens' importance weights w = exp(difference)."""
        return _effective(self.differences)

    @property
    def effective_sequences(self) -> float:
        """The same of whole sequences: w = exp(sum of a sequence's differences)."""
        sums = self.differences.new_zeros(int(self.sequence_index.max()) + 1)
        return _effective(sums.index_add(0, self.sequence_index, self.differences))


def _effective(logs: Tensor) -> float:
    return float(torch.exp(2 * logs.logsumexp(0) - (2 * logs).logsumexp(0)) / len(logs))


def measure(recipe: Recipe, num_steps: int) -> tuple[Noise, str]:
    """Train `recipe` for `num_steps` steps with learning rate 0, syncing before each; the noise, and who computed it.

    RecipeError where the recipe samples nothing; RunError where a weight changed.
    """
    from posttrain.trainer.setup import build

    training = {
        "steps": num_steps,
        "learning_rate": 0.0,
        "weight_decay": 0.0,
        "schedule": "constant",
        "warmup_steps": 0,
    }
    changes = {
        "training": recipe.training.model_copy(update=training),
        "critic": recipe.critic.model_copy(update={"learning_rate": 0.0, "warmup_steps": 0}),
        "checkpoint": recipe.checkpoint.model_copy(update={"every_steps": 0}),
        "tracking": recipe.tracking.model_copy(update={"trackers": []}),
        "evaluation": None,
        "final_evaluation": None,
    }
    with ExitStack() as stack, TemporaryDirectory() as scratch:
        loop = build(recipe.model_copy(update=changes), Path(scratch), stack, say=lambda line: None)
        if loop.collector is None or loop.sampler is None:
            raise RecipeError(f"algorithm {recipe.algorithm.name} samples nothing: there is no sampler to compare")
        recorder = _Recorder(loop.collector)
        loop.collector, before = recorder, fingerprint(loop.updater.policy)  # type: ignore[assignment]
        loop.run()
        if not torch.equal(before, fingerprint(loop.updater.policy)):
            raise RunError("weights changed in steps with learning rate 0")
        played = [trajectory for group in recorder.groups for trajectory in group.trajectories]
        sequences = [one for index, trajectory in enumerate(played) for one in rollout_sequences(trajectory, index, 0)]
        sequences = [one for one in sequences if one.num_actions]
        budget = loop.updater.tokens_per_microbatch
        scored = score(loop.updater.policy, sequences, "old_logprobs", budget, loop.accelerator)
        precision = recipe.training.mixed_precision
        trainer = recipe.model.dtype if precision == "no" else f"{recipe.model.dtype} under {precision} autocast"
        sampler = f"{recipe.rollout.engine}, {str(loop.sampler.engine.dtype).removeprefix('torch.')}"
        return _noise(scored), f"sampler: {sampler}; trainer: {trainer}"


class _Recorder:
    """A collector that keeps what it has collected."""

    def __init__(self, collector: Any) -> None:
        self._collector = collector
        self.groups: list[Group] = []

    def collect(self, *what: Any, **how: Any) -> list[Group]:
        """As the collector's."""
        found: list[Group] = self._collector.collect(*what, **how)
        self.groups += found
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self._collector, name)


def _noise(scored: Sequence[TokenSequence]) -> Noise:
    trainer = torch.tensor([value for one in scored for value in one.old_logprobs or ()], dtype=torch.float64)
    sampler = torch.tensor([value for one in scored for value in one.behavior_logprobs or ()], dtype=torch.float64)
    lengths = torch.tensor([one.num_actions for one in scored])
    return Noise(trainer - sampler, torch.repeat_interleave(torch.arange(len(scored)), lengths))


def bands(algorithm: Algorithm) -> list[Band]:
    """The clip bands of the algorithm's terms over rollouts."""
    masks = [term.describe().get("mask") for term in algorithm.terms]
    return list(dict.fromkeys(band for mask in masks for band in _bands(mask)))


def _bands(mask: Any) -> Iterator[Band]:
    if isinstance(mask, Product):
        yield from _bands(mask.first)
        yield from _bands(mask.second)
    elif isinstance(mask, Clip):
        yield Band("tokens", 1 - mask.low, 1 + mask.high)
    elif isinstance(mask, SequenceClip):
        yield Band("sequences", 1 - mask.low, 1 + mask.high)
    elif isinstance(mask, PairClip):
        yield Band("tokens", 1 - mask.epsilon, 1 + mask.epsilon)


def report(recipe: Recipe, num_steps: int) -> str:
    """The measured noise floor next to the recipe's clip bands, as text."""
    from posttrain.algorithms import load

    noise, who = measure(recipe, num_steps)
    size = noise.differences.abs()
    tails = ", ".join(f"{q:.1%} {value:.3g}" for q, value in zip(QUANTILES, noise.quantiles, strict=True))
    lines = [
        f"Learning rate 0 for {num_steps} steps: {int(noise.sequence_index.max()) + 1} sequences, {len(size)} tokens.",
        who,
        f"|trainer - sampler| logprobs in nats: mean {float(size.mean()):.3g}; quantiles {tails}",
        f"trainer - sampler: mean {float(noise.differences.mean()):+.3g}",
        f"effective sample size of importance weights: tokens {noise.effective_tokens:.2%}, "
        f"sequences {noise.effective_sequences:.2%}",
    ]
    for band in bands(load(recipe.algorithm.name, **recipe.algorithm.settings)):
        share = f"{band.outside(noise.differences, noise.sequence_index):.3%} of the {band.unit}"
        lines.append(f"clip band of ratios {band.low:g} to {band.high:g}: {share} are outside by noise alone")
    if recipe.rollout.top_p < 1 or recipe.rollout.top_k > 0:
        lines.append(
            "rollout.top_p or top_k truncates: the sampler's logprobs are of the truncated distribution, the trainer's "
            "of the whole, and part of the difference is that"
        )
    return "\n".join(lines)
