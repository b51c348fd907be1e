"""What a recipe will do, before it does it: the objective, the data, the models, the tokens of a step."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from posttrain import catalog
from posttrain.algorithms import load
from posttrain.batch import Source
from posttrain.config import Recipe, load_recipe, parse_settings
from posttrain.estimator import Algorithm, objective


def explain(name: str, overrides: Sequence[str], format: str) -> str:
    """The objective of an algorithm, or of a recipe with its data and sizes, as text, json or latex."""
    if name in {member.name for member in catalog.members("algorithms")}:
        settings = parse_settings(overrides)
        return render(load(name, **settings), None, format)
    recipe = load_recipe(name, overrides).recipe
    return render(load(recipe.algorithm.name, **recipe.algorithm.settings), recipe, format)


def render(algorithm: Algorithm, recipe: Recipe | None, format: str) -> str:
    """The objective, followed by what the recipe adds to it."""
    if format == "latex":
        return objective.as_latex(algorithm)
    plan = {} if recipe is None else describe(recipe, algorithm)
    if format == "json":
        return json.dumps(objective.as_dict(algorithm) | plan, indent=2)
    lines = [objective.as_text(algorithm), ""] + [f"{name:<16}{value}" for name, value in plan.items()]
    return "\n".join(lines).rstrip()


def describe(recipe: Recipe, algorithm: Algorithm) -> dict[str, str]:
    """Data, models, sizes and optimiser of a run, a phrase each."""
    training, rollout = recipe.training, recipe.rollout
    rollouts = Source.ROLLOUTS in algorithm.sources
    plan = {"model": recipe.model.path or f"{(recipe.model.config or {}).get('model_type')} from scratch"}
    if "reference_logprobs" in algorithm.needs:
        plan["reference"] = "a frozen copy of the starting model"
    for kind in ("prompts", "demonstrations", "preferences", "trajectories"):
        sources = getattr(recipe, kind)
        if sources:
            plan[kind] = " + ".join(f"{source.weight:g} {_shown(source.path, source.config)}" for source in sources)
    if rollouts:
        completions = training.prompts_per_step * rollout.group_size
        plan["rollouts"] = (
            f"{training.prompts_per_step} prompts x {rollout.group_size} completions = {completions} a step, "
            f"at most {rollout.max_tokens} tokens each ({completions * rollout.max_tokens:,} a step), "
            f"temperature {rollout.temperature:g}, engine {rollout.engine}"
        )
        plan["rewards"] = " + ".join(f"{reward.weight:g} {reward.name}" for reward in recipe.rewards)
    elif Source.DEMONSTRATIONS in algorithm.sources:
        plan["batch"] = f"{training.prompts_per_step} demonstrations a step"
    if Source.PREFERENCES in algorithm.sources:
        plan["pairs"] = f"{training.prompts_per_step} preferences a step, two sequences each"
    plan["optimiser"] = (
        f"AdamW, learning rate {training.learning_rate:g} {training.schedule} after {training.warmup_steps} warm-up "
        f"steps, {training.steps} steps, gradient norm at most {training.max_grad_norm or 'unbounded'}"
    )
    plan["forward"] = f"at most {training.tokens_per_microbatch:,} tokens a micro-batch"
    if recipe.evaluation is not None:
        plan["evaluation"] = _shown(recipe.evaluation.name, recipe.evaluation.settings)
    return plan


def _shown(name: str, settings: Mapping[str, Any]) -> str:
    """The name with those settings that say something."""
    said = ", ".join(f"{key} {value}" for key, value in settings.items() if value not in (None, False, {}, ""))
    return f"{name} ({said})" if said else name
