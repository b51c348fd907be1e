"""DPPO: PPO whose trust region bounds how far an action's probability moves, not by what factor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, log

from posttrain.estimator import Algorithm, PolicyTerm, Source, TokenBatch, read
from posttrain.estimator.advantages import GroupRelative
from posttrain.estimator.denominators import Behavior


@dataclass(frozen=True)
class DivergenceClip:
    """0 where A (pi - mu) > 0 and D(mu, pi) > threshold, D over two outcomes, this action or any other; else 1."""

    threshold: float
    divergence: str
    needs: ClassVar[frozenset[str]] = frozenset()
    formula: ClassVar[str] = "1[not (A (pi - mu)>0 and D(mu, pi)>threshold)]"

    def __call__(self, batch: TokenBatch, log_ratio: Tensor, advantage: Tensor) -> Tensor:
        """0 or 1 [A]."""
        mu = ((pi := read.field(batch, "logprobs").detach().exp()) * (-log_ratio).exp()).clamp(max=1.0)
        kl = (1 - mu) * log((1 - mu + 1e-8) / (1 - pi + 1e-8)) - mu * log_ratio
        far = (kl if self.divergence == "kl" else (pi - mu).abs()) > self.threshold
        return (~((advantage * (pi - mu) > 0) & far)).to(log_ratio.dtype)


def dppo(*, divergence: Literal["tv", "kl"] = "tv", threshold: float = 0.15) -> Algorithm:
    """J = 1/N_tokens sum_i sum_t M_it r_it A_i, r = pi / mu, mu the sampler, A as in GRPO (arXiv 2602.04879).

    M = 0 where the step would lead on out of the trust region: A (pi - mu) > 0 and D(mu, pi) > threshold, D = |pi - mu|
    ("tv"; 0.15 in its authors' scripts) or KL, of {y_t, not y_t} ("kl"; 0.05). r is not truncated (its sec. 5.4).
    """
    mask = DivergenceClip(threshold, divergence)
    return Algorithm("dppo", (PolicyTerm(Source.ROLLOUTS, Behavior(), GroupRelative(), mask),))
