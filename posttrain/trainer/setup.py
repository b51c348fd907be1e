"""From a recipe to a loop that is ready to run: cheap checks first, weights last."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.markup import escape

from posttrain import catalog
from posttrain.algorithms import load
from posttrain.batch import Source
from posttrain.config import Recipe
from posttrain.config.schema import SourceSettings
from posttrain.data.chat import check_supervision, coloured_sample, encode_demonstration, stop_token_ids
from posttrain.data.examples import Example, Examples
from posttrain.data.held_out import without
from posttrain.data.sources import load_source
from posttrain.data.stream import Stream
from posttrain.errors import DataError
from posttrain.estimator import Algorithm
from posttrain.evaluation.benchmark import Benchmark
from posttrain.evaluation.runner import evaluate, load_items
from posttrain.models.load import check_model, load_model
from posttrain.models.policy import Policy
from posttrain.models.reference import reference_of
from posttrain.models.tokenizer import load_tokenizer
from posttrain.reward import Grader, RewardSpec
from posttrain.rollout.collector import Collector
from posttrain.rollout.engine import Engine, Sampling
from posttrain.rollout.transformers_engine import TransformersEngine
from posttrain.trainer.distributed import make_accelerator
from posttrain.trainer.loop import Loop
from posttrain.trainer.optimizer import make_optimizer, make_schedule
from posttrain.trainer.step import Updater
from posttrain.trainer.window import WindowBuilder

SUPERVISED = (
    (Source.DEMONSTRATIONS, "demonstration", "completion"),
    (Source.PREFERENCES, "preference's chosen side", "chosen"),
)
"""Sources of completions that were not sampled, what one is called, and the field of an example that holds it."""


@dataclass(frozen=True)
class HeldOut:
    """The recipe's benchmark, its items, and completions per item (None: the benchmark's own number)."""

    benchmark: Benchmark
    items: Sequence[Example]
    samples: int | None


@dataclass(frozen=True)
class Sources:
    """The loaded data, and what is printed about it."""

    prompts: Stream | None
    demonstrations: Stream | None
    preferences: Stream | None
    examples: Sequence[Examples]
    lines: list[str]


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
    if not rollouts:
        return Sources(None, demonstrations, preferences, loaded, lines)
    if not recipe.prompts:
        return Sources(demonstrations, None, preferences, loaded, lines)
    prompts = stream(recipe.prompts, "prompts")
    return Sources(prompts, demonstrations if imitates else None, preferences, loaded, lines)


def _load(settings: SourceSettings, kind: str, index: int) -> Examples:
    """The rows of one source; its DataError begins with the recipe's field."""
    try:
        return load_source(settings, kind)
    except DataError as error:
        first = re.split(r"[.:]", str(error), maxsplit=1)[0]
        separator = "." if first in SourceSettings.model_fields else ": "
        raise DataError(f"{kind}.{index}{separator}{error}") from error


def check_chat(sources: Sequence[Examples], side: str, tokenizer: Any, stop_ids: frozenset[int]) -> str:
    """Check the action mask of the first demonstration (side "completion") or preference ("chosen").

    Returns it as rich markup.
    """
    example = next((source[0] for source in sources if getattr(source[0], side) is not None), None)
    if example is None:
        raise DataError(f"no source of data has a {side} in its first row")
    encoded = encode_demonstration(example.prompt, getattr(example, side), tokenizer)
    check_supervision(encoded, tokenizer, stop_ids)
    return coloured_sample(encoded, tokenizer)


