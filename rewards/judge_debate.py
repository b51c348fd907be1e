"""Two models argue whether a completion is right, and a third decides (Irving et al., arXiv 1805.00899)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Unpack

from posttrain.errors import RecipeError
from posttrain.reward.fence import conversation, shown, verdict
from posttrain.reward.judge import Judge, Judging
from posttrain.trajectory import Prompt

WHOLE_GROUPS = True
DEADLINE_SECONDS = 1200.0
_SIDES = ("is right", "is wrong")


def judge_debate(
    prompts: Sequence[Prompt],
    completions: Sequence[Any],
    *,
    rounds: int = 1,
    debater: str = "",
    debater_url: str = "",
    **judging: Unpack[Judging],
) -> list[float | None]:
    """1.0 where the judge follows the debater who says that the completion is right, 0.0 where the other.

    In each of `rounds` both debaters say why it is right or wrong, at once, after what both said before. The judge
    reads all of it twice, with the debaters in both orders, and the value is the mean: 0.5 where it follows a place.
    None where a debater did not answer or the judge did not decide. debater, debater_url: the debaters' model and its
    server, where they are not the judge's. judging: `reward.judge.Judge`. RecipeError for rounds below 1.
    """
    if rounds < 1:
        raise RecipeError(f"judge_debate: rounds is {rounds}; allowed: 1 or more")
    judge = Judge(**judging)
    arguing = replace(judge, model=debater or judge.model, url=debater_url or judge.url)
    cases = [
        {"question": shown(prompt), "answer": shown(text)} for prompt, text in zip(prompts, completions, strict=True)
    ]
    said: list[list[list[str]] | None] = [[[], []] for _ in cases]
    for _ in range(rounds):
        said = _round(arguing, cases, said)
    asked = [
        _question(judge, case, speeches, order)
        for case, speeches in zip(cases, said, strict=True)
        if speeches is not None
        for order in ((0, 1), (1, 0))
    ]
    answers = judge.ask([messages for messages, _ in asked]) if asked else []
    followed = iter(
        None if answer is None else verdict(answer, nonce, "1|2")
        for answer, (_, nonce) in zip(answers, asked, strict=True)
    )
    values: list[float | None] = []
    for speeches in said:
        orders = (None, None) if speeches is None else (next(followed), next(followed))
        values.append(None if None in orders else ((orders[0] == "1") + (orders[1] == "2")) / 2)
    return values


def _round(
    arguing: Judge, cases: Sequence[dict[str, str]], said: Sequence[list[list[str]] | None]
) -> list[list[list[str]] | None]:
    """What both sides have said after one round more; None where one of them said nothing."""
    asked = []
    for case, speeches in zip(cases, said, strict=True):
        for number, side in enumerate(_SIDES):
            own, other = (speeches[number], speeches[1 - number]) if speeches else ([], [])
            texts = case | _speeches("you have said", own) | _speeches("your opponent has said", other)
            task = f"You debate whether the answer to the question is right. You argue that it {side}: give the best "
            task += "reason in at most 150 words, and answer your opponent where there is something to answer."
            meaning = "the word DONE"
            asked.append(conversation(arguing.secret, texts, task, "DONE", meaning, arguing.max_characters))
    answers = arguing.ask([messages for messages, _ in asked])
    found: list[list[list[str]] | None] = []
    for place, speeches in enumerate(said):
        new = answers[2 * place : 2 * place + 2]
        if speeches is None or None in new:
            found.append(None)
        else:
            found.append([[*speech, _argument(one or "")] for speech, one in zip(speeches, new, strict=True)])
    return found


def _argument(answer: str) -> str:
    """What a debater said, without its thoughts and its last line."""
    said = answer.rpartition("</think>")[2]
    return (said.rpartition("VERDICT")[0] or said).strip()


def _question(
    judge: Judge, case: dict[str, str], speeches: Sequence[Sequence[str]], order: tuple[int, int]
) -> tuple[tuple[dict[str, str], ...], str]:
    """The judge's messages with the sides in this order."""
    texts = dict(case)
    for place, side in enumerate(order, 1):
        texts |= _speeches(f"debater {place}, who says that the answer {_SIDES[side]}", speeches[side])
    task = "Two debaters argue about the answer to the question. Decide by reasons alone who of them is right."
    return conversation(judge.secret, texts, task, "DEBATER", "1 or 2", judge.max_characters)


def _speeches(speaker: str, said: Sequence[str]) -> dict[str, str]:
    return {speaker: "\n\n".join(said)} if said else {}
