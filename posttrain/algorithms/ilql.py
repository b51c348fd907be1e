"""ILQL: implicit Q-learning of language on recorded dialogues, and the policy that follows from it."""

from __future__ import annotations

from posttrain.estimator import Algorithm, Plan, PolicyTerm, Source
from posttrain.estimator.action_values import Bellman, Conservative, Expectile, StepTerm, ValueWeights
from posttrain.estimator.gae import Per
from posttrain.estimator.weights import Always


def ilql(
    *,
    tau: float = 0.7,
    gamma: float = 0.99,
    per: Per = "token",
    conservative_weight: float = 0.1,
    value_weight: float = 1.0,
    beta: float = 0.0,
    cap: float = 20.0,
    target_rate: float = 0.005,
) -> Algorithm:
    """L = mean 1/2 (r + gamma V(s') - Q(s,a))^2 + value_weight L_V + conservative_weight L_CQL + L_policy.

    L_V = mean |tau - 1[u < 0]| u^2, u = Q_target(s,a) - V(s); L_CQL = mean log sum_b exp Q(s,b) - Q(s,a)
    (arXiv 2206.11871, eq. 3 and 4, sec. 4.2, with one Q where the authors' code has the smaller of two);
    L_policy = -mean min(exp(beta (Q_target - V)), cap) log pi: with beta 0 the behaviour's likelihood. What was
    recorded is a table's or a run's, with rewards.

    Sampling with softmax(logits + w Q) improves on the policy without more training: `posttrain eval --value-weight w`
    (sec. 4.3; V is the same for all tokens and drops out). per: "token", or "turn", where an utterance is one action
    and the policy is improved by beta alone. target_rate: how fast the target follows Q.
    """
    if not 0 < target_rate <= 1:
        raise ValueError(f"target_rate is {target_rate}; allowed: above 0, at most 1")
    terms = (
        PolicyTerm(Source.TRAJECTORIES, advantage=ValueWeights(beta, cap, per), name="policy"),
        StepTerm(error=Bellman(gamma, per), name="q"),
        StepTerm(error=Expectile(tau, per), weight=Always(value_weight), name="v"),
        StepTerm(error=Conservative(per), weight=Always(conservative_weight), name="conservative"),
    )
    return Algorithm("ilql", terms, Plan(critic="actions", target_rate=target_rate))
