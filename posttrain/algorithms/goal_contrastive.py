"""A reward model whose states know how near they are to a preferred end: goal-conditioned contrastive learning."""

from __future__ import annotations

from posttrain.estimator import Algorithm, Plan
from posttrain.estimator.goal_contrast import GoalContrastTerm, GoalCosine
from posttrain.estimator.reward_pairs import BradleyTerry, ComparisonTerm
from posttrain.estimator.weights import Always


def goal_contrastive(
    *,
    contrast_weight: float = 0.5,
    num_states: int = 16,
    mean_goal: bool = False,
    margin: float = 1.0,
    centre: float = 0.0,
) -> Algorithm:
    """L = Bradley-Terry loss + contrast_weight L_C (arXiv 2407.13887, sec. 3), the mean over pairs of

    L_C = -log mean sigma(cos(h_s, h_g)) - log(1 - mean sigma(cos(h_u, h_r))) over num_states pairs of places s < g in
    the preferred completion, and u in it with r in the rejected one; h are last hidden states (`GoalCosine`).
    contrast_weight 0.5 and 16 places as in the authors' code; mean_goal averages the goals' states. margin and centre
    as in `bradley_terry`. Afterwards the cosine of a token's state to a goal state, the mean state of preferred
    completions, says how far a completion has come (`evaluation.goal`).
    """
    terms = (
        ComparisonTerm(comparison=BradleyTerry(margin, centre)),
        GoalContrastTerm(contrast=GoalCosine(num_states, mean_goal), weight=Always(contrast_weight)),
    )
    return Algorithm("goal_contrastive", terms, Plan(scores=("reward",)))
