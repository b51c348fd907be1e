"""From a recipe to a loop that is ready to run: cheap checks first, weights last."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.markup import escape

from posttrain import catalog
from posttrain.algorithms import load
from posttrain.batch import Source
from posttrain.config import Recipe
from posttrain.config.schema import SourceSettings
from posttrain.data.chat import (
    check_supervision,
    coloured_sample,
    encode_demonstration,
    encode_prompt,
    stop_token_ids,
)
from posttrain.data.examples import Example, Examples
from posttrain.data.held_out import without
from posttrain.data.sources import load_source
from posttrain.data.stream import Stream
from posttrain.errors import DataError
from posttrain.estimator import Algorithm
from posttrain.evaluation.benchmark import Benchmark
from posttrain.evaluation.runner import evaluate, load_items
from posttrain.models.critic import Critic
from posttrain.models.load import check_critic, check_model, load_critic, load_model
from posttrain.models.lora import WithoutAdapter, add_lora
from posttrain.models.policy import Policy, Teacher
from posttrain.models.reference import reference_of
from posttrain.models.teacher import check_teacher, load_teacher
from posttrain.models.tokenizer import load_tokenizer
from posttrain.reward import Grader, RewardSpec
from posttrain.rollout.collector import Collector
from posttrain.rollout.engine import Engine, Sampling
from posttrain.rollout.engines import check_engine, make_engine
from posttrain.trainer.anchor import Anchor
from posttrain.trainer.canary import Canary, training_dtype
from posttrain.trainer.distributed import gather_head, make_accelerator
from posttrain.trainer.loop import Loop
from posttrain.trainer.optimizer import make_optimizer, make_schedule
from posttrain.trainer.step import Updater
from posttrain.trainer.window import WindowBuilder

SUPERVISED = (
    (Source.DEMONSTRATIONS, "demonstration", ("completion",)),
    (Source.PREFERENCES, "side of a preference", ("chosen", "rejected")),
    (Source.TRAJECTORIES, "trajectory", ("completion",)),
)
"""Sources of completions that were not sampled, what one is called, and the fields of an example that hold one."""


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


def build(recipe: Recipe, output: Path, stack: ExitStack, say: Callable[[str], None]) -> Loop:
    """The loop of a fresh run; what it opens (worker processes) is closed by `stack`; `say` takes rich markup."""
    algorithm = load(recipe.algorithm.name, **recipe.algorithm.settings)
    check_model(recipe.model)
    check_engine(recipe.rollout.engine)
    if recipe.teacher is not None:
        check_teacher(recipe.teacher)
    if recipe.critic.path is not None:
        check_critic(recipe.model, recipe.critic)
    specs = [RewardSpec(r.name, r.weight, r.outcome, r.settings) for r in recipe.rewards]
    grader = _grader(recipe, specs, stack) if specs else None
    tokenizer = load_tokenizer(recipe.tokenizer, recipe.model)
    evaluation = _held_out(recipe)
    data = load_data(recipe, algorithm, evaluation.items if evaluation else [])
    for line in data.lines:
        say(escape(line))
    if grader is not None:
        for examples in data.examples:
            if examples[0].chosen is None and examples[0].rejected is None and not examples[0].outcomes:
                grader.check_columns(examples[0].columns)
    model = load_model(recipe.model, tokenizer, recipe.seed)
    teacher = _teacher(recipe, algorithm, tokenizer)
    stop_ids = stop_token_ids(tokenizer, model.generation_config)
    model.generation_config.eos_token_id = sorted(stop_ids)  # so that `final/` stops where training did
    for source, noun, sides in SUPERVISED:
        if source in algorithm.sources:
            sample = check_chat(data.examples, sides, tokenizer, stop_ids)
            say(f"one {noun} (what is supervised in green):\n{sample}")
    accelerator = make_accelerator(recipe.training, recipe.tracking, output)
    accelerator.init_trackers(recipe.tracking.project)
    rollouts = Source.ROLLOUTS in algorithm.sources
    placed = recipe.rollout, model, accelerator.device
    engine = make_engine(*placed) if rollouts or evaluation else None
    replayer = make_engine(*placed) if algorithm.plan.reference_samples else None
    canary = _canary(recipe, engine, model, tokenizer, data, evaluation) if engine else None
    critic = _critic(recipe, algorithm, model, tokenizer)
    reference = _reference(recipe, algorithm, model, accelerator.device)
    if recipe.lora is not None:
        add_lora(model, recipe.lora, recipe.seed)
    updater = _updater(recipe, algorithm, Policy(model, teacher, critic=critic), accelerator)
    if reference is None and "reference_logprobs" in algorithm.needs:
        reference = WithoutAdapter(updater.policy)
    ranks = accelerator.process_index, accelerator.num_processes
    collector = _collector(recipe, algorithm, engine, grader, tokenizer, stop_ids) if engine and rollouts else None
    return Loop(
        recipe=recipe,
        output=output,
        accelerator=accelerator,
        tokenizer=tokenizer,
        updater=updater,
        builder=WindowBuilder(
            recipe,
            algorithm,
            tokenizer,
            data.prompts,
            data.demonstrations,
            *ranks,
            data.preferences,
            data.trajectories,
        ),
        engine=engine,
        collector=collector,
        evaluate=_evaluate(recipe, evaluation, engine, tokenizer, stop_ids, stack) if engine and evaluation else None,
        reference=reference,
        anchor=_anchor(algorithm, reference, collector, replayer),
        canary=canary,
    )


def _canary(
    recipe: Recipe, engine: Engine, model: Any, tokenizer: Any, data: Sources, evaluation: HeldOut | None
) -> Canary:
    """The canary of the first prompt there is; before an adapter or a wrapper changes the model."""
    first = data.examples[0][0] if data.examples else None
    if evaluation is not None and first is None:
        first = evaluation.items[0]
    return Canary(
        engine,
        model,
        encode_prompt(first.prompt, tokenizer) if first is not None else (),
        training_dtype=training_dtype(model, recipe.training.mixed_precision),
        max_mismatch=recipe.rollout.max_mismatch,
    )


def _held_out(recipe: Recipe) -> HeldOut | None:
    if recipe.evaluation is None:
        return None
    benchmark = catalog.build("eval", recipe.evaluation.name, recipe.evaluation.settings)
    return HeldOut(benchmark, load_items(benchmark, recipe.evaluation.limit), recipe.evaluation.samples)


def _reference(recipe: Recipe, algorithm: Algorithm, model: Any, device: torch.device) -> Any:
    """A copy of the starting model where one is needed; an adapter's frozen base can be the reference itself."""
    moves = algorithm.plan.reference_samples > 0 or algorithm.plan.reference_decay > 0
    if moves or ("reference_logprobs" in algorithm.needs and recipe.lora is None):
        return reference_of(model).to(device)
    return None


