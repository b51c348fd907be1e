"""The data of a run: loaded without what the evaluation asks, and shown before anything expensive starts."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.batch import Source
from posttrain.config import Recipe
from posttrain.config.schema import CurriculumSettings, SourceSettings
from posttrain.data import pass_rates
from posttrain.data.chat import Encoded, check_supervision, coloured_sample, encode_demonstration
from posttrain.data.curriculum import Buckets, Count, Curriculum, Target
from posttrain.data.examples import Example, Examples
from posttrain.data.held_out import apart
from posttrain.data.recorded import read
from posttrain.data.sources import load_source
from posttrain.data.stream import Stream
from posttrain.data.trajectories import check_recorded
from posttrain.errors import DataError
from posttrain.estimator import Algorithm
from posttrain.reward import Grader
from posttrain.rollout.records import from_record
from posttrain.rollout.sequences import rollout_sequences

SUPERVISED = (
    (Source.DEMONSTRATIONS, "demonstration", ("completion",)),
    (Source.PREFERENCES, "side of a preference", ("chosen", "rejected")),
    (Source.TRAJECTORIES, "trajectory", ("completion",)),
)
"""Sources of completions that were not sampled, what one is called, and the fields of an example that hold one."""


@dataclass(frozen=True)
class Sources:
    """The loaded data, and what is printed about it."""

    prompts: Stream | Curriculum | None
    demonstrations: Stream | None
    preferences: Stream | None
    examples: Sequence[Examples]
    lines: list[str]
    trajectories: Stream | None


def load_data(recipe: Recipe, algorithm: Algorithm, tokenizer: Any, held_out: Sequence[Example]) -> Sources:
    """Load what the algorithm reads, without what is evaluated; DataError where a source has nothing left.

    Also where a source holds tokens of another tokenizer, or lacks the logprobs that the algorithm reads.
    """
    rollouts = Source.ROLLOUTS in algorithm.sources
    imitates = Source.DEMONSTRATIONS in algorithm.sources
    lines: list[str] = []
    loaded: list[Examples] = []
    known: dict[tuple[int, int], float] = {}

    def stream(settings: Sequence[SourceSettings], kind: str) -> Stream:
        found = []
        for index, one in enumerate(settings):
            whole = _load(one, kind, index, algorithm, tokenizer)
            source, close = apart(whole, held_out) if held_out else (whole, [])
            found.append(source)
            skipped = f", {source.num_skipped} bad rows skipped" if source.num_skipped else ""
            evaluated = len(whole) - len(source)
            left_out = f", {evaluated} left out because the evaluation asks them" if evaluated else ""
            lines.append(f"{kind}: {len(source):,} rows from {source.description}{skipped}{left_out}")
            if close:
                lines.append(
                    f"{kind}: {len(close):,} of them share 13 words in a row with what the evaluation asks (the first: "
                    f"{close[0]}); `posttrain curate --against` leaves such rows out"
                )
            if not len(source):
                raise DataError(f"{kind}: {source.description} has no usable row")
            if recipe.curriculum is not None and kind == ("prompts" if recipe.prompts else "demonstrations"):
                found[-1], rates, line = _recorded(recipe.curriculum, source)
                lines.extend(line)
                known.update({(index, row): rate for row, rate in rates.items()})
        loaded.extend(found)
        return Stream(found, [source.weight for source in settings], recipe.seed)

    demonstrations = stream(recipe.demonstrations, "demonstrations") if recipe.demonstrations else None
    preferences = stream(recipe.preferences, "preferences") if recipe.preferences else None
    trajectories = stream(recipe.trajectories, "trajectories") if recipe.trajectories else None
    beside = preferences, loaded, lines, trajectories
    if not rollouts:
        return Sources(None, demonstrations, *beside)
    if not recipe.prompts:
        return Sources(_by_pass_rate(recipe, demonstrations, known), None, *beside)
    prompts = _by_pass_rate(recipe, stream(recipe.prompts, "prompts"), known)
    return Sources(prompts, demonstrations if imitates else None, *beside)


def _recorded(settings: CurriculumSettings, source: Examples) -> tuple[Examples, Mapping[int, float], list[str]]:
    """What recorded pass rates leave of a source, the rates by row, and what is printed of that."""
    try:
        if settings.recorded_run is not None:
            rates = pass_rates.of_run(settings.recorded_run, source)
        elif settings.recorded_column is not None:
            rates = pass_rates.of_column(settings.recorded_column, source)
        else:
            return source, {}, []
        kept, known, line = pass_rates.within(source, rates, settings.min_pass_rate, settings.max_pass_rate)
    except DataError as error:
        field = "recorded_column" if settings.recorded_run is None else "recorded_run"
        raise DataError(f"curriculum.{field}: {error}") from error
    return kept, known, [line]


def _by_pass_rate(
    recipe: Recipe, stream: Stream | None, known: Mapping[tuple[int, int], float]
) -> Stream | Curriculum | None:
    """The prompts, drawn as the curriculum's strategy says; a recorded rate counts as much as one group."""
    settings = recipe.curriculum
    if stream is None or settings is None or settings.strategy is None:
        return stream
    preference = (
        Buckets(settings.bounds, settings.weights)
        if settings.strategy == "buckets"
        else Target(settings.target, settings.width)
    )
    size = recipe.rollout.group_size
    counts = {place: Count(size, rate * size) for place, rate in known.items()}
    return Curriculum(stream, preference, settings.exploration, settings.decay, recipe.seed, counts)


