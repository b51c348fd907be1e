"""Preference losses as advantages: each is one function of the margin by which the policy prefers side i to side j.

Write s_i for the score of side i (such as sum_t log pi/pi_ref), m = s_i - s_j for its margin over its partner, and
r_i for its reward, the probability that it is preferred. The loss of a pair is r_i l(m) + r_j l(-m): l(m) of the chosen
side where the preference is certain (r = 1, 0). It is the same read from either side, and its gradient is
-sum_i A_i grad s_i with

    A_i = r_i f(m) - r_j f(-m),   f(m) = -dl/dm.                             (DPO, arXiv 2305.18290, eq. 7 and sec. 4)

`LOSSES` is the table of f. Side and partner must lie in one micro-batch; a pair with an ungraded side has advantage 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from posttrain.batch import Source, TokenBatch, Unit
from posttrain.estimator.advantages import Reward
from posttrain.estimator.diagnostics import Diagnostics
from posttrain.estimator.pairs import PairMean, partners, whole
from posttrain.estimator.read import field
from posttrain.estimator.term import PolicyTerm
from posttrain.estimator.weights import Always

LOSSES: dict[str, tuple[Callable[[Tensor, float], Tensor], str]] = {
    # l = -log sigma(beta m): DPO, arXiv 2305.18290, eq. 7
    "sigmoid": (lambda m, beta: beta * torch.sigmoid(-beta * m), "{beta:g} sigma(-{beta:g} m)"),
    # l = max(0, 1 - beta m): SLiC's hinge on DPO's margin, arXiv 2309.06657
    "hinge": (lambda m, beta: beta * (beta * m < 1).to(m.dtype), "{beta:g} 1[{beta:g} m < 1]"),
    # l = (m - 1/(2 beta))^2: IPO, arXiv 2310.12036, eq. 17, whose tau is beta
    "ipo": (lambda m, beta: 1 / beta - 2 * m, "1/{beta:g} - 2 m"),
}
"""f(margin, beta) = -dl/dmargin of each loss l, and its formula."""


@dataclass(frozen=True)
class PairPreference:
    """Scores against a frozen reference: s_i = sum_t log pi/pi_ref (DPO, arXiv 2305.18290, eq. 7), or its token mean.

    label_smoothing: the share of flipped labels: r_i becomes (1 - eps) r_i + eps r_j (conservative DPO, Mitchell
    2023); with `unbiased`, ((1 - eps) r_i - eps r_j) / (1 - 2 eps) (robust DPO, arXiv 2403.00409).
    """

    loss: str = "sigmoid"
    beta: float = 0.1
    label_smoothing: float = 0.0
    unbiased: bool = False
    length_normalised: bool = False
    needs: ClassVar[frozenset[str]] = frozenset({"rewards", "reference_logprobs"})
    uses_policy: ClassVar[bool] = True
    couples: ClassVar[Unit] = "pair"

    def __post_init__(self) -> None:
        """ValueError outside the table, for beta <= 0 and for label_smoothing outside [0, 0.5)."""
        _check(self.loss, self.beta)
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(f"label_smoothing is {self.label_smoothing}; allowed: at least 0, below 0.5")

    @property
    def formula(self) -> str:
        """A_i, f and the score."""
        target = f", r smoothed by {self.label_smoothing:g}" if self.label_smoothing else ""
        return _formula(self.loss, self.beta, "log(pi/pi_ref)", self.length_normalised) + target

    def __call__(self, batch: TokenBatch) -> Tensor:
        """[S]."""
        force = LOSSES[self.loss][0]
        pulled = _pull(batch, self._score(batch), lambda margin: force(margin, self.beta), self._targets)
        return pulled / batch.lengths.clamp(min=1) if self.length_normalised else pulled

    def diagnostics(self, batch: TokenBatch, rows: Tensor) -> Diagnostics:
        """Figures of the implicit rewards beta s_i."""
        return _figures(batch, rows, self.beta * self._score(batch))

    def _score(self, batch: TokenBatch) -> Tensor:
        difference = field(batch, "logprobs").detach() - field(batch, "reference_logprobs")
        return _total(batch, difference, self.length_normalised)

    def _targets(self, mine: Tensor, others: Tensor) -> Tensor:
        rate = self.label_smoothing
        if self.unbiased:
            return ((1 - rate) * mine - rate * others) / (1 - 2 * rate)
        return (1 - rate) * mine + rate * others


@dataclass(frozen=True)
class ReferenceFreePreference:
    """Scores of the policy alone: s_i = 1/|y_i| sum_t log pi, with a target margin (SimPO, arXiv 2405.14734, eq. 6).

    l = -log sigma(beta m - gamma); without length_normalised and gamma = 0 it is CPO's (arXiv 2401.08417).
    """

    loss: str = "sigmoid"
    beta: float = 2.0
    gamma: float = 1.0
    length_normalised: bool = True
    needs: ClassVar[frozenset[str]] = frozenset({"rewards"})
    uses_policy: ClassVar[bool] = True
    couples: ClassVar[Unit] = "pair"

    def __post_init__(self) -> None:
        """ValueError outside the table and for beta <= 0."""
        _check(self.loss, self.beta)

    @property
    def formula(self) -> str:
        """A_i, f and the score."""
        shift = f" - {self.gamma / self.beta:g}" if self.gamma else ""
        return _formula(self.loss, self.beta, "log(pi)", self.length_normalised, shift)

    def __call__(self, batch: TokenBatch) -> Tensor:
        """[S]."""
        force, shift = LOSSES[self.loss][0], self.gamma / self.beta
        pulled = _pull(batch, self._score(batch), lambda margin: force(margin - shift, self.beta))
        return pulled / batch.lengths.clamp(min=1) if self.length_normalised else pulled

    def diagnostics(self, batch: TokenBatch, rows: Tensor) -> Diagnostics:
        """Figures of the implicit rewards beta s_i."""
        return _figures(batch, rows, self.beta * self._score(batch))

    def _score(self, batch: TokenBatch) -> Tensor:
        return _total(batch, field(batch, "logprobs").detach(), self.length_normalised)


@dataclass(frozen=True)
class OddsPreference:
    """Log odds as scores: s_i = log(P_i / (1 - P_i)), log P_i = 1/|y_i| sum_t log pi (ORPO, arXiv 2403.07691, eq. 7).

    l = -log sigma(m), and ds_i/dlog P_i = 1 / (1 - P_i). log P_i is bounded at -1e-6, so that 1 - P_i is never 0.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"rewards"})
    uses_policy: ClassVar[bool] = True
    couples: ClassVar[Unit] = "pair"
    formula: ClassVar[str] = (
        "(r_i sigma(-m) - r_j sigma(m)) / (1 - P_i) / |y_i|, m = log odds P_i - log odds P_j, "
        "log P_i = 1/|y_i| sum_t log(pi)"
    )

    def __call__(self, batch: TokenBatch) -> Tensor:
        """[S]."""
        log_p = self._log_p(batch)
        pulled = _pull(batch, _log_odds(log_p), lambda margin: torch.sigmoid(-margin))
        return pulled / -torch.expm1(log_p) / batch.lengths.clamp(min=1)

    def diagnostics(self, batch: TokenBatch, rows: Tensor) -> Diagnostics:
        """Figures of the log odds."""
        return _figures(batch, rows, _log_odds(self._log_p(batch)))

    def _log_p(self, batch: TokenBatch) -> Tensor:
        return batch.sequence_mean(field(batch, "logprobs").detach()).clamp(max=-1e-6)