def build(recipe: Recipe, output: Path, stack: ExitStack, say: Callable[[str], None]) -> Loop:
    """The loop of a fresh run; what it opens (worker processes) is closed by `stack`; `say` takes rich markup."""
    algorithm = load(recipe.algorithm.name, **recipe.algorithm.settings)
    check_model(recipe.model)
    specs = [RewardSpec(r.name, r.weight, r.outcome, r.settings) for r in recipe.rewards]
    grader = _grader(recipe, specs, stack) if specs else None
    tokenizer = load_tokenizer(recipe.tokenizer, recipe.model)
    evaluation = _held_out(recipe)
    data = load_data(recipe, algorithm, evaluation.items if evaluation else [])
    for line in data.lines:
        say(escape(line))
    if grader is not None:
        for examples in data.examples:
            if examples[0].chosen is None:
                grader.check_columns(examples[0].columns)
    model = load_model(recipe.model, tokenizer, recipe.seed)
    stop_ids = stop_token_ids(tokenizer, model.generation_config)
    model.generation_config.eos_token_id = sorted(stop_ids)  # so that `final/` stops where training did
    for source, noun, side in SUPERVISED:
        if source in algorithm.sources:
            sample = check_chat(data.examples, side, tokenizer, stop_ids)
            say(f"one {noun} (what is supervised in green):\n{sample}")
    accelerator = make_accelerator(recipe.training, recipe.tracking, output)
    accelerator.init_trackers(recipe.tracking.project)
    reference = reference_of(model).to(accelerator.device) if "reference_logprobs" in algorithm.needs else None
    engine = _engine(recipe, model, accelerator.device) if grader or evaluation else None
    updater = _updater(recipe, algorithm, Policy(model), accelerator)
    ranks = accelerator.process_index, accelerator.num_processes
    return Loop(
        recipe=recipe,
        output=output,
        accelerator=accelerator,
        tokenizer=tokenizer,
        updater=updater,
        builder=WindowBuilder(
            recipe, algorithm, tokenizer, data.prompts, data.demonstrations, *ranks, data.preferences
        ),
        engine=engine,
        collector=_collector(recipe, engine, grader, tokenizer, stop_ids) if engine and grader else None,
        evaluate=_evaluate(recipe, evaluation, engine, tokenizer, stop_ids, stack) if engine and evaluation else None,
        reference=reference,
    )


def _held_out(recipe: Recipe) -> HeldOut | None:
    if recipe.evaluation is None:
        return None
    benchmark = catalog.build("eval", recipe.evaluation.name, recipe.evaluation.settings)
    return HeldOut(benchmark, load_items(benchmark, recipe.evaluation.limit), recipe.evaluation.samples)


def _engine(recipe: Recipe, model: Any, device: torch.device) -> Engine:
    rollout = recipe.rollout
    return TransformersEngine(model, dtype=rollout.dtype, batch_tokens=rollout.batch_tokens, device=device)


def _updater(recipe: Recipe, algorithm: Algorithm, policy: Policy, accelerator: Any) -> Updater:
    training = recipe.training
    prepared, optimizer = accelerator.prepare(policy, make_optimizer(policy, training))
    return Updater(
        algorithm=algorithm,
        policy=prepared,
        optimizer=optimizer,
        schedule=make_schedule(optimizer, training),
        accelerator=accelerator,
        tokens_per_microbatch=training.tokens_per_microbatch,
        max_grad_norm=training.max_grad_norm,
    )


def _grader(recipe: Recipe, rewards: Sequence[RewardSpec], stack: ExitStack) -> Grader:
    """Workers that start at once, while the rest loads."""
    rollout = recipe.rollout
    grader = Grader(
        rewards,
        workers=rollout.reward_workers,
        deadline_seconds=rollout.deadline_seconds,
        memory_bytes=rollout.memory_bytes,
    )
    return stack.enter_context(grader)


def _collector(recipe: Recipe, engine: Engine, grader: Grader, tokenizer: Any, stop_ids: frozenset[int]) -> Collector:
    rollout = recipe.rollout
    return Collector(
        engine=engine,
        environment=catalog.build("environments", recipe.environment.name, recipe.environment.settings),
        grader=grader,
        tokenizer=tokenizer,
        sampling=Sampling(
            max_tokens=rollout.max_tokens,
            stop_token_ids=stop_ids,
            temperature=rollout.temperature,
            top_p=rollout.top_p,
            top_k=rollout.top_k,
        ),
        attempts=rollout.attempts,
    )


def _evaluate(
    recipe: Recipe, held_out: HeldOut, engine: Engine, tokenizer: Any, stop_ids: frozenset[int], stack: ExitStack
) -> Callable[[], dict[str, Any]]:
    """Plays the recipe's benchmark; its workers start now, so that mistakes show first."""
    grader = _grader(recipe, held_out.benchmark.rewards, stack)

    def run() -> dict[str, Any]:
        result = evaluate(
            held_out.benchmark,
            engine,
            tokenizer,
            grader,
            items=held_out.items,
            samples=held_out.samples,
            seed=recipe.seed,
            stop_ids=stop_ids,
            attempts=recipe.rollout.attempts,
            max_failure_rate=recipe.rollout.max_failure_rate,
        )
        return result.summary()

    return run
