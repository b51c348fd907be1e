"""Keeps training data apart from an evaluation: what a benchmark asks is not trained on."""

from __future__ import annotations

from collections.abc import Iterable

from posttrain.data.examples import Example, Examples
from posttrain.trajectory import Prompt


def question(prompt: Prompt) -> str:
    """What a prompt asks: its text, or its last message's, in lower case and with single spaces."""
    text = prompt if isinstance(prompt, str) else str(prompt[-1]["content"])
    return " ".join(text.lower().split())


def without(examples: Examples, held_out: Iterable[Example]) -> Examples:
    """The examples that ask nothing which an example of `held_out` asks; reads every prompt once."""
    asked = {question(example.prompt) for example in held_out}
    return examples.only([index for index in range(len(examples)) if question(examples[index].prompt) not in asked])
