"""What a recipe will do, before it does it: the objective, the data, the models, the tokens of a step."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from posttrain import catalog
from posttrain.algorithms import load
from posttrain.algorithms.overview import paper_of
from posttrain.batch import Source
from posttrain.config import LoadedRecipe, Recipe, load_recipe, parse_settings
from posttrain.config.schema import ModelSettings, RewardSettings, TeacherSettings
from posttrain.estimator import Algorithm, objective
from posttrain.trainer.comparisons import needs_both_sides
from posttrain.trainer.corrected import algorithm_of, correction_origins
from posttrain.trainer.origins import origins

SHOWN = (
    "training.steps", "training.prompts_per_step", "training.demonstrations_per_step", "training.learning_rate",
    "training.schedule", "training.warmup_steps", "training.weight_decay", "training.betas", "training.epsilon",
    "training.max_grad_norm", "training.tokens_per_microbatch", "training.mixed_precision", "training.max_length",
    "rollout.group_size", "rollout.updates", "rollout.max_staleness", "rollout.old_logprobs", "rollout.correction",
    "rollout.correction_cap", "rollout.max_tokens", "rollout.temperature",
    "rollout.top_p", "rollout.top_k", "rollout.listed_actions", "rollout.dtype", "critic.learning_rate",
    "critic.warmup_steps", "lora.rank", "lora.alpha", "lora.dropout", "seed",
)  # fmt: skip
"""The values beside the objective that the update's arithmetic depends on, as far as a recipe has and reads them."""


def explain(name: str, overrides: Sequence[str], format: str) -> str:
    """The objective of an algorithm, or of a recipe with its data and sizes, as text, json or latex."""
    if name in {member.name for member in catalog.members("algorithms")}:
        settings = parse_settings(overrides)
        algorithm = load(name, **settings)
        found = origins(algorithm, settings, dict.fromkeys(settings, "command line"), paper_of(name))
        return _shown_as(format, algorithm, found, {"paper": paper_of(name)}, {}, [])
    loaded = load_recipe(name, overrides, stop_at_warnings=False)
    return render(algorithm_of(loaded.recipe), loaded, format)


def render(algorithm: Algorithm, loaded: LoadedRecipe, format: str) -> str:
    """The objective with the origin of its constants, what the recipe adds to it, and its warnings."""
    recipe, provenance = loaded.recipe, loaded.provenance
    paper = paper_of(recipe.algorithm.name)
    prefix = "algorithm."
    below = {path.removeprefix(prefix): where for path, where in provenance.items() if path.startswith(prefix)}
    plan = {"paper": paper} | describe(recipe, algorithm)
    values = {path: (value, provenance[path]) for path, value in _values(loaded)}
    warnings = [
        {"rule": f.rule, "field": f.field, "wrong": f.wrong, "why": f.why, "right": f.right}
        | {"acknowledged": f.acknowledged}
        for f in loaded.findings
    ]
    plain = load(recipe.algorithm.name, **recipe.algorithm.settings)
    found = origins(plain, recipe.algorithm.settings, below, paper) | correction_origins(algorithm, provenance)
    return _shown_as(format, algorithm, found, plan, values, warnings)


def _shown_as(
    format: str,
    algorithm: Algorithm,
    found: Mapping[objective.Constant, str],
    plan: Mapping[str, str],
    values: Mapping[str, tuple[Any, str]],
    warnings: Sequence[Mapping[str, Any]],
) -> str:
    plan = {name: phrase for name, phrase in plan.items() if phrase}
    rows = [(path, catalog.show(value), where) for path, (value, where) in values.items()]
    if format == "json":
        written = {path: {"value": value, "from": where} for path, (value, where) in values.items()}
        more = {"values": written, "warnings": warnings} if values else {}
        return json.dumps({**objective.as_dict(algorithm, found), **plan, **more}, indent=2)
    said = [(w["rule"], _sentence(w)) for w in warnings]
    if format == "latex":
        parts = [objective.as_latex(algorithm, found), objective.latex_table(("what", "how"), list(plan.items()))]
        parts += [objective.latex_table(("value", "is", "from"), rows)] if rows else []
        parts += [objective.latex_table(("warning", "about"), said)] if said else []
        return "\n".join(parts)
    lines = [objective.as_text(algorithm, found), ""] + [f"{name:<16}{phrase}" for name, phrase in plan.items()]
    if rows:
        rows.insert(0, ("value", "is", "from"))
        path_width, value_width = (max(len(row[column]) for row in rows) + 2 for column in (0, 1))
        lines += ["", *(f"{path:<{path_width}}{value:<{value_width}}{where}" for path, value, where in rows)]
    lines += [""] * bool(said) + [f"warning: {rule}: {sentence}" for rule, sentence in said]
    return "\n".join(lines).rstrip()