def _anchor(
    algorithm: Algorithm, reference: Any, collector: Collector | None, replayer: Engine | None
) -> Anchor | None:
    """What the algorithm wants of the reference beyond scoring, on an engine of its own."""
    plan = algorithm.plan
    if reference is None or not (plan.reference_decay or replayer):
        return None
    own = None
    if collector is not None and replayer is not None:
        own = replace(collector, engine=replayer, reset_probability=0.0)
    return Anchor(reference, plan.reference_decay, plan.reference_samples, own)


def _teacher(recipe: Recipe, algorithm: Algorithm, tokenizer: Any) -> Teacher | None:
    """Loaded before there is an accelerator: under ZeRO-3 a model loaded later is split over ranks as if trained."""
    if recipe.teacher is None or algorithm.divergence is None:
        return None
    return load_teacher(recipe.teacher, tokenizer, algorithm.divergence, recipe.seed + 1)


def _critic(recipe: Recipe, algorithm: Algorithm, model: Any, tokenizer: Any) -> Critic | None:
    """The algorithm's second model; it starts as `model` is now where the recipe names no other."""
    reading = algorithm.plan.critic
    if reading is None:
        return None
    own = recipe.critic.path is not None
    return Critic(load_critic(recipe.model, recipe.critic, tokenizer) if own else model, reading)


def _updater(recipe: Recipe, algorithm: Algorithm, policy: Policy, accelerator: Any) -> Updater:
    training = recipe.training
    if policy.teacher is not None:
        policy.teacher.model.to(accelerator.device)
    prepared, optimizer = accelerator.prepare(policy, make_optimizer(policy, training, recipe.critic))
    gather_head(policy)
    return Updater(
        algorithm=algorithm,
        policy=prepared,
        optimizer=optimizer,
        schedule=make_schedule(optimizer, training, recipe.critic),
        accelerator=accelerator,
        tokens_per_microbatch=training.tokens_per_microbatch,
        max_grad_norm=training.max_grad_norm,
        critic=recipe.critic,
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


def _collector(
    recipe: Recipe,
    algorithm: Algorithm,
    engine: Engine,
    grader: Grader | None,
    tokenizer: Any,
    stop_ids: frozenset[int],
) -> Collector:
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
        reset_probability=algorithm.plan.reset_probability,
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
