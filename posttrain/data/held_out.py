"""Keeps training data apart from an evaluation: what a benchmark asks is not trained on."""

from __future__ import annotations

from collections.abc import Iterable

from posttrain.data.examples import Example, Examples
from posttrain.data.ngrams import normalised, overlaps
from posttrain.trajectory import Message, Prompt


def question(prompt: Prompt) -> str:
    """What a prompt asks: its text, or its last message's, without case (NFKC) and with single spaces."""
    return normalised(prompt if isinstance(prompt, str) else content(prompt[-1]))


def content(message: Message) -> str:
    """The text of a message, of its parts where it has several."""
    found = message.get("content") or ""
    parts = [found] if isinstance(found, str) else [str(part.get("text", "")) for part in found]
    return "\n".join(parts)


def problem(item: Example) -> str:
    """What an item of a benchmark asks, without the benchmark's instructions where its row has them apart."""
    own = item.columns.get("problem")
    return own if isinstance(own, str) else question(item.prompt)


def asked(items: Iterable[Example]) -> set[str]:
    """What items ask, with the benchmark's instructions and without."""
    return {text for item in items for text in (question(item.prompt), normalised(problem(item)))}


def apart(examples: Examples, held_out: Iterable[Example]) -> tuple[Examples, list[str]]:
    """The examples that ask nothing which an item of `held_out` asks, and the ids of those that come close.

    Left out: the same question with the benchmark's instructions or without. Close, and still there: 13 words in a row
    shared with an item (`ngrams.overlaps`). Reads every prompt once.
    """
    items = list(held_out)
    questions = asked(items)
    kept: list[int] = []
    texts: list[str] = []
    for index in range(len(examples)):
        text = question(examples[index].prompt)
        if text not in questions:
            kept.append(index)
            texts.append(text)
    found = examples.only(kept)
    return found, [found[one.text].id for one in overlaps(texts, [problem(item) for item in items])]