def _load(settings: SourceSettings, kind: str, index: int, algorithm: Algorithm, tokenizer: Any) -> Examples:
    """The rows of one source; its DataError begins with the recipe's field."""
    try:
        labelled = algorithm.plan.labels if kind == "trajectories" else None
        found = load_source(settings, labelled or kind)
        if kind == "trajectories":
            recorded = [term for term in algorithm.terms if term.source is Source.TRAJECTORIES]
            check_recorded(found, tokenizer, logprobs=any("behavior_logprobs" in term.needs for term in recorded))
        return found
    except DataError as error:
        first = re.split(r"[.:]", str(error), maxsplit=1)[0]
        separator = "." if first in SourceSettings.model_fields else ": "
        raise DataError(f"{kind}.{index}{separator}{error}") from error


def check_chat(sources: Sequence[Examples], sides: Sequence[str], tokenizer: Any, stop_ids: frozenset[int]) -> str:
    """Check the action mask of the first demonstration (sides "completion") or preference ("chosen", "rejected").

    Returns it as rich markup.
    """
    found = ((source[0], getattr(source[0], side)) for source in sources for side in sides)
    first = next((one for one in found if one[1] is not None), None)
    if first is None:
        raise DataError(f"no source of data has a {' or '.join(sides)} in its first row")
    example, completion = first
    encoded = encode_demonstration(example.prompt, completion, tokenizer, example.tools)
    check_supervision(encoded, tokenizer, stop_ids)
    return coloured_sample(encoded, tokenizer)


def stored_sample(sources: Sequence[Examples], tokenizer: Any) -> str | None:
    """The first trajectory that is stored with its tokens, as rich markup; None where there is none."""
    place = next((one.sampled for source in sources for one in source[0].outcomes if one.sampled is not None), None)
    if place is None:
        return None
    sequences = rollout_sequences(from_record(read(place)), 0, 0)
    return coloured_sample([Encoded(one.token_ids, one.action_mask) for one in sequences], tokenizer)


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
            stored = stored_sample(data.examples, tokenizer) if source is Source.TRAJECTORIES else None
            sample = stored or check_chat(data.examples, sides, tokenizer, stop_ids)
            say(f"one {noun} (what is supervised in green):\n{sample}")
