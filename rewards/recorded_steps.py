"""How much of a recorded trajectory the policy goes through by itself: UI-S1's semi-online performance (SOP)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from posttrain.errors import DataError
from posttrain.reward.graded import Measured

_STEP = re.compile(r"step (\d+) of (\d+)")
_PARTS = 1_000_000


def recorded_steps(states: Sequence[str], off_path: Sequence[bool]) -> Measured:
    """s / t, the steps before the first mistake over the recording's (arXiv 2509.11543, app. A.3); 1.0: it was solved.

    For the environment `semi_online`, whose states it reads. Counted beside it over an evaluation: PG, the mean of
    s / t; TSR, the share that is solved; and their mean, the score.
    """
    found = [_STEP.fullmatch(state) for state in states]
    if not found or found[0] is None:
        raise DataError("recorded_steps: states name no recorded steps; allowed: in the environment semi_online")
    total = int(found[0][2])
    mistaken = next((int(one[1]) - 1 for one, wrong in zip(found, off_path, strict=True) if wrong and one), None)
    through = max(int(one[1]) for one in found if one) if mistaken is None else mistaken
    share, solved = through / total, int(through == total)
    counts = {
        "PG": (round(_PARTS * share), _PARTS),
        "TSR": (solved, 1),
        "score": (round(_PARTS * (share + solved) / 2), _PARTS),
    }
    return Measured(share, counts)
