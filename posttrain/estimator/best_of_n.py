"""Best-of-n sampling as a distribution: its probabilities, imitating it from samples, its distance from the base."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from posttrain.batch import Source, TokenBatch, Unit
from posttrain.estimator import read
from posttrain.estimator.aggregation import Sum
from posttrain.estimator.diagnostics import Diagnostics
from posttrain.estimator.levels import levels
from posttrain.estimator.parts import Part

_SMALLEST, _LARGEST = -30.0, -1e-12


def best_of_n_probabilities(probabilities: Tensor, rewards: Tensor, n: int) -> Tensor:
    """pi_BoN(y) = pi(y) p_le^(n-1) sum_{i=1..n} (p_lt / p_le)^(i-1) (BOND, arXiv 2407.14622, theorem 1).

    probabilities, rewards [Y] of every outcome; p_le, p_lt: the probability of a reward at most, below that of y. Equal
    rewards share their probability F^n - F_^n (arXiv 2401.01879, lemma 1) in proportion to pi.
    """
    found = levels(rewards, torch.zeros_like(rewards, dtype=torch.long), probabilities)
    mass = found.at_most - found.below
    return torch.where(mass > 0, probabilities * (found.at_most**n - found.below**n) / mass, torch.zeros_like(mass))


def kl_bound(n: Tensor | float) -> Tensor:
    """KL(pi_BoN || pi) <= log n - (n - 1)/n, in nats, equal for continuous rewards (arXiv 2401.01879, theorem 1)."""
    size = torch.as_tensor(n, dtype=torch.float64)
    return size.log() - (size - 1) / size


def kl_estimate(log_probability: Tensor, n: Tensor | float) -> Tensor:
    """KL_hat(e) = (1-e)^n (log n + (n-1) log(1-e) - (n-1)/n) + (1 - (1-e)^n) log((1 - (1-e)^n) / e), in nats.

    e = exp(log_probability), the base policy's probability of a selected sample; its mean over selected samples
    estimates KL(pi_BoN || pi) (arXiv 2401.01879, sec. 4). Float64 of log_probability's shape, finite for every e.
    """
    log_e = log_probability.double().clamp(_SMALLEST, _LARGEST)
    size = torch.as_tensor(n, dtype=torch.float64, device=log_e.device)
    log_rest = torch.log(-torch.expm1(log_e))
    missed, hit = torch.exp(size * log_rest), -torch.expm1(size * log_rest)
    far = size.log() + (size - 1) * log_rest - (size - 1) / size
    return missed * far + hit * (hit.log() - log_e)


@dataclass(frozen=True)
class BestOfN:
    """A_i = pi_BoN(y_i) / pi(y_i), estimated from the m graded samples of pi in the group: imitating best-of-n.

    A_i = m P(y_i is the best of n of the m, drawn without replacement) = m (C(a, n) - C(b, n)) / ((a - b) C(m, n)), a
    and b the numbers of samples with a reward at most, below its own; samples of equal reward share. With A_i, a mean
    over the m samples estimates a mean over pi_BoN without bias (BOND's forward term, arXiv 2407.14622, eq. 11).
    n = 0, or n > m: the best of all m. Sequences compare with those of their own source.
    """

    n: int = 0
    needs: ClassVar[frozenset[str]] = frozenset({"rewards"})
    uses_policy: ClassVar[bool] = False
    couples: ClassVar[Unit] = ""

    def __post_init__(self) -> None:
        """ValueError below 0."""
        if self.n < 0:
            raise ValueError(f"n is {self.n}; allowed: at least 1, or 0 for all samples")

    @property
    def formula(self) -> str:
        """The weight in words."""
        return f"m P(y_i best of {self.n or 'm'} of the m samples)"

    def __call__(self, batch: TokenBatch) -> Tensor:
        """[S]; 0 where ungraded."""
        found = levels(batch.reward.double(), _by_source(batch), batch.graded.double())
        size = self.sizes(batch)

        def chosen(number: Tensor) -> Tensor:  # C(number, size) / C(total, size)
            room = (number - size).clamp(min=0)
            logs = torch.lgamma(number + 1) - torch.lgamma(room + 1)
            whole = torch.lgamma(found.total + 1) - torch.lgamma(found.total - size + 1)
            return torch.where(number >= size, torch.exp(logs - whole), torch.zeros_like(number))

        ties = (found.at_most - found.below).clamp(min=1)
        share = found.total * (chosen(found.at_most) - chosen(found.below)) / ties
        return torch.where(batch.graded, share, torch.zeros_like(share)).to(batch.reward.dtype)

    def sizes(self, batch: TokenBatch) -> Tensor:
        """The n of each sequence's group [S], float64: never above its number of graded samples."""
        total = levels(batch.reward.double(), _by_source(batch), batch.graded.double()).total
        return total if self.n == 0 else total.clamp(max=self.n)


@dataclass(frozen=True)
class Nothing:
    """Not differentiated: the term only reports."""

    needs: ClassVar[frozenset[str]] = frozenset()
    formula: ClassVar[str] = "0"


@dataclass(frozen=True)
class BestOfNDivergence:
    """A term without a gradient that reports how far best-of-n lies from the policy that sampled.

    kl: mean of `kl_estimate` over the selected samples of `source`, whose probabilities are the sampler's
    (behavior_logprobs); kl_bound: log n - (n - 1)/n (arXiv 2401.01879). selection: which samples, and how much of each.
    """

    source: Source = Source.ROLLOUTS
    selection: BestOfN = BestOfN()
    name: str = "best_of_n"
    couples: ClassVar[Unit] = "trajectory"
    needs: ClassVar[frozenset[str]] = frozenset({"rewards", "behavior_logprobs"})

    def prepare(self, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        """n of the sequence's group [A], and the share of each sequence in the selection [S]."""
        share = self.selection(batch) * batch.weight * batch.is_from(self.source)
        return batch.broadcast(self.selection.sizes(batch).to(share.dtype)), share

    def count(self, batch: TokenBatch) -> Tensor:
        """0."""
        return torch.zeros_like(batch.weight).sum()

    def total(self, batch: TokenBatch, advantage: Tensor, coefficient: Tensor) -> tuple[Tensor, Diagnostics]:
        """0, and the figures."""
        on = (coefficient != 0) & (batch.lengths > 0)
        recorded = read.field(batch, "behavior_logprobs")
        recorded = torch.where(batch.broadcast(on), recorded, torch.zeros_like(recorded))
        size = batch.sequence_mean(advantage).double().clamp(min=1)
        share = torch.where(on, coefficient, torch.zeros_like(coefficient)).double()
        estimate = kl_estimate(batch.sequence_sum(recorded), size)
        bound = size.log() - (size - 1) / size
        figures = {"kl": ((share * estimate).sum(), share.sum()), "kl_bound": ((share * bound).sum(), share.sum())}
        return torch.zeros_like(batch.weight).sum(), figures

    def describe(self) -> dict[str, Part]:
        """Which samples, and that nothing is differentiated."""
        return {"weight": self.selection, "aggregation": Sum(), "likelihood": Nothing()}


def _by_source(batch: TokenBatch) -> Tensor:
    """Group and source as one number [S]."""
    return batch.group_index * len(Source) + batch.source