def imitate_chosen(weight: float) -> tuple[PolicyTerm, ...]:
    """-weight r_i 1/|y_i| sum_t log pi, the mean over pairs: SFT on the chosen sides; no term at weight 0.

    RPO's (arXiv 2404.19733, eq. 1), ORPO's (arXiv 2403.07691, eq. 6) and CPO's (arXiv 2401.08417) second part.
    """
    if weight == 0:
        return ()
    aggregation = PairMean(length_normalised=True)
    return (
        PolicyTerm(Source.PREFERENCES, advantage=Reward(), aggregation=aggregation, weight=Always(weight), name="sft"),
    )


def _check(loss: str, beta: float) -> None:
    if loss not in LOSSES:
        raise ValueError(f"loss is {loss!r}; allowed: {', '.join(LOSSES)}")
    if not beta > 0:
        raise ValueError(f"beta is {beta}; allowed: above 0")


def _formula(loss: str, beta: float, score: str, length_normalised: bool, shift: str = "") -> str:
    mean = "1/|y_i| " if length_normalised else ""
    force = LOSSES[loss][1].format(beta=beta)
    return f"{mean}(r_i f(m) - r_j f(-m)), f(m) = {force}, m = s_i - s_j{shift}, s_i = {mean}sum_t {score}"


def _total(batch: TokenBatch, values: Tensor, length_normalised: bool) -> Tensor:
    return batch.sequence_mean(values) if length_normalised else batch.sequence_sum(values)


def _log_odds(log_p: Tensor) -> Tensor:
    return log_p - torch.log(-torch.expm1(log_p))


def _pull(
    batch: TokenBatch,
    score: Tensor,
    force: Callable[[Tensor], Tensor],
    targets: Callable[[Tensor, Tensor], Tensor] = lambda mine, others: mine,
) -> Tensor:
    """A_i = r_i f(m) - r_j f(-m) [S], 0 outside whole pairs; targets: r from the rewards of a side and its partner."""
    other = partners(batch)
    margin, mine, others = score - score[other], batch.reward, batch.reward[other]
    pulled = targets(mine, others) * force(margin) - targets(others, mine) * force(-margin)
    return torch.where(whole(batch, other), pulled, torch.zeros_like(pulled))


def _figures(batch: TokenBatch, rows: Tensor, implicit: Tensor) -> Diagnostics:
    """Over the pairs within `rows` [S] of which one side has the higher reward: implicit rewards [S] of both sides.

    margin: chosen minus rejected. accuracy: share of pairs whose margin is above 0.
    """
    other = partners(batch)
    chosen = (rows & whole(batch, other) & (batch.reward > batch.reward[other])).nonzero().squeeze(1)
    ours, theirs = implicit[chosen], implicit[other[chosen]]
    count = torch.full_like(ours.sum(), chosen.numel())
    return {
        "margin": ((ours - theirs).sum(), count),
        "accuracy": ((ours > theirs).to(ours.dtype).sum(), count),
        "chosen_reward": (ours.sum(), count),
        "rejected_reward": (theirs.sum(), count),
    }
