"""From a recipe to a loop that is ready to run: cheap checks first, weights last."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from rich.markup import escape

from posttrain.batch import Source
from posttrain.config import Recipe
from posttrain.config.schema import RewardSettings
from posttrain.data.chat import encode_prompt, stop_token_ids
from posttrain.estimator import Algorithm
from posttrain.evaluation.model import Opened
from posttrain.evaluation.partner import make_environment
from posttrain.models.compiled import compile_layers
from posttrain.models.load import load_model
from posttrain.models.lora import WithoutAdapter, add_lora
from posttrain.models.offload import offload_activations
from posttrain.models.policy import Policy
from posttrain.models.quantised import plain
from posttrain.models.scorer import Scorer, pad_apart
from posttrain.models.tokenizer import load_tokenizer
from posttrain.models.vision import repeat_exactly
from posttrain.reward import Grader, RewardSpec
from posttrain.rollout.collector import Collector
from posttrain.rollout.engine import Engine, Sampling
from posttrain.rollout.engines import check_engine, make_engine
from posttrain.trainer.ahead import gather_aside
from posttrain.trainer.beside import anchor_of, check_models, copied_reference, critic_of, reward_model_of, teacher_of
from posttrain.trainer.canary import Canary, training_dtype
from posttrain.trainer.corrected import algorithm_of
from posttrain.trainer.distributed import make_accelerator, of_all_ranks, prepare
from posttrain.trainer.evaluations import Evaluations, Player, Selection, load_evaluations
from posttrain.trainer.inputs import Sources, check_columns, load_data, show_supervised
from posttrain.trainer.loop import Loop
from posttrain.trainer.memory_meter import MemoryMeter
from posttrain.trainer.optimizer import make_optimizer, make_schedule
from posttrain.trainer.redraw import Gather
from posttrain.trainer.sampler import Sampler
from posttrain.trainer.step import Updater
from posttrain.trainer.window import WindowBuilder


def build(recipe: Recipe, output: Path, stack: ExitStack, say: Callable[[str], None]) -> Loop:
    """The loop of a fresh run; what it opens (worker processes) is closed by `stack`; `say` takes rich markup."""
    algorithm = algorithm_of(recipe)
    check_models(recipe, algorithm)
    check_engine(recipe.rollout.engine, recipe.rollout.servers)
    specs = [reward_spec(reward) for reward in recipe.rewards]
    grader = _grader(recipe, specs, stack) if specs else None
    tokenizer = load_tokenizer(recipe.tokenizer, recipe.model)
    held_out = load_evaluations(recipe)
    data = load_data(recipe, algorithm, tokenizer, held_out.items)
    for line in data.lines:
        say(escape(line))
    if grader is not None:
        check_columns(data.examples, grader)
    meter = MemoryMeter()
    model = load_model(recipe.model, tokenizer, recipe.seed)
    teacher = teacher_of(recipe, algorithm, tokenizer)
    stop_ids = stop_token_ids(tokenizer, model.generation_config)
    model.generation_config.eos_token_id = sorted(stop_ids)  # so that `final/` stops where training did
    show_supervised(data, algorithm, tokenizer, stop_ids, say)
    accelerator = make_accelerator(recipe.training, recipe.tracking, output)
    accelerator.init_trackers(recipe.tracking.project)
    rollouts = Source.ROLLOUTS in algorithm.sources
    samples = rollouts or held_out.selects is not None
    placed = recipe.rollout, plain(model) if samples else model, accelerator.device
    engine = make_engine(*placed, directory=output, stack=stack) if samples else None
    replayer = make_engine(*placed) if algorithm.plan.reference_samples else None
    canary = _canary(recipe, engine, model, tokenizer, data, held_out) if engine else None
    critic = critic_of(recipe, algorithm, model, tokenizer)
    reference = copied_reference(recipe, algorithm, model, accelerator.device)
    if recipe.lora is not None:
        add_lora(model, recipe.lora, recipe.seed)
    if recipe.model.compile:
        compile_layers(model)
    trained: Policy | Scorer = Policy(model, teacher, critic=critic)
    if algorithm.plan.scores:
        trained = reward_model_of(algorithm, model)
        pad_apart(trained.model, tokenizer, stop_ids)
    updater = _updater(recipe, algorithm, trained, accelerator)
    if reference is None and "reference_logprobs" in algorithm.needs:
        reference = WithoutAdapter(updater.policy)
    evaluate, report = _players(recipe, held_out, engine, tokenizer, stop_ids, stack)
    collector = None
    if engine and rollouts:
        collector = _collector(recipe, algorithm, engine, grader, tokenizer, stop_ids, stack)
    return Loop(
        recipe=recipe,
        output=output,
        accelerator=accelerator,
        tokenizer=tokenizer,
        updater=updater,
        builder=_builder(recipe, algorithm, tokenizer, data, accelerator),
        sampler=Sampler(engine, updater.policy, accelerator, canary) if engine else None,
        collector=collector,
        evaluate=evaluate,
        selection=_selection(recipe, output, report),
        reference=reference,
        anchor=anchor_of(algorithm, reference, collector, replayer),
        meter=meter,
    )


def _builder(recipe: Recipe, algorithm: Algorithm, tokenizer: Any, data: Sources, accelerator: Any) -> WindowBuilder:
    return WindowBuilder(
        recipe,
        algorithm,
        tokenizer,
        data.prompts,
        data.demonstrations,
        accelerator.process_index,
        accelerator.num_processes,
        data.preferences,
        data.trajectories,
        _gather(recipe, accelerator),
    )


def _gather(recipe: Recipe, accelerator: Any) -> Gather:
    """How ranks agree on what is drawn again: beside the main threads, where windows are played in another."""
    if recipe.rollout.max_staleness:
        return gather_aside(accelerator, recipe.training.collective_timeout_seconds)
    return partial(of_all_ranks, accelerator)


def _canary(recipe: Recipe, engine: Engine, model: Any, tokenizer: Any, data: Sources, held_out: Evaluations) -> Canary:
    """The canary of the first prompt there is; before an adapter or a wrapper changes the model."""
    first = data.examples[0][0] if data.examples else None
    if first is None:
        first = next(iter(held_out.items), None)
    return Canary(
        engine,
        model,
        encode_prompt(first.prompt, tokenizer) if first is not None else (),
        training_dtype=training_dtype(model, recipe.training.mixed_precision),
        max_mismatch=recipe.rollout.max_mismatch,
    )


def _updater(recipe: Recipe, algorithm: Algorithm, policy: Policy | Scorer, accelerator: Any) -> Updater:
    training = recipe.training
    if recipe.model.activation_offload:
        offload_activations(policy)
    repeat_exactly(policy.model, accelerator.device)
    if policy.teacher is not None:
        policy.teacher.model.to(accelerator.device)
    prepared, optimizer = prepare(accelerator, policy, make_optimizer(policy, training, recipe.critic))
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


def reward_spec(reward: RewardSettings) -> RewardSpec:
    """The reward as a grader takes it."""
    return RewardSpec(
        reward.name,
        reward.weight,
        reward.outcome,
        reward.settings,
        shaping=reward.shaping,
        gate=reward.gate,
        deadline_seconds=reward.deadline_seconds,
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
    stack: ExitStack,
) -> Collector:
    rollout = recipe.rollout
    if rollout.max_staleness:  # the collector's thread has a tokenizer of its own: they are not made to be shared
        tokenizer = copy.deepcopy(tokenizer)
    environment = make_environment(recipe.environment, recipe.partner, Opened(engine, tokenizer, stop_ids))
    stack.callback(environment.close)
    return Collector(
        engine=engine,
        environment=environment,
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
        limits=recipe.episode,
        listed_actions=rollout.listed_actions,
    )


def _players(
    recipe: Recipe,
    held_out: Evaluations,
    engine: Engine | None,
    tokenizer: Any,
    stop_ids: frozenset[int],
    stack: ExitStack,
) -> list[Player | None]:
    """What plays `evaluation` and `final_evaluation`; their workers start now, so that mistakes show first."""
    return [
        Player(one, engine, tokenizer, stop_ids, _grader(recipe, one.benchmark.rewards, stack), recipe)
        if one is not None and engine is not None
        else None
        for one in (held_out.selects, held_out.final)
    ]


def _selection(recipe: Recipe, output: Path, report: Player | None) -> Selection | None:
    keeps = recipe.evaluation is not None and (recipe.evaluation.keep_best or report is not None)
    return Selection(output / "best", report) if keeps else None
