"""SRFT: imitation, off-policy and on-policy learning at once, balanced by the policy's entropy."""

from __future__ import annotations

from posttrain.estimator import Algorithm, PolicyTerm, Source
from posttrain.estimator.confidence import EntropyDamped, EntropySigned
from posttrain.estimator.denominators import One
from posttrain.estimator.guidance import GuidedGroupRelative


def srft(
    *,
    imitation_scale: float = 0.5,
    positive_scale: float = 0.1,
    std: bool = True,
    demonstration_reward: float = 1.0,
) -> Algorithm:
    """L = L_SFT(demonstrations) + L_RL(demonstrations) + L_RL(rollouts) (arXiv 2506.19767, sec. 4).

    L_SFT = -w_i log pi(y*), w_i = imitation_scale sg(exp(-H_i)); L_RL(demonstrations) = -pi(y*) A, the denominator 1,
    no clip, A relative to the group with the demonstration rewarded with demonstration_reward; L_RL(rollouts) =
    -positive_scale sg(exp(H_i)) log pi(y) where y is solved, + log pi(y) where not. Reconstruction: each expectation
    is a mean over all tokens of its source (rollouts solved or not), and H_i is the sequence's mean entropy, as in
    the HPT authors' re-implementation.
    """
    imitation = PolicyTerm(Source.DEMONSTRATIONS, advantage=EntropyDamped(imitation_scale), name="imitation")
    guided = PolicyTerm(
        Source.DEMONSTRATIONS,
        denominator=One(),
        advantage=GuidedGroupRelative(demonstration_reward, std),
        name="guided",
    )
    policy = PolicyTerm(Source.ROLLOUTS, advantage=EntropySigned(positive_scale))
    return Algorithm("srft", (imitation, guided, policy))
