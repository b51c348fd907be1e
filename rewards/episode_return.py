"""What an episode's turns earned in the environment."""

from __future__ import annotations

from collections.abc import Sequence

from posttrain.errors import RecipeError
from posttrain.reward import Graded


def episode_return(
    environment_rewards: Sequence[float | None],
    invalid_actions: Sequence[bool],
    episode_outcome: bool | None,
    *,
    discount: float = 1.0,
    invalid_penalty: float = 0.0,
) -> float | None:
    """sum_t discount^t r_t - invalid_penalty times the actions that could not be carried out, each at its own turn.

    A turn without a reward earned 0; None where no turn has one, since then the environment rewards nothing. An episode
    is solved where the environment says so; where it gives no verdict, with a return of 1 or more.
    RecipeError for a discount outside [0, 1] or a penalty below 0.
    """
    if not 0 <= discount <= 1 or invalid_penalty < 0:
        raise RecipeError(
            f"episode_return: discount is {discount}, invalid_penalty {invalid_penalty}; allowed: 0 to 1, and 0 or more"
        )
    if all(one is None for one in environment_rewards):
        return None
    turns = zip(environment_rewards, invalid_actions, strict=True)
    earned = (discount**t * (one or 0.0) - invalid_penalty * wrong for t, (one, wrong) in enumerate(turns))
    return Graded.spread(earned, episode_outcome)
