"""The reference of a run beyond scoring: it may follow the policy, and play rollouts to compare with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from posttrain.data.examples import Example
from posttrain.models.policy import Policy
from posttrain.models.reference import follow
from posttrain.models.weights import named_weights
from posttrain.rollout.collector import Collector
from posttrain.rollout.weights import load_in_place
from posttrain.trajectory import Group

_WEIGHTS = "reference.safetensors"


@dataclass
class Anchor:
    """The reference policy, and what `estimator.Plan` asks of it; the same on every rank.

    decay: eta of theta_ref <- (1 - eta) theta_ref + eta theta after every step; at 0 it is frozen. samples: rollouts
    it plays for each prompt, by `collector`, whose engine is its own. version: the last step that it followed, 0 for
    the starting weights, which the engine is made with.
    """

    policy: Policy
    decay: float = 0.0
    samples: int = 0
    collector: Collector | None = None
    version: int = 0

    def follow(self, weights: Iterable[tuple[str, Tensor]], step: int, *, skipped: bool = False) -> None:
        """Move towards the policy's weights after optimiser step number `step`; not where that one was skipped."""
        if self.decay:
            if not skipped:
                follow(self.policy, weights, self.decay)
            self.version = step

    def play(self, examples: Sequence[Example], seed: int, first_sample: int) -> list[Group]:
        """`samples` graded rollouts of each example, of the same tasks as the policy's `first_sample` rollouts."""
        assert self.collector is not None
        engine = self.collector.engine
        if engine.policy_version != self.version:
            engine.sync(named_weights(self.policy.model), self.version)
        return self.collector.collect(examples, self.samples, seed, first_sample=first_sample)

    def save(self, directory: Path) -> None:
        """Write the weights into a checkpoint, where they are not those of the starting model."""
        if self.decay:
            weights = {name: tensor.contiguous().cpu() for name, tensor in named_weights(self.policy.model)}
            save_file(weights, directory / _WEIGHTS)

    def load(self, directory: Path, step: int) -> None:
        """Put back what `save` wrote after optimiser step number `step`."""
        if self.decay:
            load_in_place(self.policy.model, load_file(directory / _WEIGHTS).items())
            self.version = step
