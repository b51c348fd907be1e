"""What a reward model's trajectories are labelled with: numbers for steps, or for attributes of the whole.

steps        {"prompt", "completions": [a text a step], "labels": [a number from 0 to 1, true, false or null a step]}
             as TRL's stepwise supervision; a step that does not end a line gets a line's end after it, but the
             last; or the row's `separator`
attributes   as demonstrations, with a number, or null, in a column a rating, or in an object `attributes`
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from posttrain.data.examples import Outcome
from posttrain.data.readers import excerpt

Targets = tuple[tuple[float, ...] | None, ...]


def joined_steps(steps: Sequence[str], separator: str | None = None) -> list[str]:
    """The steps with what separates them: together the completion's text."""
    ended = [one + ("" if one.endswith("\n") else "\n") if separator is None else one + separator for one in steps[:-1]]
    return [*ended, *steps[-1:]]


def steps_of(text: str, separator: str = "\n") -> tuple[str, ...]:
    """A text in steps that each end with the separator, but maybe the last; blank ones belong to the step before."""
    found: list[str] = []
    for piece in re.split(f"(?<={re.escape(separator)})", text):
        if found and not (piece.strip() and found[-1].strip()):
            found[-1] += piece
        elif piece:
            found.append(piece)
    return tuple(found)


def step_labels(columns: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[float | None, ...]]:
    """A row's steps, with what separates them, and their labels. ValueError, saying what is wrong."""
    steps, labels, separator = (columns.get(name) for name in ("completions", "labels", "separator"))
    if not isinstance(steps, list | tuple) or not steps or not all(isinstance(one, str) and one for one in steps):
        raise ValueError(f"column 'completions' must be a list of texts, one a step, got {excerpt(steps)}")
    if not isinstance(labels, list | tuple) or len(labels) != len(steps):
        raise ValueError(f"column 'labels' must have a label for each of {len(steps)} steps, got {excerpt(labels)}")
    if separator is not None and not isinstance(separator, str):
        raise ValueError(f"column 'separator' must be text or null, got {excerpt(separator)}")
    wrong = [one for one in labels if one is not None and not (isinstance(one, int | float) and 0 <= one <= 1)]
    if wrong:
        raise ValueError(f"column 'labels': a label must be from 0 to 1, true, false or null, got {excerpt(wrong[0])}")
    return tuple(joined_steps(steps, separator)), tuple(None if one is None else float(one) for one in labels)


def attributes_of(columns: Mapping[str, Any]) -> dict[str, float]:
    """A row's numbers, of its columns and of its column `attributes`; truth values and nan are none."""
    inner = columns.get("attributes")
    found = {**columns, **(inner if isinstance(inner, Mapping) else {})}
    return {
        name: float(value)
        for name, value in found.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


def targets_of(outcome: Outcome, names: Sequence[str], kind: str, actions: Sequence[int], tokenizer: Any) -> Targets:
    """The targets of a completion's action tokens, a number for each of `names`, None where nothing is to be learnt.

    kind: "steps" or "attributes". ValueError where the completion has none, or its text is not found in its tokens.
    """
    found: list[tuple[float, ...] | None] = [None] * len(actions)
    if kind == "attributes":
        ratings = tuple(outcome.attributes.get(name, math.nan) for name in names)
        if all(map(math.isnan, ratings)):
            raise ValueError(f"no rating of {', '.join(names)}; it has {', '.join(outcome.attributes) or 'none'}")
        if found:
            found[-1] = ratings
        return tuple(found)
    for place, label in zip(step_ends(outcome.steps, actions, tokenizer), outcome.step_labels, strict=True):
        if label is not None and place is not None:
            found[place] = (label,)
    return tuple(found)


def step_ends(steps: Sequence[str], actions: Sequence[int], tokenizer: Any) -> list[int | None]:
    """The action token that completes each step: the last token for the last, which also ends the completion.

    None for a step that the tokens, cut short, do not reach. ValueError where they do not spell the steps.
    """

    def decoded(count: int) -> str:
        text: str = tokenizer.decode(list(actions[:count]), skip_special_tokens=True)
        return text

    whole, text = decoded(len(actions)), "".join(steps)
    start = whole.find(text)
    if start < 0:  # cut short: what is there must be how the steps begin
        start = whole.find(text[: len(whole)].rstrip("\ufffd"))
    if start < 0:
        raise ValueError(f"its tokens spell {excerpt(whole)}, not its steps {excerpt(text)}")
    ends: list[int | None] = []
    end = start
    for step in steps:
        end += len(step)
        place = _first(len(actions), lambda count, end=end: len(decoded(count)) >= end)  # type: ignore[misc]
        ends.append(None if place is None else place - 1)
    if ends and ends[-1] is not None:
        ends[-1] = len(actions) - 1
    return ends


def _first(most: int, reached: Callable[[int], bool]) -> int | None:
    """The smallest count from 1 to `most` from which on it is reached; None where it never is."""
    if not most or not reached(most):
        return None
    low, high = 1, most
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if reached(middle) else (middle + 1, high)
    return low
