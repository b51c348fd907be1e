"""From a recipe to a loop that is ready to run: cheap checks first, weights last."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain import catalog
from posttrain.algorithms import load
from posttrain.config import Recipe
from posttrain.config.schema import SourceSettings
from posttrain.data.chat import check_supervision, coloured_sample, encode_demonstration, stop_token_ids
from posttrain.data.examples import Example
from posttrain.data.sources import Examples, load_source
from posttrain.data.stream import Stream
from posttrain.batch import Source
from posttrain.errors import DataError
from posttrain.estimator import Algorithm
from posttrain.evaluation.runner import evaluate
from posttrain.models.load import check_model, load_model
from posttrain.models.policy import Policy
from posttrain.models.reference import reference_of
from posttrain.models.tokenizer import load_tokenizer
from posttrain.reward import Grader, RewardSpec
from posttrain.rollout.collector import Collector
from posttrain.rollout.engine import Sampling
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


def check_chat(example: Example, tokenizer: Any, stop_ids: frozenset[int]) -> str:
    """Check the action mask of one demonstration; returns it coloured, for printing."""
    assert example.completion is not None
    encoded = encode_demonstration(example.prompt, example.completion, tokenizer)
    for one in encoded:
        check_supervision(one, tokenizer, stop_ids)
    return coloured_sample(encoded[0], tokenizer)


def build(recipe: Recipe, output: Path, stack: ExitStack, say: Callable[[str], None]) -> Loop:
    """The loop of a fresh run; what it opens (worker processes) is closed by `stack`."""
    algorithm = load(recipe.algorithm.name, **recipe.algorithm.settings)
    check_model(recipe.model)
    grader = _grader(recipe, recipe.rewards, stack) if recipe.rewards else None
    tokenizer = load_tokenizer(recipe.tokenizer, recipe.model)
    data = load_data(recipe, algorithm)
    for line in data.lines:
        say(line)
    if grader is not None:
        for examples in data.examples:
            grader.check_columns(examples[0].columns)
    model = load_model(recipe.model, tokenizer, recipe.seed)
    stop_ids = stop_token_ids(tokenizer, model.generation_config)
    if Source.DEMONSTRATIONS in algorithm.sources and data.examples[0][0].completion is not None:
        say("one demonstration, supervised tokens coloured:\n" + check_chat(data.examples[0][0], tokenizer, stop_ids))
    accelerator = make_accelerator(recipe.training, recipe.tracking, output)
    accelerator.init_trackers(recipe.tracking.project, config={})
    reference = reference_of(model).to(accelerator.device) if "reference_logprobs" in algorithm.needs else None
    collector, evaluation = _sampler(recipe, model, tokenizer, stop_ids, grader, stack)
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
        collector=collector,
        evaluate=evaluation,
        reference=reference,
    )
