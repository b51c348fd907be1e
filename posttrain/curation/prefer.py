"""`posttrain prefer`: recorded trajectories, compared by a judge, become preferences for a reward model.

As in RL-VLM-F (arXiv 2402.03681): a model is asked which of two trajectories of a task is the better one, and its
answers, not rewards, are learnt. There the two are images; here they are texts (an image needs a judge that sees it).
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import combinations
from pathlib import Path
from typing import Any, Protocol

from posttrain import catalog
from posttrain.config.schema import SourceSettings
from posttrain.curation.parts import in_parts
from posttrain.curation.written import check_output, write_rows
from posttrain.data.examples import Completion, Example
from posttrain.data.held_out import content
from posttrain.data.questions import question
from posttrain.data.sources import load_source
from posttrain.errors import DataError, RecipeError
from posttrain.estimator.pairing import Judge
from posttrain.evaluation.model import NamedModel, open_model
from posttrain.rollout.collector import Collector
from posttrain.rollout.engine import Sampling
from posttrain.trajectory import Prompt

Question = tuple[Prompt, str, str]
"""A prompt, and two answers to it."""


class PairJudge(Protocol):
    """Whoever says which of two texts is the better answer."""

    def __call__(self, questions: Sequence[Question]) -> list[float | None]:
        """The chance, from 0 to 1, that the first answer of each is the better one; None where that was not said."""
        ...


@dataclass(frozen=True)
class Compared:
    """Numbers of pairs that were put to the judge, of preferences written, and of pairs left out, by reason."""

    pairs: int
    preferences: int
    left_out: Counter[str]

    def text(self) -> str:
        """In words, a line a reason."""
        first = f"{self.pairs:,} pairs of trajectories, {self.preferences:,} preferences"
        return "\n".join([first, *(f"  {count:,} not: {why}" for why, count in self.left_out.most_common())])


def prefer(
    source: SourceSettings,
    output: Path,
    judge: PairJudge,
    *,
    pairs_per_prompt: int = 4,
    confidence: float = 0.75,
    seed: int = 0,
    made_by: str = "",
) -> Compared:
    """Write a preference for each pair of a prompt's trajectories that the judge is sure about.

    Each pair is asked in both orders; its chance is the mean of p(first) and 1 - p(second as the first), so that a
    preference for a place cancels. A row: prompt, chosen, rejected, `chance` (that of the chosen side) and `made_by`.
    Pairs with a chance below `confidence`, and those that the judge did not answer, are left out. pairs_per_prompt: so
    many are drawn of a prompt's, by `seed`. After a kill the same command goes on. RecipeError, DataError where
    nothing can be written.
    """
    check_output(output)
    if not 0.5 < confidence <= 1 or pairs_per_prompt < 1:
        given = f"--confidence is {confidence}, --pairs {pairs_per_prompt}"
        raise RecipeError(f"{given}; allowed: above 0.5, at most 1; and at least 1")
    questions = [
        one for example in load_source(source, "trajectories") for one in _pairs(example, pairs_per_prompt, seed)
    ]
    if not questions:
        raise DataError(f"{source.path}: no prompt has two different trajectories to compare")
    asked = {"judge": repr(judge), "made_by": made_by}
    chances = in_parts(output, asked, questions, partial(both_orders, judge))
    rows: list[dict[str, Any]] = []
    left_out: Counter[str] = Counter()
    for (prompt, first, second), chance in zip(questions, chances, strict=True):
        if chance is None:
            left_out["the judge did not say"] += 1
        elif max(chance, 1 - chance) < confidence:
            left_out["the judge was not sure, or took sides with a place"] += 1
        else:
            sides = (first, second) if chance > 0.5 else (second, first)
            row = {"prompt": shown(prompt), "chosen": side(prompt, sides[0]), "rejected": side(prompt, sides[1])}
            rows.append(row | {"chance": max(chance, 1 - chance), "made_by": made_by})
    if not rows:
        raise DataError(f"{source.path}: the judge preferred nothing: {dict(left_out)}")
    write_rows(output, rows)
    return Compared(len(questions), len(rows), left_out)


def both_orders(judge: PairJudge, questions: Sequence[Question]) -> list[float | None]:
    """The chance of each first answer, asked in both orders; None unless both were answered."""
    turned = [(prompt, second, first) for prompt, first, second in questions]
    asked = judge([*questions, *turned])
    ahead, behind = asked[: len(questions)], asked[len(questions) :]
    return [None if p is None or q is None else (p + 1 - q) / 2 for p, q in zip(ahead, behind, strict=True)]


@dataclass(frozen=True)
class ModelJudge:
    """A model that is asked for a letter: its weights' directory, a hub id, or an endpoint's address."""

    model: NamedModel
    judge: Judge = field(default_factory=Judge)
    max_tokens: int = 16

    def __call__(self, questions: Sequence[Question]) -> list[float | None]:
        """1 or 0 by the label that its greedy answer gives; None where it gives none, or both."""
        asked = [Example(f"question#{n}", question(self.judge.template, *one)) for n, one in enumerate(questions)]
        groups = self._collector.collect(asked, 1, seed=0)
        return [self.read(group.trajectories[0].completion) for group in groups]

    @cached_property
    def _collector(self) -> Collector:
        self.model.check()
        opened = open_model(self.model)
        sampling = Sampling(self.max_tokens, opened.stop_ids, temperature=0.0)
        alone = catalog.build("environments", "single_turn", {})
        return Collector(opened.engine, alone, None, opened.tokenizer, sampling)

    def read(self, answer: str) -> float | None:
        """What an answer says."""
        first, second = (re.search(rf"(?<!\w){re.escape(label)}(?!\w)", answer) for label in self.judge.labels)
        return None if (first is None) == (second is None) else float(first is not None)


def judge_of(template: Path | None) -> Judge:
    """The judge's question: the file's, or the usual one. RecipeError where it cannot be used."""
    if template is None:
        return Judge()
    if not template.is_file():
        raise RecipeError(f"--template {template}: no such file")
    try:
        return Judge(template.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RecipeError(f"--template {template}: {error}") from error


def _pairs(example: Example, most: int, seed: int) -> list[Question]:
    """At most `most` pairs of different texts."""
    if any(outcome.sampled is not None for outcome in example.outcomes):
        raise DataError(f"{example.id}: stored as tokens; allowed: a file of texts, such as the run's rollouts/")
    texts = list(dict.fromkeys(text_of(outcome.completion) for outcome in example.outcomes))
    pairs = [(example.prompt, *two) for two in combinations(texts, 2)]
    return pairs if len(pairs) <= most else random.Random(f"{seed} {example.id}").sample(pairs, most)


def text_of(completion: Completion) -> str:
    """Its text: that of its last message, where it is a conversation."""
    return completion if isinstance(completion, str) else content(completion[-1])


def shown(prompt: Prompt) -> Any:
    """A prompt for a file."""
    return prompt if isinstance(prompt, str) else [dict(message) for message in prompt]


def side(prompt: Prompt, text: str) -> Any:
    """A text as a preference's side: plain, or an assistant's message where the prompt is a conversation."""
    return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
