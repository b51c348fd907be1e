"""Preference losses as advantages: what each side of a pair is pulled by, from its score and its margin.

Write s_i for the score of side i (such as sum_t log pi/pi_ref), m = s_i - s_j for its margin over its partner, and
r_i for its reward, the probability that it is preferred: 1 and 0 where the preference is certain. The gradient of the
expected loss is -sum_i A_i grad s_i with

    A_i = r_i (f(m) + g(s_i)) - r_j (f(-m) + h(s_i))                       (DPO, arXiv 2305.18290, eq. 7 and sec. 4)

and f, g, h the forces of `pair_losses.LOSSES`; g = h = 0 where the loss is a function of the margin alone. Side and
partner must lie in one micro-batch; a pair with an ungraded side has advantage 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from posttrain.batch import Source, TokenBatch, Unit
from posttrain.estimator.advantages import Reward
from posttrain.estimator.diagnostics import Diagnostics
from posttrain.estimator.pair_losses import LOSSES, MARGIN_LOSSES, SCORES
from posttrain.estimator.pairs import PairMean, partners, whole
from posttrain.estimator.read import field
from posttrain.estimator.term import PolicyTerm
from posttrain.estimator.weights import Always


@dataclass(frozen=True)
class PairPreference:
    """Scores against a frozen reference: s_i = d_i = sum_t log pi/pi_ref (DPO, arXiv 2305.18290, eq. 7).

    length_normalised: d_i is the mean over tokens. divergence: other than reverse_kl, s_i is a function of d_i
    (`pair_losses.SCORES`). constant: the loss's own, None for its usual value. label_smoothing: the share of flipped
    labels: r_i becomes (1 - eps) r_i + eps r_j (conservative DPO, Mitchell 2023); with `unbiased`,
    ((1 - eps) r_i - eps r_j) / (1 - 2 eps) (robust DPO, arXiv 2403.00409).
    """

    loss: str = "sigmoid"
    beta: float = 0.1
    label_smoothing: float = 0.0
    unbiased: bool = False
    length_normalised: bool = False
    constant: float | None = None
    divergence: str = "reverse_kl"
    needs: ClassVar[frozenset[str]] = frozenset({"rewards", "reference_logprobs"})
    uses_policy: ClassVar[bool] = True
    couples: ClassVar[Unit] = "pair"

    def __post_init__(self) -> None:
        """ValueError outside the tables, for beta <= 0 and for label_smoothing outside [0, 0.5)."""
        _check(self.loss, self.beta, tuple(LOSSES))
        _check_constant(self.loss, self.constant)
        if self.divergence not in SCORES:
            raise ValueError(f"divergence is {self.divergence!r}; allowed: {', '.join(SCORES)}")
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(f"label_smoothing is {self.label_smoothing}; allowed: at least 0, below 0.5")

    @property
    def formula(self) -> str:
        """A_i, its forces and the score."""
        target = f", r smoothed by {self.label_smoothing:g}" if self.label_smoothing else ""
        score, factor = _summed("log(pi/pi_ref)", self.length_normalised), ""
        if self.divergence != "reverse_kl":
            _, _, value, slope = SCORES[self.divergence]
            score, factor = f"{value}, d_i = {score}", f"{slope} "
        return factor + _formula(self.loss, self.beta, self._constant, score, self.length_normalised) + target

    def __call__(self, batch: TokenBatch) -> Tensor:
        """[S]."""
        ratio = self._ratio(batch)
        score, slope, _, _ = SCORES[self.divergence]
        pulled = slope(ratio) * _pull(batch, score(ratio), self.loss, self.beta, self._constant, targets=self._targets)
        return pulled / batch.lengths.clamp(min=1) if self.length_normalised else pulled

    def diagnostics(self, batch: TokenBatch, rows: Tensor) -> Diagnostics:
        """Figures of the implicit rewards beta d_i."""
        return _figures(batch, rows, self.beta * self._ratio(batch))

    @property
    def _constant(self) -> float:
        return self.constant if self.constant is not None else LOSSES[self.loss].constant or 0.0

    def _ratio(self, batch: TokenBatch) -> Tensor:
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
        """ValueError for another loss than of the margin, and for beta <= 0."""
        _check(self.loss, self.beta, MARGIN_LOSSES)

    @property
    def formula(self) -> str:
        """A_i, f and the score."""
        shift = f" - {self.gamma / self.beta:g}" if self.gamma else ""
        score = _summed("log(pi)", self.length_normalised)
        return _formula(self.loss, self.beta, self._constant, score, self.length_normalised, shift)

    def __call__(self, batch: TokenBatch) -> Tensor:
        """[S]."""
        shift = self.gamma / self.beta
        pulled = _pull(batch, self._score(batch), self.loss, self.beta, self._constant, shift)
        return pulled / batch.lengths.clamp(min=1) if self.length_normalised else pulled

    def diagnostics(self, batch: TokenBatch, rows: Tensor) -> Diagnostics:
        """Figures of the implicit rewards beta s_i."""
        return _figures(batch, rows, self.beta * self._score(batch))

    @property
    def _constant(self) -> float:
        return LOSSES[self.loss].constant or 0.0

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
        pulled = _pull(batch, _log_odds(log_p), "sigmoid", beta=1.0)
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


def _check(loss: str, beta: float, allowed: Sequence[str]) -> None:
    if loss not in allowed:
        raise ValueError(f"loss is {loss!r}; allowed: {', '.join(allowed)}")
    if not beta > 0:
        raise ValueError(f"beta is {beta}; allowed: above 0")


def _check_constant(loss: str, constant: float | None) -> None:
    if constant is None:
        return
    if LOSSES[loss].constant is None:
        owners = " and ".join(name for name, one in LOSSES.items() if one.constant is not None)
        raise ValueError(f"constant is {constant}, and loss {loss!r} has none; allowed: with {owners}")
    if not 0 < constant < 1:
        raise ValueError(f"constant is {constant}; allowed: above 0, below 1")


def _formula(loss: str, beta: float, constant: float, score: str, length_normalised: bool, shift: str = "") -> str:
    mean = "1/|y_i| " if length_normalised else ""
    one = LOSSES[loss]
    margin = one.margin is not None
    forces = [
        " + ".join([f"f({sign}m)"] * margin + [f"{name}(s_i)"] * (force is not None)) or "0"
        for sign, name, force in (("", "g", one.chosen), ("-", "h", one.rejected))
    ]
    first, second = (force if force.count("(") == 1 else f"({force})" for force in forces)
    defined = f"{one.formula(beta, constant)}" + (f", m = s_i - s_j{shift}" if margin else "")
    return f"{mean}(r_i {first} - r_j {second}), {defined}, s_i = {score}"


def _summed(values: str, length_normalised: bool) -> str:
    return f"{'1/|y_i| ' if length_normalised else ''}sum_t {values}"


def _total(batch: TokenBatch, values: Tensor, length_normalised: bool) -> Tensor:
    return batch.sequence_mean(values) if length_normalised else batch.sequence_sum(values)


def _log_odds(log_p: Tensor) -> Tensor:
    return log_p - torch.log(-torch.expm1(log_p))


def _pull(
    batch: TokenBatch,
    score: Tensor,
    loss: str,
    beta: float,
    constant: float = 0.0,
    shift: float = 0.0,
    targets: Callable[[Tensor, Tensor], Tensor] = lambda mine, others: mine,
) -> Tensor:
    """A_i [S], 0 outside whole pairs. targets: r from the rewards of a side and its partner; shift: off the margin."""
    other = partners(batch)
    one, margin, mine, others = LOSSES[loss], score - score[other], batch.reward, batch.reward[other]
    pull = targets(mine, others) * one.pull(margin - shift, score, beta, constant)
    push = targets(others, mine) * one.push(-margin - shift, score, beta, constant)
    return torch.where(whole(batch, other), pull - push, torch.zeros_like(score))


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
