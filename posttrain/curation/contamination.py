"""Which training rows hold a benchmark's questions, and which benchmarks could not be read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from posttrain import catalog
from posttrain.data.held_out import problem
from posttrain.data.ngrams import Overlap, overlaps, words
from posttrain.data.sources import TASKS
from posttrain.errors import RecipeError, UserError
from posttrain.evaluation.runner import load_items

ALL = "all"


@dataclass(frozen=True)
class Questions:
    """What a benchmark asks: the ids and texts of its items; or why it could not be read."""

    benchmark: str
    ids: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    unread: str | None = None


def read_questions(against: Sequence[str]) -> list[Questions]:
    """The benchmarks named: NAME=PATH by a local file, NAME by the hub, `all` the rest of the catalogue by the hub.

    A benchmark that is only part of `all` and cannot be read is there with the reason; one that is named stops with its
    UserError. RecipeError where one is named twice.
    """
    asked: dict[str, str | None] = {}
    for one in against:
        name, equals, path = one.partition("=")
        if name in asked or not name or (equals and not path) or (name == ALL and equals):
            raise RecipeError(f"--against {one}: allowed: each benchmark once, as NAME or NAME=FILE; or {ALL}")
        asked[name] = path or None
    named = [_read(name, path) for name, path in asked.items() if name != ALL]
    if ALL not in asked:
        return named
    for member in catalog.members("eval"):
        if member.name not in asked:
            try:
                named.append(_read(member.name, None))
            except UserError as error:
                named.append(Questions(member.name, unread=str(error).splitlines()[0]))
    return named


def contaminated(texts: Sequence[str], questions: Questions, *, n: int, common: int = 10) -> list[Overlap]:
    """The texts that are an item of the benchmark, or share n words in a row with one (`ngrams.overlaps`)."""
    if n < 1:
        raise RecipeError(f"--ngram {n}; allowed: 1 or more")
    return overlaps(texts, questions.texts, n=n, common=common)


def num_short(questions: Questions, n: int) -> int:
    """Items of fewer than n words: only a text that is all of one is found."""
    return sum(len(words(text)) < n for text in questions.texts)


def _read(name: str, path: str | None) -> Questions:
    settings: dict[str, Any] = {} if path is None else {"data": path}
    benchmark = catalog.build("eval", name, settings)
    if benchmark.source.path == TASKS:
        raise RecipeError(f"benchmark {name}: its tasks are made by seed; there is no text to compare")
    items = load_items(benchmark)
    return Questions(name, tuple(item.id for item in items), tuple(problem(item) for item in items))
