"""A language model's yes or no to each point of a rubric."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Unpack

from posttrain.errors import RecipeError
from posttrain.reward.fence import conversation, shown, verdict
from posttrain.reward.judge import Judge, Judging
from posttrain.trajectory import Prompt

WHOLE_GROUPS = True
DEADLINE_SECONDS = 600.0
POINTS = ("The answer is correct.", "The answer is complete.", "The answer holds nothing that was not asked for.")


def judge_rubric(
    prompts: Sequence[Prompt],
    completions: Sequence[Any],
    rubric: Sequence[Sequence[str]] | None = None,
    *,
    points: Sequence[str] = POINTS,
    weights: Sequence[float] | None = None,
    **judging: Unpack[Judging],
) -> list[float | None]:
    """sum_k weights_k [point k is met] / sum_k weights_k; None where the judge does not decide every point.

    rubric: the row's column of points, where it has one, in place of `points`. weights: one a point (default: equal).
    judging: `reward.judge.Judge`. RecipeError where there is no point, or not a weight above 0 for each.
    """
    judge = Judge(**judging)
    asked, lists = [], []
    for number, completion in enumerate(completions):
        own = list(points if rubric is None else rubric[number])
        factors = [1.0] * len(own) if weights is None else list(weights)
        if not own or len(factors) != len(own) or min(factors) <= 0:
            raise RecipeError(f"judge_rubric: {len(own)} points, weights {weights}; allowed: a weight above 0 for each")
        listed = "\n".join(f"{place}. {point}" for place, point in enumerate(own, 1))
        task = f"Which of these points does the answer to the question meet?\n{listed}"
        meaning = f"{len(own)} words in the order of the points, each yes or no, with a space between"
        texts = {"question": shown(prompts[number]), "answer": shown(completion)}
        asked.append(conversation(judge.secret, texts, task, "POINTS", meaning, judge.max_characters))
        lists.append(factors)
    answers = judge.ask([messages for messages, _ in asked])
    values: list[float | None] = []
    for answer, (_, nonce), factors in zip(answers, asked, lists, strict=True):
        allowed = " ".join(["(?:yes|no)"] * len(factors))
        said = None if answer is None else verdict(answer, nonce, allowed)
        met = None if said is None else [word == "yes" for word in said.split()]
        values.append(
            None if met is None else sum(f for f, yes in zip(factors, met, strict=True) if yes) / sum(factors)
        )
    return values
