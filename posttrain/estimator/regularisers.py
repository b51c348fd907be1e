"""The two terms that many objectives add to their own: a KL penalty towards the reference, and an entropy bonus."""

from __future__ import annotations

from typing import Literal

from posttrain.batch import Source
from posttrain.estimator.advantages import ReferenceKL
from posttrain.estimator.entropy import EntropyTerm
from posttrain.estimator.parts import Aggregation
from posttrain.estimator.term import PolicyTerm, Term
from posttrain.estimator.weights import Always

Estimator = Literal["k1", "k2", "k3"]


def regularisers(
    aggregation: Aggregation,
    *,
    kl_weight: float = 0.0,
    kl_estimator: Estimator = "k3",
    entropy_weight: float = 0.0,
    source: Source = Source.ROLLOUTS,
) -> tuple[Term, ...]:
    """-kl_weight KL(pi || pi_ref) and +entropy_weight H(pi), over `source`; a weight of 0 leaves its term out."""
    terms: list[Term] = []
    if kl_weight:
        penalty = ReferenceKL(kl_estimator)
        terms.append(
            PolicyTerm(source, advantage=penalty, aggregation=aggregation, weight=Always(kl_weight), name="kl")
        )
    if entropy_weight:
        terms.append(EntropyTerm(source=source, weight=Always(entropy_weight), aggregation=aggregation))
    return tuple(terms)
