"""The policy as the judge of its own rollouts: how probable it is that one is better than another.

Each ordered pair of a group's rollouts is put to the policy as a question, and the probabilities of the two labels are
compared; nothing is sampled and nothing is parsed, so no judgement can fail. Questions are scored like training data:
in batches, the question shared by its two labels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from posttrain.batch import Source, TokenSequence
from posttrain.data.chat import encode_prompt
from posttrain.data.questions import question
from posttrain.errors import DataError
from posttrain.estimator.pairing import Chances, Judge
from posttrain.trajectory import Trajectory

Score = Callable[[Sequence[TokenSequence]], list[TokenSequence]]
"""Fills in `old_logprobs`; every rank must take part."""


def judged(groups: Sequence[Sequence[Trajectory]], judge: Judge, tokenizer: Any, score: Score) -> list[Chances]:
    """For each group, the chances [n, n] that its trajectory i is better than its trajectory j; 1/2 on the diagonal.

    chances[i][j] = (P(i as the first is better) + 1 - P(j as the first is better)) / 2, P = softmax over the labels'
    logprobs: the two orders averaged, so that a preference for a place cancels and chances[i][j] + chances[j][i] = 1.
    DataError where the tokenizer makes the same tokens of both labels, or none.
    """
    labels = [tuple(tokenizer.encode(label, add_special_tokens=False)) for label in judge.labels]
    if labels[0] == labels[1] or not all(labels):
        raise DataError(
            f"judge_labels {judge.labels} are tokens {labels}: allowed: labels that the tokenizer tells apart"
        )
    asked = [sequence for group in groups for sequence in _questions(group, judge, labels, tokenizer)]
    totals = iter([sum(sequence.old_logprobs or ()) for sequence in score(asked)])
    return [_chances(len(group), totals) for group in groups]


def _pairs(num: int) -> Iterator[tuple[int, int]]:
    return ((i, j) for i in range(num) for j in range(num) if i != j)


def _questions(
    group: Sequence[Trajectory], judge: Judge, labels: Sequence[tuple[int, ...]], tokenizer: Any
) -> Iterator[TokenSequence]:
    """Both labels after each ordered pair's question."""
    for number, (i, j) in enumerate(_pairs(len(group))):
        asked = question(judge.template, group[0].prompt, group[i].completion, group[j].completion)
        ids = encode_prompt(asked, tokenizer)
        for label in labels:
            mask = (False,) * len(ids) + (True,) * len(label)
            yield TokenSequence(ids + label, mask, Source.ROLLOUTS, group=number)


def _chances(num: int, totals: Iterator[float]) -> Chances:
    first = {pair: _softmax(next(totals), next(totals)) for pair in _pairs(num)}
    return [[0.5 if i == j else (first[i, j] + 1.0 - first[j, i]) / 2 for j in range(num)] for i in range(num)]


def _softmax(one: float, other: float) -> float:
    """e^one / (e^one + e^other)."""
    return 0.5 * (1.0 + math.tanh((one - other) / 2))