def _sentence(warning: Mapping[str, Any]) -> str:
    after = " (acknowledged)" if warning["acknowledged"] else ""
    return f"{warning['field']}: {warning['wrong']}: {warning['why']}; {warning['right']}{after}"


def _values(loaded: LoadedRecipe) -> Iterator[tuple[str, Any]]:
    """Settings of algorithm and curriculum, weights of rewards, and `SHOWN`, as far as they are read and not null."""
    values = {path: value for path, value in loaded.values() if path not in loaded.unused and value is not None}
    for path, value in values.items():
        if path.startswith(("algorithm.", "curriculum.", "rewards.")) and path != "algorithm.name":
            yield path, value
    yield from ((path, values[path]) for path in SHOWN if path in values)


def describe(recipe: Recipe, algorithm: Algorithm) -> dict[str, str]:
    """Data, models, sizes and optimiser of a run, a phrase each."""
    training = recipe.training
    rollouts = Source.ROLLOUTS in algorithm.sources
    plan = _models(recipe, algorithm)
    for kind in ("prompts", "demonstrations", "preferences", "trajectories"):
        sources = getattr(recipe, kind)
        if sources:
            plan[kind] = " + ".join(f"{source.weight:g} {_shown(source.path, source.config)}" for source in sources)
    if rollouts:
        plan |= _rollouts(recipe)
        plan["resets"] = _resets(algorithm)
        rewards = " + ".join(map(_reward, recipe.rewards))
        plan["rewards"] = rewards or "none: nothing reads them"
    if Source.DEMONSTRATIONS in algorithm.sources:
        apart = rollouts and bool(recipe.prompts)
        number = training.demonstrations_per_step if apart else training.prompts_per_step
        plan["imitated"] = f"{number} demonstrations a step, {_longest(recipe)}"
    if Source.TRAJECTORIES in algorithm.sources:
        plan["recorded"] = f"all trajectories of {training.prompts_per_step} prompts a step, {_longest(recipe)}"
    if Source.PREFERENCES in algorithm.sources:
        beside = ", each prompt with another's completion beside them" if algorithm.plan.mismatched else ""
        sides = "two sequences each" if needs_both_sides(algorithm) else "a sequence for each side they have"
        plan["pairs"] = f"{training.prompts_per_step} preferences a step, {sides}, {_longest(recipe)}{beside}"
    if algorithm.plan.pairing is not None:
        plan["pairing"] = algorithm.plan.pairing.formula
    plan["optimiser"] = (
        f"AdamW, learning rate {training.learning_rate:g} {training.schedule} after {training.warmup_steps} warm-up "
        f"steps, {training.steps} steps, gradient norm at most {training.max_grad_norm or 'unbounded'}"
    )
    plan["forward"] = f"at most {training.tokens_per_microbatch:,} tokens a micro-batch"
    if recipe.evaluation is not None:
        plan["evaluation"] = _shown(recipe.evaluation.name, recipe.evaluation.settings)
    if recipe.final_evaluation is not None:
        plan["reported on"] = _shown(recipe.final_evaluation.name, recipe.final_evaluation.settings)
    return plan


