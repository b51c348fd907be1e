"""A language model's mark for each completion, from 0 to 10."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Unpack

from posttrain.reward.fence import conversation, shown, verdict
from posttrain.reward.judge import Judge, Judging
from posttrain.trajectory import Prompt

WHOLE_GROUPS = True
DEADLINE_SECONDS = 600.0
CRITERION = "How correct, complete and helpful the answer is."


def judge_pointwise(
    prompts: Sequence[Prompt],
    completions: Sequence[Any],
    reference: Sequence[str] | None = None,
    *,
    criterion: str = CRITERION,
    **judging: Unpack[Judging],
) -> list[float | None]:
    """The judge's mark / 10 for each completion by itself; None where it gives no mark that can be read.

    reference: the row's column of a right answer to compare with, where it has one. criterion: what is marked. judging:
    the server, the model and the budget (`reward.judge.Judge`). Answers are kept: the same completion is paid for once.
    """
    judge = Judge(**judging)
    asked = []
    for number, completion in enumerate(completions):
        texts = {"question": shown(prompts[number]), "answer": shown(completion)}
        if reference is not None:
            texts["reference answer, which is right"] = str(reference[number])
        task = f"Mark the answer to the question. What counts: {criterion}"
        meaning = "a whole number from 0 (worthless) to 10 (it could not be better)"
        asked.append(conversation(judge.secret, texts, task, "MARK", meaning, judge.max_characters))
    answers = judge.ask([messages for messages, _ in asked])
    marks = [
        None if answer is None else verdict(answer, nonce, "[0-9]|10")
        for answer, (_, nonce) in zip(answers, asked, strict=True)
    ]
    return [None if mark is None else int(mark) / 10 for mark in marks]
