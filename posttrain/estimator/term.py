"""One summand of an objective: a data source and the four parts of the unified policy gradient estimator.

    grad = E_source[ weight * mask * (1 / denominator) * advantage * grad pi ]        (arXiv 2509.04419, eq. 6)

Loss parts return sums; the counts they are divided by come from `count`, over the whole optimiser step.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from posttrain.batch import Source, TokenBatch, Unit, coarsest
from posttrain.estimator import diagnostics, read
from posttrain.estimator.advantages import Constant
from posttrain.estimator.aggregation import TokenMean
from posttrain.estimator.denominators import Current
from posttrain.estimator.diagnostics import Diagnostics
from posttrain.estimator.likelihoods import Ratio
from posttrain.estimator.masks import Unmasked
from posttrain.estimator.parts import (
    Advantage,
    Aggregation,
    Denominator,
    Diagnosing,
    Likelihood,
    Mask,
    Part,
    Weight,
    Where,
)
from posttrain.estimator.weights import Always

_APART = {Source.PREFERENCES, Source.TRAJECTORIES}
"""Sources whose rewards are no grades among a prompt's rollouts."""


class Term(Protocol):
    """What the trainer knows of a term. Other kinds (value regression, divergences) fit the same four calls."""

    @property
    def name(self) -> str:
        """Unique within its algorithm; prefixes its diagnostics."""
        ...

    @property
    def source(self) -> Source:
        """Which sequences it runs over."""
        ...

    @property
    def needs(self) -> frozenset[str]:
        """What the batch must hold: union over its parts."""
        ...

    @property
    def couples(self) -> Unit:
        """ "trajectory", "pair" or "group" where those must share a micro-batch, else ""."""
        ...

    def prepare(self, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        """Advantages [A] (ones where they need the current policy) and coefficients [S], over whole groups."""
        ...

    def count(self, batch: TokenBatch) -> Tensor:
        """This batch's share of the normaliser (a scalar)."""
        ...

    def total(self, batch: TokenBatch, advantage: Tensor, coefficient: Tensor) -> tuple[Tensor, Diagnostics]:
        """The un-normalised loss over a micro-batch (differentiable scalar), and its diagnostics."""
        ...

    def describe(self) -> dict[str, Part]:
        """Its parts by role, for `explain`."""
        ...


@dataclass(frozen=True)
class PolicyTerm:
    """A policy-gradient term; the defaults make it supervised fine-tuning on `source`.

    where: a filter; the sequences it leaves out are neither summed nor counted. correction: weights on its tokens
    beside the mask, which the run adds where another policy has sampled (`importance`).
    """

    source: Source
    denominator: Denominator = field(default_factory=Current)
    advantage: Advantage = field(default_factory=Constant)
    mask: Mask = field(default_factory=Unmasked)
    likelihood: Likelihood = field(default_factory=Ratio)
    aggregation: Aggregation = field(default_factory=TokenMean)
    weight: Weight = field(default_factory=Always)
    name: str = "policy"
    where: Where | None = None
    correction: Mask | None = None

    @property
    def needs(self) -> frozenset[str]:
        """Union over the parts."""
        return frozenset().union(*(part.needs for part in self.describe().values()))

    @property
    def couples(self) -> Unit:
        """The coarsest that a part says."""
        return coarsest(getattr(part, "couples", "") for part in self.describe().values())

    def describe(self) -> dict[str, Part]:
        """The parts by role."""
        roles = ("weight", "aggregation", "mask", "denominator", "advantage", "likelihood")
        parts: dict[str, Part] = {role: getattr(self, role) for role in roles}
        parts |= {} if self.correction is None else {"correction": self.correction}
        return parts if self.where is None else {"where": self.where, **parts}

    def rows(self, batch: TokenBatch) -> Tensor:
        """The sequences [S] the term counts: those of its source that it is about.

        Ungraded ones are left out where rewards are read, unless the advantage itself says what demonstrations, which
        have no reward, count as (`grades_demonstrations`).
        """
        rows = batch.is_from(self.source)
        if "rewards" in self.advantage.needs:
            shown = batch.is_from(Source.DEMONSTRATIONS) & getattr(self.advantage, "grades_demonstrations", False)
            rows = rows & (batch.graded | shown)
        return rows if self.where is None else rows & self.where(batch)

    def prepare(self, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        """Advantages [A] and coefficients [S] = weight * sequence weight on this term's rows, 0 elsewhere."""
        coefficient = self.weight(batch) * batch.weight * self.rows(batch)
        if self.advantage.uses_policy:
            return torch.ones_like(batch.broadcast(coefficient)), coefficient
        advantage = self._per_token(batch)
        return torch.where(batch.broadcast(coefficient) != 0, advantage, torch.zeros_like(advantage)), coefficient

    def count(self, batch: TokenBatch) -> Tensor:
        """The aggregation's count over this term's rows."""
        return self.aggregation.count(batch, self.rows(batch))

    def total(self, batch: TokenBatch, advantage: Tensor, coefficient: Tensor) -> tuple[Tensor, Diagnostics]:
        """-sum_t coefficient * token weight * mask * advantage * likelihood."""
        batch = batch.replace(advantages=advantage.unsqueeze(0))  # a part finds what was prepared for its own term
        logprobs = read.field(batch, "logprobs")
        on = batch.broadcast(coefficient) != 0
        with torch.no_grad():
            # Tokens of other sources may lack an old or a reference policy; their ratio is 1 and their advantage 0.
            if self.advantage.uses_policy:
                advantage = self._per_token(batch)
                advantage = torch.where(on, advantage, torch.zeros_like(advantage))
            log_denominator = torch.where(on, self.denominator(batch), logprobs.detach())
            log_ratio = logprobs.detach() - log_denominator
            mask = self.mask(batch, log_ratio, advantage)
            scale = batch.broadcast(coefficient) * self.aggregation.token_weights(batch) * mask * advantage
            found = diagnostics.of_policy(batch, on)
            if self.correction is not None and on.any():  # without rollouts there is nothing that a sampler reported
                weight = self.correction(batch, log_ratio, advantage)
                found |= diagnostics.of_correction(weight, advantage, on)
                scale = scale * weight
            if self.denominator.needs:  # a policy other than the current one
                found |= diagnostics.of_ratio(log_ratio, mask, advantage, on)
            if isinstance(self.advantage, Diagnosing):
                found |= self.advantage.diagnostics(batch, coefficient != 0)
        surrogate = self.likelihood(logprobs, log_denominator)
        return -(scale * surrogate).sum(), found

    def _per_token(self, batch: TokenBatch) -> Tensor:
        for other in (set(Source) if self.source in _APART else _APART) - {self.source}:
            batch = batch.replace(graded=batch.graded & ~batch.is_from(other))
        advantage = self.advantage(batch)
        return advantage if advantage.shape == batch.sequence_index.shape else batch.broadcast(advantage)
