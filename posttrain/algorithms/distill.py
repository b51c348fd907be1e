"""Distillation: match a teacher's next-token distributions, on rollouts, on demonstrations, or on both."""

from __future__ import annotations

from typing import Literal

from posttrain.estimator import Algorithm, Source
from posttrain.estimator.aggregation import SequenceMean, TokenMean
from posttrain.estimator.distillation import Adaptive, Divergence, DivergenceTerm, ForwardKL, JensenShannon, ReverseKL
from posttrain.estimator.weights import Always


def distill(
    *,
    divergence: Literal["forward_kl", "reverse_kl", "jensen_shannon", "adaptive"] = "jensen_shannon",
    beta: float = 0.5,
    head: float = 0.5,
    on_policy: float = 1.0,
    off_policy: float = 0.0,
    token_mean: bool = False,
) -> Algorithm:
    """L = on_policy E_{y ~ pi}[D(y)] + off_policy E_demonstrations[D(y)], D(y) = 1/|y| sum_t D(p_t, q_t).

    p_t and q_t are the teacher's and the policy's distributions of the next token, over the whole vocabulary, at the
    temperature of the rollouts; none of the gradient flows through sampling (GKD, arXiv 2306.13649, eq. 1 and alg. 1,
    with on_policy = lambda and off_policy = 1 - lambda as weights instead of coin tosses). divergence: forward_kl is
    KL(p || q), reverse_kl KL(q || p); jensen_shannon is beta KL(p || m) + (1 - beta) KL(q || m), m = beta p +
    (1 - beta) q, where beta 0 and 1 stand for forward_kl and reverse_kl; adaptive balances the two by how far p and q
    are apart in the teacher's `head` and in its tail (AKL, arXiv 2404.02657). A weight of 0 leaves the term and its
    data out. token_mean: all tokens weigh the same, as in TRL. ValueError where both weights are 0, and for a beta or
    head that the divergence does not have.
    """
    for name, value, reader in (("beta", beta, "jensen_shannon"), ("head", head, "adaptive")):
        if value != 0.5 and divergence != reader:
            raise ValueError(f"{name} is {value}, which divergence {divergence!r} does not read; allowed with {reader}")
    measured: dict[str, Divergence] = {
        "forward_kl": ForwardKL(),
        "reverse_kl": ReverseKL(),
        "jensen_shannon": JensenShannon(beta),
        "adaptive": Adaptive(head),
    }
    mean = TokenMean() if token_mean else SequenceMean()
    terms = tuple(
        DivergenceTerm(
            source=source, divergence=measured[divergence], weight=Always(weight), aggregation=mean, name=str(source)
        )
        for source, weight in ((Source.ROLLOUTS, on_policy), (Source.DEMONSTRATIONS, off_policy))
        if weight != 0
    )
    if not terms:
        raise ValueError("on_policy and off_policy are both 0; allowed: one of them above 0")
    return Algorithm("distill", terms)
