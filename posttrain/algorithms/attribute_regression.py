"""A reward model with a score for each attribute of a completion, such as its helpfulness, from ratings."""

from __future__ import annotations

from posttrain.estimator import Algorithm, Plan
from posttrain.estimator.targets import SquaredDistance, TargetTerm

HELPSTEER = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")


def attribute_regression(*, attributes: list[str] | None = None) -> Algorithm:
    """L = mean over ratings of (s_k - y_k)^2, s_k the score of attribute k at a completion's last token.

    The regression of arXiv 2406.12845 (sec. 3.1) and 2406.08673 (sec. 3.1). attributes: the columns of the trajectories
    that hold ratings, numbers, or keys of their column `attributes` (default: HelpSteer's five, arXiv 2311.09528). A
    rating that is null is not learnt. `final/` is a sequence classification model with a label for each attribute.
    """
    names = HELPSTEER if attributes is None else tuple(attributes)
    if not names or len(set(names)) < len(names):
        raise ValueError(f"attributes is {attributes}; allowed: at least one name, each once")
    plan = Plan(scores=names, labels="attributes")
    return Algorithm("attribute_regression", (TargetTerm(likelihood=SquaredDistance()),), plan)
