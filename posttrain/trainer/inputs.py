"""The data of a run: loaded without what the evaluation asks, and shown before anything expensive starts."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.batch import Source
from posttrain.config import Recipe
from posttrain.config.schema import SourceSettings
from posttrain.data.chat import check_supervision, coloured_sample, encode_demonstration
from posttrain.data.examples import Example, Examples
from posttrain.data.held_out import without
from posttrain.data.sources import load_source
from posttrain.data.stream import Stream
from posttrain.errors import DataError
from posttrain.estimator import Algorithm
from posttrain.reward import Grader

SUPERVISED = (
    (Source.DEMONSTRATIONS, "demonstration", ("completion",)),
    (Source.PREFERENCES, "side of a preference", ("chosen", "rejected")),
    (Source.TRAJECTORIES, "trajectory", ("completion",)),
)
"""Sources of completions that were not sampled, what one is called, and the fields of an example that hold one."""


@dataclass(frozen=True)
class Sources:
    """The loaded data, and what is printed about it."""

    prompts: Stream | None
    demonstrations: Stream | None
    preferences: Stream | None
    examples: Sequence[Examples]
    lines: list[str]
    trajectories: Stream | None


def load_data(recipe: Recipe, algorithm: Algorithm, held_out: Sequence[Example]) -> Sources:
    """Load what the algorithm reads, without what is evaluated; DataError where a source has nothing left."""
    rollouts = Source.ROLLOUTS in algorithm.sources
    imitates = Source.DEMONSTRATIONS in algorithm.sources
    lines: list[str] = []
    loaded: list[Examples] = []

    def stream(settings: Sequence[SourceSettings], kind: str) -> Stream:
        found = []
        for index, one in enumerate(settings):
            whole = _load(one, kind, index)
            source = without(whole, held_out) if held_out else whole
            found.append(source)
            skipped = f", {source.num_skipped} bad rows skipped" if source.num_skipped else ""
            evaluated = len(whole) - len(source)
            left_out = f", {evaluated} left out because the evaluation asks them" if evaluated else ""
            lines.append(f"{kind}: {len(source):,} rows from {source.description}{skipped}{left_out}")
            if not len(source):
                raise DataError(f"{kind}: {source.description} has no usable row")
        loaded.extend(found)
        return Stream(found, [source.weight for source in settings], recipe.seed)

    demonstrations = stream(recipe.demonstrations, "demonstrations") if recipe.demonstrations else None
    preferences = stream(recipe.preferences, "preferences") if recipe.preferences else None
    trajectories = stream(recipe.trajectories, "trajectories") if recipe.trajectories else None
    beside = preferences, loaded, lines, trajectories
    if not rollouts:
        return Sources(None, demonstrations, *beside)
    if not recipe.prompts:
        return Sources(demonstrations, None, *beside)
    prompts = stream(recipe.prompts, "prompts")
    return Sources(prompts, demonstrations if imitates else None, *beside)


def _load(settings: SourceSettings, kind: str, index: int) -> Examples:
    """The rows of one source; its DataError begins with the recipe's field."""
    try:
        return load_source(settings, kind)
    except DataError as error:
        first = re.split(r"[.:]", str(error), maxsplit=1)[0]
        separator = "." if first in SourceSettings.model_fields else ": "
        raise DataError(f"{kind}.{index}{separator}{error}") from error


def check_chat(sources: Sequence[Examples], sides: Sequence[str], tokenizer: Any, stop_ids: frozenset[int]) -> str:
    """Check the action mask of the first demonstration (sides "completion") or preference ("chosen", "rejected").

    Returns it as rich markup.
    """
    found = ((source[0].prompt, getattr(source[0], side)) for source in sources for side in sides)
    first = next((one for one in found if one[1] is not None), None)
    if first is None:
        raise DataError(f"no source of data has a {' or '.join(sides)} in its first row")
    encoded = encode_demonstration(*first, tokenizer)
    check_supervision(encoded, tokenizer, stop_ids)
    return coloured_sample(encoded, tokenizer)


def check_columns(examples: Sequence[Examples], grader: Grader) -> None:
    """DataError where a source of prompts lacks a column that a reward reads."""
    for found in examples:
        first = found[0]
        if first.chosen is None and first.rejected is None and not first.outcomes:
            grader.check_columns(first.columns)


def show_supervised(
    data: Sources, algorithm: Algorithm, tokenizer: Any, stop_ids: frozenset[int], say: Callable[[str], None]
) -> None:
    """Check and print what is supervised in one example of each kind."""
    for source, noun, sides in SUPERVISED:
        if source in algorithm.sources:
            sample = check_chat(data.examples, sides, tokenizer, stop_ids)
            say(f"one {noun} (what is supervised in green):\n{sample}")
