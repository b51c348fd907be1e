"""The sampler's side of a run: its engine, the weights that it is given, and the check that it runs them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from posttrain.models.weights import named_weights
from posttrain.rollout.engine import Engine
from posttrain.trainer.canary import Canary


@dataclass
class Weights:
    """The policy as it was before optimiser step number `version`, counted from 0.

    tensors: its weights by name. expected: the canary's logprobs under it, as the trainer computes them; None where
    they need not be compared.
    """

    version: int
    tensors: Iterable[tuple[str, Tensor]]
    expected: Tensor | None


@dataclass
class Sampler:
    """An engine that samples for `policy`, the trainer's, which may be wrapped.

    `take` belongs to the main thread, as every rank must take part in it; `load` to the thread that samples.
    """

    engine: Engine
    policy: Any
    accelerator: Any
    canary: Canary | None = None

    def take(self, version: int, *, copied: bool) -> Weights:
        """The policy's weights of this moment.

        copied: they are copied to the host's memory and stay as they are while the policy goes on: each rank then holds
        one set of weights until the engine has them, and of those not more than max_staleness + 1. Otherwise they must
        be loaded before the policy changes, and nothing is held.
        """
        model = self.accelerator.unwrap_model(self.policy).model
        tensors: Iterable[tuple[str, Tensor]] = named_weights(model)
        if copied:
            tensors = [(name, tensor.detach().to("cpu", copy=True)) for name, tensor in tensors]
        known = self.canary is None or (self.engine.policy_version == version and self.canary.mismatch is not None)
        return Weights(version, tensors, None if known and not copied else self._expected())

    def load(self, weights: Weights, together: Callable[[], object] = lambda: None) -> None:
        """Have the engine run `weights`; RunError where the canary says that it does not.

        together: called before the engine changes, for ranks to wait for one another where they share one.
        """
        stale = self.engine.policy_version != weights.version
        if stale:
            together()
            self.engine.sync(weights.tensors, weights.version)
        weights.tensors = ()  # a copy is not held longer than it is needed
        if self.canary is not None and weights.expected is not None and (stale or self.canary.mismatch is None):
            self.canary.compare(self.engine, weights.expected)

    def _expected(self) -> Tensor | None:
        return None if self.canary is None else self.canary.expected(self.policy, self.accelerator)