def _rollouts(recipe: Recipe) -> dict[str, str]:
    """How many are played a step and how long they are; where they take turns, with whom and until when."""
    training, rollout, episode = recipe.training, recipe.rollout, recipe.episode
    played = training.prompts_per_step * rollout.group_size
    alone = recipe.environment.name == "single_turn"
    kind, length = ("completions", "each") if alone else ("episodes", "a turn")
    most = f" ({played * rollout.max_tokens:,} a step)" if alone else ""
    plan = {
        "rollouts": f"{training.prompts_per_step} prompts x {rollout.group_size} {kind} = {played} a step, "
        f"at most {rollout.max_tokens} tokens {length}{most}, "
        f"temperature {rollout.temperature:g}, engine {rollout.engine}, {rollout.updates} update(s) a phase"
        + (f", played at most {rollout.max_staleness} phase(s) ahead" if rollout.max_staleness else "")
    }
    if alone:
        return plan
    limits = {"turns": episode.max_turns, "tokens": episode.max_tokens, "seconds": episode.max_seconds}
    ends = ", ".join(f"{limit:,g} {unit}" for unit, limit in limits.items() if limit is not None)
    seen = "all turns" if episode.history_turns is None else f"the last {episode.history_turns} turns"
    plan["environment"] = _shown(recipe.environment.name, recipe.environment.settings)
    plan["episodes"] = f"at most {ends}; the policy sees {seen} before; invalid actions: {episode.invalid}"
    if recipe.partner is not None:
        said = "the policy itself" if recipe.partner.self_play else f"{recipe.partner.path}, frozen"
        plan["partner"] = f"{said}, at most {recipe.partner.max_tokens} tokens a line"
    return plan


def _reward(reward: RewardSettings) -> str:
    """Its part of the sum, as in "0.5 judge_pairwise [format_tags = 1]"."""
    gate = f" [{reward.gate} = 1]" if reward.gate else ""
    return f"{reward.weight:g} {reward.name}{gate}{' (shaping)' if reward.shaping else ''}"


def _models(recipe: Recipe, algorithm: Algorithm) -> dict[str, str]:
    plan = {"model": _model(recipe.model)}
    if recipe.lora is not None:
        plan["model"] += f", of which a LoRA adapter of rank {recipe.lora.rank} is trained"
    if algorithm.plan.scores:
        scores = ", ".join(algorithm.plan.scores)
        plan["reward model"] = f"the model's decoder under a head for {scores}, which starts at 0; no policy is trained"
    if "reference_logprobs" in algorithm.needs:
        plan["reference"] = _reference(recipe, algorithm)
    if algorithm.plan.critic is not None:
        start = recipe.critic.path or "the model's start"
        reading = algorithm.plan.critic
        said = "V of the state and Q of every token" if reading == "actions" else f"a scalar for each {reading}"
        plan["critic"] = f"a second trained model from {start}, {said}"
    if recipe.teacher is not None:
        plan["teacher"] = f"{_model(recipe.teacher)}, frozen, in {recipe.teacher.dtype}"
    return plan


def _reference(recipe: Recipe, algorithm: Algorithm) -> str:
    decay, samples = algorithm.plan.reference_decay, algorithm.plan.reference_samples
    model = f"a {'frozen ' if not decay else ''}copy of the starting model"
    model = model if recipe.lora is None else "the same model without its adapter"
    moves = f", which follows the policy by {decay:g} a step" if decay else ""
    return model + moves + (f"; {samples} rollouts of it for each prompt" if samples else "")


def _resets(algorithm: Algorithm) -> str:
    share = algorithm.plan.reset_probability
    return f"{share:.0%} of the rollouts start inside their prompt's demonstration" if share else ""


def _longest(recipe: Recipe) -> str:
    limit = recipe.training.max_length
    return "of any length" if limit is None else f"at most {limit:,} tokens each"


def _model(settings: ModelSettings | TeacherSettings) -> str:
    return settings.path or f"{(settings.config or {}).get('model_type')} from scratch"


def _shown(name: str, settings: Mapping[str, Any]) -> str:
    """The name with those settings that say something."""
    said = ", ".join(f"{key} {value}" for key, value in settings.items() if value not in (None, False, {}, ""))
    return f"{name} ({said})" if said else name
