"""From a recipe to a loop that is ready to run: cheap checks first, weights last."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape

from posttrain import catalog
from posttrain.algorithms import load
from posttrain.batch import Source
from posttrain.config import Recipe
from posttrain.config.schema import SourceSettings
from posttrain.data.chat import check_supervision, coloured_sample, encode_demonstration, stop_token_ids
from posttrain.data.examples import Examples
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


@dataclass(frozen=True)
class Sources:
    """The loaded data, and what is printed about it."""

    prompts: Stream | None
    demonstrations: Stream | None
    examples: Sequence[Examples]
    lines: list[str]


def load_data(recipe: Recipe, algorithm: Algorithm) -> Sources:
    """Load what the algorithm reads; DataError where a source has nothing."""
    rollouts = Source.ROLLOUTS in algorithm.sources
    imitates = Source.DEMONSTRATIONS in algorithm.sources
    lines: list[str] = []
    loaded: list[Examples] = []

    def stream(settings: Sequence[SourceSettings], kind: str) -> Stream:
        found = [load_source(source, kind) for source in settings]
        for source in found:
            skipped = f", {source.num_skipped} bad rows skipped" if source.num_skipped else ""
            lines.append(f"{kind}: {len(source):,} rows from {source.description}{skipped}")
            if not len(source):
                raise DataError(f"{kind}: {source.description} has no usable row")
        loaded.extend(found)
        return Stream(found, [source.weight for source in settings], recipe.seed)

    demonstrations = stream(recipe.demonstrations, "demonstrations") if recipe.demonstrations else None
    if not rollouts:
        return Sources(None, demonstrations, loaded, lines)
    if not recipe.prompts:
        return Sources(demonstrations, None, loaded, lines)
    return Sources(stream(recipe.prompts, "prompts"), demonstrations if imitates else None, loaded, lines)


def check_chat(sources: Sequence[Examples], tokenizer: Any, stop_ids: frozenset[int]) -> str:
    """Check the action mask of the first demonstration; returns it as rich markup."""
    example = next((source[0] for source in sources if source[0].completion is not None), None)
    if example is None or example.completion is None:
        raise DataError("no source of demonstrations has a completion in its first row")
    encoded = encode_demonstration(example.prompt, example.completion, tokenizer)
    check_supervision(encoded, tokenizer, stop_ids)
    return coloured_sample(encoded, tokenizer)


def build(recipe: Recipe, output: Path, stack: ExitStack, say: Callable[[str], None]) -> Loop:
    """The loop of a fresh run; what it opens (worker processes) is closed by `stack`; `say` takes rich markup."""
    algorithm = load(recipe.algorithm.name, **recipe.algorithm.settings)
    check_model(recipe.model)
    specs = [RewardSpec(r.name, r.weight, r.outcome, r.settings) for r in recipe.rewards]
    grader = _grader(recipe, specs, stack) if specs else None
    tokenizer = load_tokenizer(recipe.tokenizer, recipe.model)
    data = load_data(recipe, algorithm)
    for line in data.lines:
        say(escape(line))
    if grader is not None:
        for examples in data.examples:
            grader.check_columns(examples[0].columns)
    model = load_model(recipe.model, tokenizer, recipe.seed)
    stop_ids = stop_token_ids(tokenizer, model.generation_config)
    if Source.DEMONSTRATIONS in algorithm.sources:
        say("one demonstration (what is supervised in green):\n" + check_chat(data.examples, tokenizer, stop_ids))
    accelerator = make_accelerator(recipe.training, recipe.tracking, output)
    accelerator.init_trackers(recipe.tracking.project, config={})
    reference = reference_of(model).to(accelerator.device) if "reference_logprobs" in algorithm.needs else None
    engine = None
    if grader is not None or recipe.evaluation is not None:
        engine = TransformersEngine(
            model,
            dtype=recipe.rollout.dtype,
            batch_tokens=recipe.rollout.batch_tokens,
            device=accelerator.device,
        )
    policy = Policy(model)
    optimizer = make_optimizer(policy, recipe.training)
    policy, optimizer = accelerator.prepare(policy, optimizer)
    return Loop(
        recipe=recipe,
        output=output,
        accelerator=accelerator,
        tokenizer=tokenizer,
        updater=Updater(
            algorithm=algorithm,
            policy=policy,
            optimizer=optimizer,
            schedule=make_schedule(optimizer, recipe.training),
            accelerator=accelerator,
            tokens_per_microbatch=recipe.training.tokens_per_microbatch,
            max_grad_norm=recipe.training.max_grad_norm,
        ),
        builder=WindowBuilder(
            recipe,
            algorithm,
            tokenizer,
            data.prompts,
            data.demonstrations,
            accelerator.process_index,
            accelerator.num_processes,
        ),
        engine=engine,
        collector=_collector(recipe, engine, grader, tokenizer, stop_ids) if engine and grader else None,
        evaluate=_evaluation(recipe, engine, tokenizer, stop_ids, stack) if engine else None,
        reference=reference,
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


def _evaluation(
    recipe: Recipe, engine: Engine, tokenizer: Any, stop_ids: frozenset[int], stack: ExitStack
) -> Callable[[], dict[str, Any]] | None:
    """Plays the recipe's benchmark; its items are loaded and its workers started now, so that mistakes show first."""
    settings = recipe.evaluation
    if settings is None:
        return None
    benchmark: Benchmark = catalog.build("eval", settings.name, settings.settings)
    items = load_items(benchmark, settings.limit)
    grader = _grader(recipe, benchmark.rewards, stack)

    def run() -> dict[str, Any]:
        result = evaluate(
            benchmark,
            engine,
            tokenizer,
            grader,
            items=items,
            samples=settings.samples,
            seed=recipe.seed,
            stop_ids=stop_ids,
            attempts=recipe.rollout.attempts,
            max_failure_rate=recipe.rollout.max_failure_rate,
        )
        return result.summary()

    return run
