"""Progress towards a goal, token by token, in the states of a reward model, and its use to filter completions.

Of a model trained with the goal-conditioned contrast (arXiv 2407.13887, sec. 3.3): its states lie near the mean state
of preferred completions where a completion is on its way there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from posttrain.evaluation.reward_model import Scored


@dataclass(frozen=True)
class Filtered:
    """Whether a completion stays above a threshold; first_below: the place of its first token that does not.

    Sampling could have ended there: the tokens after it are what filtering saves.
    """

    kept: bool
    first_below: int | None
    num_tokens: int


def goal_state(preferred: Sequence[Scored]) -> Tensor:
    """The goal [H]: the mean hidden state over all tokens of preferred completions.

    ValueError where they have no tokens, or were scored without hidden states.
    """
    return torch.cat([_hidden(one) for one in preferred], -1).mean(-1)


def progress(completions: Sequence[Scored], goal: Tensor) -> list[Tensor]:
    """Of each completion cos(h_t, goal) at its action tokens [A]; ValueError as `goal_state`."""
    return [cosine_similarity(_hidden(one), goal[:, None], dim=0) for one in completions]


def filtered(cosines: Sequence[Tensor], threshold: float) -> list[Filtered]:
    """Which completions keep every token's progress above the threshold."""
    found = []
    for one in cosines:
        below = (one <= threshold).nonzero().squeeze(1)
        first = int(below[0]) if len(below) else None
        found.append(Filtered(first is None, first, len(one)))
    return found


def _hidden(scored: Scored) -> Tensor:
    if scored.hidden is None or not scored.token_ids:
        raise ValueError(
            "a completion without hidden states; allowed: of RewardModel.load(..., hidden=True), not empty"
        )
    return scored.hidden
