"""An algorithm is a sum of terms; this is the only thing the trainer knows.

As a library, inside another trainer: `loss = algorithm(batch).loss; loss.backward()`. The trainer itself calls the
four steps one by one, so that normalisers cover every micro-batch of every rank: `prepare` once over whole groups,
`counts` summed over ranks, `totals` per micro-batch, `reduce` for the one division.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from posttrain.batch import Source, TokenBatch, Unit, coarsest
from posttrain.estimator.diagnostics import Diagnostics, means
from posttrain.estimator.distillation import Divergence
from posttrain.estimator.pairs import partners
from posttrain.estimator.parts import BatchStatistic, Remembering
from posttrain.estimator.plan import Plan
from posttrain.estimator.term import PolicyTerm, Term
from posttrain.estimator.weights import During


@dataclass(frozen=True)
class Loss:
    """A loss to differentiate, and what to log about it."""

    loss: Tensor
    metrics: dict[str, float]


@dataclass(frozen=True)
class Algorithm:
    """A named sum of terms, and what it wants of the run beside them."""

    name: str
    terms: tuple[Term, ...]
    plan: Plan = field(default_factory=Plan)

    def __post_init__(self) -> None:
        """ValueError where two terms share a name, there is none, or two want different divergences."""
        names = [term.name for term in self.terms]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"an algorithm needs terms with different names; {self.name} has {names}")
        if len(wanted := set(self._divergences)) > 1:
            shown = "; ".join(sorted(part.formula for part in wanted))
            raise ValueError(f"terms measure different divergences: {shown}; allowed: one and the same for all")

    @property
    def needs(self) -> frozenset[str]:
        """What a batch must hold: union over the terms."""
        return frozenset().union(*(term.needs for term in self.terms))

    @property
    def sources(self) -> frozenset[Source]:
        """The data sources a step draws from: its terms', but rollouts where a pairing makes preferences of them.

        Demonstrations that the reference policy plays (`Plan.reference_samples`) are not drawn either.
        """
        own = frozenset(term.source for term in self.terms)
        if self.plan.reference_samples:
            own -= {Source.DEMONSTRATIONS}
        return own if self.plan.pairing is None else own - {Source.PREFERENCES} | {Source.ROLLOUTS}

    @property
    def grades_rollouts(self) -> bool:
        """Whether rewards of rollouts are read, by terms (those of preferences have their own) or by the pairing."""
        if self.plan.pairing is not None and self.plan.pairing.graded:
            return True
        return any("rewards" in term.needs for term in self.terms if term.source is not Source.PREFERENCES)

    def samples_at(self, step: int) -> bool:
        """Whether the step after `step` others reads rollouts: not where all that do have their phase elsewhere."""

        def reads(term: Term) -> bool:
            phase = term.describe().get("weight")
            return not isinstance(phase, During) or phase.at(step)

        read = [term for term in self.terms if term.source is Source.ROLLOUTS or "groups" in term.needs]
        return self.plan.pairing is not None or any(reads(term) for term in read)

    @property
    def couples(self) -> Unit:
        """The coarsest unit that must stay in one micro-batch: "group", "pair", "trajectory" or ""."""
        return coarsest(term.couples for term in self.terms)

    @property
    def divergence(self) -> Divergence | None:
        """What its terms read from `TokenBatch.divergence`; None where none does."""
        return next(iter(self._divergences), None)

    @property
    def _divergences(self) -> list[Divergence]:
        return [part for term in self.terms for part in term.describe().values() if isinstance(part, Divergence)]

    @property
    def prepare_needs(self) -> frozenset[str]:
        """The part of `needs` that `prepare` reads: what advantages and weights without the policy are made of."""
        parts = [term.describe().get(role) for term in self.terms for role in ("advantage", "weight")]
        fixed = [part for part in parts if isinstance(part, BatchStatistic) or not getattr(part, "uses_policy", False)]
        return frozenset().union(*(part.needs for part in fixed if part is not None))

    def prepare(self, batch: TokenBatch, add_over_ranks: Callable[[Tensor], Tensor] | None = None) -> TokenBatch:
        """The batch with the terms' advantages [K, A] and coefficients [K, S], computed over whole groups.

        add_over_ranks: sums a tensor over ranks, for statistics of the whole batch (`BatchStatistic`); without it, they
        are this batch's own.
        """
        advantages, coefficients = [], []
        for term in self.terms:
            advantage, coefficient = term.prepare(batch)
            part = term.describe().get("advantage")
            if isinstance(part, BatchStatistic):
                moments = part.moments(batch, advantage, coefficient)
                moments = moments if add_over_ranks is None else add_over_ranks(moments)
                advantage = part.normalise(batch, advantage, coefficient, moments)
            advantages.append(advantage)
            coefficients.append(coefficient)
        return batch.replace(advantages=torch.stack(advantages), coefficients=torch.stack(coefficients))

    def pulls(self, batch: TokenBatch) -> Tensor:
        """How much a prepared batch pulls at each token [A]: advantage times coefficient, summed over policy terms.

        Terms whose advantage depends on the current policy are left out: it is not known yet.
        """
        assert batch.advantages is not None and batch.coefficients is not None
        known = [isinstance(term, PolicyTerm) and not term.advantage.uses_policy for term in self.terms]
        pulls = batch.advantages * batch.coefficients[:, batch.sequence_index]
        return pulls[torch.tensor(known, device=pulls.device)].sum(0)

    def active(self, batch: TokenBatch) -> Tensor:
        """Which pieces [P] of a prepared batch have a gradient; the others can skip the forward pass.

        Exactly those of sequences with a non-zero coefficient and a non-zero advantage on some token of some term, and
        where a term couples pairs, of their partners: the gradient of a side depends on the other.
        """
        assert batch.advantages is not None and batch.coefficients is not None
        acting = torch.stack([batch.sequence_sum(row.abs()) for row in batch.advantages]) != 0
        active: Tensor = ((batch.coefficients != 0) & acting).any(0)
        if any(term.couples == "pair" for term in self.terms):
            other = partners(batch)
            active = active | (active[other] & (other >= 0))
        return active[batch.trajectory_index]

    def counts(self, batch: TokenBatch) -> Tensor:
        """Each term's normaliser over this batch [K]; add over ranks."""
        return torch.stack([term.count(batch).to(batch.reward.dtype) for term in self.terms])

    def totals(self, batch: TokenBatch) -> tuple[Tensor, Diagnostics]:
        """Each term's un-normalised loss [K] over a prepared (micro-)batch, and diagnostics named term/figure."""
        assert batch.advantages is not None and batch.coefficients is not None
        totals: list[Tensor] = []
        found: Diagnostics = {}
        for index, term in enumerate(self.terms):
            total, parts = term.total(batch, batch.advantages[index], batch.coefficients[index])
            totals.append(total)
            found |= {f"{term.name}/{figure}": pair for figure, pair in parts.items()}
        return torch.stack(totals), found

    def remember(self, memory: Mapping[str, float], means: Mapping[str, float]) -> dict[str, float]:
        """What the parts carry into the next step, after one with the diagnostics `means` (over all ranks)."""
        kept: dict[str, float] = {}
        for term in self.terms:
            for part in term.describe().values():
                if isinstance(part, Remembering):
                    kept |= part.remember(memory, means)
        return kept

    def __call__(self, batch: TokenBatch) -> Loss:
        """Loss and metrics of one whole batch, in one go."""
        prepared = self.prepare(batch)
        totals, found = self.totals(prepared)
        return Loss(reduce(totals, self.counts(prepared)), means(found))


def reduce(totals: Tensor, counts: Tensor) -> Tensor:
    """The one place where sums meet their normalisers: sum_k totals_k / counts_k, a count of 0 read as 1."""
    return (totals / torch.where(counts == 0, torch.ones_like(counts), counts)).sum()
