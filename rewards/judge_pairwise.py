"""A language model's choice between the completions of one prompt, each pair in both orders."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any, Unpack

from posttrain.errors import RecipeError
from posttrain.reward.fence import conversation, shown, verdict
from posttrain.reward.judge import Judge, Judging
from posttrain.trajectory import Prompt

WHOLE_GROUPS = True
DEADLINE_SECONDS = 600.0
CRITERION = "How correct, complete and helpful the answer is."
_FIRST_WINS = {"1": 1.0, "2": 0.0, "TIE": 0.5}


def judge_pairwise(
    prompts: Sequence[Prompt],
    completions: Sequence[Any],
    *,
    criterion: str = CRITERION,
    opponents: int = 0,
    **judging: Unpack[Judging],
) -> list[float | None]:
    """The share of comparisons that a completion wins, ties as halves: mean over opponents j of p_ij.

    p_ij = (s_ij + 1 - s_ji) / 2, where s_ij is 1, 0.5 or 0 as the judge prefers the first of (i, j), takes both for
    equal, or prefers the second: what it makes of places alone cancels. A pair counts where both orders were decided; a
    completion without such a pair is None, as is one that is alone. opponents: each meets so many of those that follow
    it, in a circle; 0: all others. judging: `reward.judge.Judge`. RecipeError for opponents below 0.
    """
    if opponents < 0:
        raise RecipeError(f"judge_pairwise: opponents is {opponents}; allowed: 0 (all others) or more")
    judge = Judge(**judging)
    pairs = _pairs(len(completions), opponents)
    task = f"Which answer to the question is better? What counts: {criterion} Length and order do not."
    asked = []
    for first, second in (order for i, j in pairs for order in ((i, j), (j, i))):
        texts = {
            "question": shown(prompts[first]),
            "first answer": shown(completions[first]),
            "second answer": shown(completions[second]),
        }
        asked.append(conversation(judge.secret, texts, task, "CHOICE", "1, 2 or TIE", judge.max_characters))
    answers = judge.ask([messages for messages, _ in asked])
    said = [
        None if answer is None else verdict(answer, nonce, "1|2|TIE")
        for answer, (_, nonce) in zip(answers, asked, strict=True)
    ]
    won: list[list[float]] = [[] for _ in completions]
    for place, (i, j) in enumerate(pairs):
        one, other = said[2 * place], said[2 * place + 1]
        if one is not None and other is not None:
            p = (_FIRST_WINS[one] + 1 - _FIRST_WINS[other]) / 2
            won[i].append(p)
            won[j].append(1 - p)
    return [fmean(each) if each else None for each in won]


def _pairs(count: int, opponents: int) -> list[tuple[int, int]]:
    """Each pair once, the lower number first."""
    reach = min(opponents, count - 1) if opponents else count - 1
    found = {tuple(sorted((i, (i + step) % count))) for i in range(count) for step in range(1, reach + 1)}
    return sorted((i, j) for i, j in found)
