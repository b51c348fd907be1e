"""OREAL: imitation of solved rollouts, reshaped penalties on unsolved ones, weighted by a token reward model."""

from __future__ import annotations

from typing import Literal

from posttrain.estimator import Algorithm, PolicyTerm, Source
from posttrain.estimator.advantages import ReferenceKL
from posttrain.estimator.aggregation import FixedLength, TokenMean
from posttrain.estimator.filters import MixedOutcome
from posttrain.estimator.outcomes import OldKL, Outcome, Shaping, TokenScored
from posttrain.estimator.parts import Advantage
from posttrain.estimator.plan import Plan
from posttrain.estimator.regularisers import Estimator
from posttrain.estimator.scores import ScoreTerm
from posttrain.estimator.term import Term
from posttrain.estimator.weights import Always


def oreal(
    *,
    token_model: bool = True,
    prefix: bool = True,
    one_each: bool = True,
    negative_weight: float = 0.5,
    shaping: Shaping = "failure_rate",
    kl_weight: float = 0.01,
    kl_anchor: Literal["old", "reference"] = "old",
    kl_estimator: Estimator = "k3",
    aggregation: Literal["sequence_sum", "token_mean"] = "sequence_sum",
) -> Algorithm:
    """L = E_i[sum_t -w+_t log pi(y_t) 1[solved] + eta F(1-p) w-_t log(pi/pi_old)(y_t) 1[unsolved]] + beta KL + L_CE.

    w+ = max(2 sigma(w) - 1, 0) and w- = max(1 - 2 sigma(w), 0) of the token reward model's logits before the update, of
    prefixes (`prefix`) or tokens; L_CE trains it on outcomes, p_i = sigma(mean_t w_t) (arXiv 2502.06781, eq. 10-12).
    Over prompts with 0 < p < 1, and with `one_each` one solved and one unsolved rollout of each. eta = negative_weight,
    beta = kl_weight, to the policy before the update, as printed; log pi(y_<=t) is read as the token's, as in the code.
    token_model False: all token weights 1, no critic; the authors then keep every rollout (one_each False).

    The authors' code: shaping "leave_one_out", kl_anchor "reference", aggregation "token_mean" (over the tokens of the
    solved, of the unsolved, and of all rollouts). They freeze the policy for 10 steps (`critic.warmup_steps: 10`). With
    one update per rollout phase the KL to the policy before the update has no gradient, and nothing bounds the pull
    away from unsolved rollouts: a tiny model was seen to collapse to empty completions. Anchor "reference" has one.
    """

    def policy(outcome: str, name: str) -> PolicyTerm:
        reward: Advantage = Outcome(negative_weight, shaping)
        advantage = TokenScored(reward, prefix) if token_model else reward
        where = MixedOutcome(one_each, outcome)
        return PolicyTerm(Source.ROLLOUTS, advantage=advantage, aggregation=mean, name=name, where=where)

    mean = TokenMean() if aggregation == "token_mean" else FixedLength(1.0)
    kept = MixedOutcome(one_each)
    terms: list[Term] = [policy("any", "policy")]
    if aggregation == "token_mean":
        terms = [policy("solved", "imitation"), policy("unsolved", "contrast")]
    if kl_weight:
        anchor: Advantage = OldKL(kl_estimator) if kl_anchor == "old" else ReferenceKL(kl_estimator)
        terms.append(
            PolicyTerm(
                Source.ROLLOUTS, advantage=anchor, aggregation=mean, weight=Always(kl_weight), name="kl", where=kept
            )
        )
    if token_model:
        terms.append(ScoreTerm(where=kept))
    return Algorithm("oreal", tuple(terms), Plan(critic="action" if token_model else None))
