"""The models that stand beside the policy: reference, teacher and critic; or in its place: a reward model."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import torch

from posttrain.config import Recipe
from posttrain.errors import RecipeError
from posttrain.estimator import Algorithm, Plan
from posttrain.models.action_values import ActionValues
from posttrain.models.compiled import compile_layers
from posttrain.models.critic import Critic
from posttrain.models.load import check_critic, check_model, load_critic
from posttrain.models.policy import Teacher
from posttrain.models.reference import reference_of
from posttrain.models.scorer import Scorer, classifier_of
from posttrain.models.teacher import check_teacher, load_teacher
from posttrain.rollout.collector import Collector
from posttrain.rollout.engine import Engine
from posttrain.trainer.anchor import Anchor


def check_models(recipe: Recipe, algorithm: Algorithm) -> None:
    """Whether every model that the recipe names can be found, without loading weights; errors as `check_model`."""
    check_model(recipe.model)
    for launcher in ("DeepSpeed", "FSDP"):
        if os.environ.get(f"ACCELERATE_USE_{launcher.upper()}") != "true":
            continue
        why = f"the launch file says {launcher}, which divides weights over ranks"
        if recipe.model.quantization is not None:
            raise RecipeError(
                f"model.quantization is {recipe.model.quantization!r}, and {why}; allowed there: whole weights"
            )
        if algorithm.plan.critic == "actions":
            raise RecipeError(f"algorithm {algorithm.name!r} keeps a target of its values, and {why}; allowed: none")
        if recipe.model.compile:
            raise RecipeError(f"model.compile is true, and {why}; allowed there: false")
    if recipe.teacher is not None:
        check_teacher(recipe.teacher)
    if recipe.critic.path is not None:
        check_critic(recipe.model, recipe.critic)


def copies_reference(recipe: Recipe, algorithm: Algorithm) -> bool:
    """Whether the reference is a model of its own; an adapter's frozen base can be the reference itself."""
    moves = algorithm.plan.reference_samples > 0 or algorithm.plan.reference_decay > 0
    return moves or ("reference_logprobs" in algorithm.needs and recipe.lora is None)


def copied_reference(recipe: Recipe, algorithm: Algorithm, model: Any, device: torch.device) -> Any:
    """A copy of the starting model where one is needed; an offloaded one stays on the host."""
    if not copies_reference(recipe, algorithm):
        return None
    reference = reference_of(model, device, recipe.training.mixed_precision)
    if recipe.model.compile:
        compile_layers(reference.model)
    return reference.to("cpu" if recipe.reference.offload else device)


def anchor_of(
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


def teacher_of(recipe: Recipe, algorithm: Algorithm, tokenizer: Any) -> Teacher | None:
    """Loaded before there is an accelerator: under ZeRO-3 a model loaded later is split over ranks as if trained."""
    if recipe.teacher is None or algorithm.divergence is None:
        return None
    return load_teacher(recipe.teacher, tokenizer, algorithm.divergence, recipe.seed + 1)


def critic_of(recipe: Recipe, algorithm: Algorithm, model: Any, tokenizer: Any) -> Critic | ActionValues | None:
    """The algorithm's second model; it starts as `model` is now where the recipe names no other."""
    if algorithm.plan.critic is None:
        return None
    own = recipe.critic.path is not None
    return make_critic(load_critic(recipe.model, recipe.critic, tokenizer) if own else model, algorithm.plan)


def make_critic(model: Any, plan: Plan) -> Critic | ActionValues | None:
    """The critic that `plan` asks for, beginning as `model` is."""
    if plan.critic is None:
        return None
    return ActionValues(model, plan.target_rate) if plan.critic == "actions" else Critic(model, plan.critic)


def reward_model_of(algorithm: Algorithm, model: Any) -> Scorer:
    """The reward model that is trained in the policy's place; it takes over `model`'s decoder, adapter and all."""
    plan = algorithm.plan
    return Scorer(classifier_of(model, plan.scores, plan.reading), gives_hidden="hidden" in algorithm.needs)
