"""Combinations of valid values that cannot work, and settings that nothing would read.

Each rule is a small function of the recipe and its algorithm. An algorithm is known here by what it reads (`sources`,
`needs`), never by its name.
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from posttrain.catalog import Mistake, install_command
from posttrain.config.schema import Recipe, RolloutSettings

EVALUATION_READS = frozenset(
    {
        "engine", "mode", "dtype", "batch_tokens", "memory_fraction", "max_model_len", "sleep", "max_mismatch",
        "attempts",
        "reward_workers", "deadline_seconds", "memory_bytes", "max_failure_rate",
    }
)  # fmt: skip
"""The rollout settings that an evaluation uses; how it samples is its benchmark's."""

VLLM_READS = frozenset({"mode", "memory_fraction", "max_model_len", "sleep"})
"""The rollout settings that only vLLM has."""

GRADING = frozenset({"reward_workers", "deadline_seconds", "memory_bytes"})
"""The rollout settings that only rewards use."""


class Term(Protocol):
    """What is asked of a term; its source is a word such as "rollouts"."""

    @property
    def name(self) -> str:
        """Its name."""
        ...

    @property
    def source(self) -> str:
        """The data source it runs over."""
        ...

    @property
    def needs(self) -> frozenset[str]:
        """What a batch must hold for it."""
        ...

    def describe(self) -> Mapping[str, Any]:
        """Its parts by role."""
        ...


class Plan(Protocol):
    """What is asked of what an algorithm wants beside its terms."""

    @property
    def critic(self) -> str | None:
        """How its second trained model is read; None: it has none."""
        ...

    @property
    def mismatched(self) -> bool:
        """Whether prompts are joined with the completions of others."""
        ...

    @property
    def reset_probability(self) -> float:
        """Of a rollout to start inside its prompt's demonstration."""
        ...

    @property
    def reference_samples(self) -> int:
        """Rollouts of the reference for each prompt."""
        ...

    @property
    def reference_decay(self) -> float:
        """How fast the reference follows the policy; 0: it is frozen."""
        ...

    @property
    def pairing(self) -> Any:
        """How the rollouts of a group are paired (`estimator.plan.Pairing`); None: they are not."""
        ...


class Algorithm(Protocol):
    """What is asked of an algorithm."""

    @property
    def plan(self) -> Plan:
        """What it wants beside its terms."""
        ...

    @property
    def name(self) -> str:
        """Its name."""
        ...

    @property
    def terms(self) -> tuple[Term, ...]:
        """Its summands."""
        ...

    @property
    def sources(self) -> frozenset[str]:
        """The data sources of its terms."""
        ...

    @property
    def needs(self) -> frozenset[str]:
        """What a batch must hold: union over its terms."""
        ...

    @property
    def grades_rollouts(self) -> bool:
        """Whether rewards of rollouts are read."""
        ...


def impossible(recipe: Recipe, algorithm: Algorithm) -> Iterator[Mistake]:
    """Every combination that cannot work."""
    for rule in RULES:
        yield from rule(recipe, algorithm)


def unused(recipe: Recipe, algorithm: Algorithm) -> dict[str, str]:
    """Sections and fields (dotted) that this run would not read -> why."""
    name = algorithm.name
    found = _unused_by_engine(recipe) | _unused_in_rollouts(recipe, algorithm) | _unused_models(recipe, algorithm)
    rollouts = "rollouts" in algorithm.sources
    imitates = "demonstrations" in algorithm.sources
    resets = algorithm.plan.reset_probability > 0
    if resets:
        found["prompts"] = f"algorithm {name!r} starts rollouts inside demonstrations, which give the prompts"
    if not imitates and not resets and (recipe.prompts or not rollouts):
        read_by = "rollouts start from `prompts`, and no" if rollouts else "no"
        found["demonstrations"] = f"{read_by} term of algorithm {name!r} reads demonstrations"
    for source in ("preferences", "trajectories"):
        if source not in algorithm.sources:
            found[source] = f"no term of algorithm {name!r} reads {source}"
    if not (rollouts and imitates and recipe.prompts):
        found["training.demonstrations_per_step"] = (
            f"it counts demonstrations drawn beside the prompts of rollouts, and algorithm {name!r} "
            + ("takes its prompts from them" if rollouts and imitates else "does not draw both")
        )
    if algorithm.sources == {"rollouts"}:
        found["training.max_length"] = "it cuts data; rollout.max_tokens limits rollouts"
    if not recipe.tracking.trackers:
        found["tracking.project"] = "tracking.trackers is empty"
    kinds = ("prompts", "demonstrations", "preferences", "trajectories")
    sources = [(f"{kind}.{index}", one) for kind in kinds for index, one in enumerate(getattr(recipe, kind))]
    return found | {
        f"{place}.config": "it belongs to `path: reasoning_gym`"
        for place, one in sources
        if one.path != "reasoning_gym"
    }


def _unused_models(recipe: Recipe, algorithm: Algorithm) -> dict[str, str]:
    """The models beside the policy that nothing asks for, and revisions of what has none."""
    found = {}
    if "divergence" not in algorithm.needs:
        found["teacher"] = f"no term of algorithm {algorithm.name!r} measures a divergence from a teacher"
    if algorithm.plan.critic is None:
        found["critic"] = f"algorithm {algorithm.name!r} trains no second model"
    if recipe.critic.path is None:
        found["critic.revision"] = "critic.path is not set: the critic starts as the policy does"
    for section, settings in (("model", recipe.model), ("teacher", recipe.teacher)):
        if settings is not None and settings.config is not None:
            found[f"{section}.revision"] = f"{section}.config makes a new model"
    return found


def _unused_by_engine(recipe: Recipe) -> dict[str, str]:
    if recipe.rollout.engine != "vllm":
        return dict.fromkeys((f"rollout.{key}" for key in VLLM_READS), "it belongs to `engine: vllm`")
    if recipe.rollout.memory_fraction is not None:
        return {"rollout.batch_tokens": "rollout.memory_fraction gives the size of the cache"}
    return {}


def _unused_in_rollouts(recipe: Recipe, algorithm: Algorithm) -> dict[str, str]:
    """What is not read where nothing is sampled, or where nothing that is sampled is graded."""
    name, evaluates = algorithm.name, recipe.evaluation is not None
    if "rollouts" not in algorithm.sources:
        samples = f"algorithm {name!r} samples no rollouts"
        found = dict.fromkeys(("prompts", "rewards", "environment", "tracking.groups_per_step"), samples)
        reason = f"{samples}, and an evaluation samples as its benchmark says" if evaluates else samples
        read = EVALUATION_READS if evaluates else frozenset()
        return found | {f"rollout.{key}": reason for key in RolloutSettings.model_fields if key not in read}
    if algorithm.grades_rollouts:
        return {}
    ungraded = f"nothing in algorithm {name!r} reads rewards of rollouts"
    unread = frozenset() if evaluates else GRADING
    return dict.fromkeys(("rewards", "rollout.max_draws", *(f"rollout.{key}" for key in unread)), ungraded)


def _data(recipe: Recipe, algorithm: Algorithm) -> Iterator[Mistake]:
    for source in ("demonstrations", "preferences", "trajectories"):
        if source in algorithm.sources and not getattr(recipe, source):
            yield Mistake(
                (source,), f"missing: algorithm {algorithm.name!r} reads {source}; allowed: a list of sources"
            )
    if algorithm.plan.reset_probability > 0 and not recipe.demonstrations:
        yield Mistake(
            ("demonstrations",),
            f"missing: algorithm {algorithm.name!r} starts rollouts inside demonstrations; allowed: a list of sources",
        )
    elif "rollouts" in algorithm.sources and not recipe.prompts and not recipe.demonstrations:
        yield Mistake(
            ("prompts",), f"missing: algorithm {algorithm.name!r} samples rollouts; allowed: prompts, or demonstrations"
        )


def _hybrid(recipe: Recipe, algorithm: Algorithm) -> Iterator[Mistake]:
    if not (recipe.prompts and recipe.demonstrations and {"rollouts", "demonstrations"} <= algorithm.sources):
        return
    if any(term.source == "demonstrations" and "groups" in term.needs for term in algorithm.terms):
        yield Mistake(
            ("prompts",),
            f"algorithm {algorithm.name!r} imitates the demonstration of the prompt it has sampled: "
            "leave `prompts` out, the demonstrations give them",
        )
    elif recipe.training.demonstrations_per_step == 0:
        yield Mistake(
            ("training", "demonstrations_per_step"),
            f"0 is not allowed: algorithm {algorithm.name!r} draws demonstrations beside prompts; allowed: above 0",
        )


def _reference(recipe: Recipe, algorithm: Algorithm) -> Iterator[Mistake]:
    if recipe.lora is not None and algorithm.plan.reference_decay > 0:
        yield Mistake(
            ("lora",),
            f"algorithm {algorithm.name!r} lets the reference follow the policy, but with lora the reference is the "
            "model without its adapter; allowed: leave lora out, or set algorithm.eta to 0",
        )
    if "reference_rollouts" in algorithm.needs and not algorithm.plan.reference_samples:
        yield Mistake(
            ("algorithm",),
            f"{algorithm.name!r} measures rollouts against the reference's, and the reference plays none; "
            "allowed: an algorithm whose plan has them, such as bond or j_bond",
        )


def _unrewarded(_: Recipe, algorithm: Algorithm) -> Iterator[Mistake]:
    if "demonstrations" not in algorithm.sources:  # the reference plays them, and they are graded
        return
    for term in algorithm.terms:
        parts = term.describe()
        for role in ("advantage", "where"):
            part = parts.get(role)
            if term.source != "demonstrations" or part is None or getattr(part, "grades_demonstrations", False):
                continue
            if "rewards" in part.needs:
                text = f"a term over demonstrations has an {role} that reads rewards: {part.formula}; demonstrations"
                yield Mistake(("algorithm",), f"{text} have none, so nothing would be learnt from them")


def _rewards(recipe: Recipe, algorithm: Algorithm) -> Iterator[Mistake]:
    if algorithm.grades_rollouts and "rollouts" in algorithm.sources and not recipe.rewards:
        yield Mistake(("rewards",), f"missing: algorithm {algorithm.name!r} reads rewards; allowed: a list of rewards")
    for name, count in Counter(reward.name for reward in recipe.rewards).items():
        if count > 1:
            yield Mistake(("rewards",), f"{name!r} is listed {count} times; allowed: each reward once")
    outcomes = [reward.name for reward in recipe.rewards if reward.outcome]
    if len(outcomes) > 1:
        yield Mistake(("rewards",), f"{' and '.join(outcomes)} are both `outcome: true`; allowed: at most one")


def _redrawn(recipe: Recipe, algorithm: Algorithm) -> Iterator[Mistake]:
    draws = recipe.rollout.max_draws
    if draws == 1 or not algorithm.grades_rollouts:
        return
    if recipe.rollout.group_size == 1:
        text = "a group of one rollout has one outcome, and every prompt would be drawn again"
    elif "demonstrations" in algorithm.sources and not recipe.prompts:
        text = f"algorithm {algorithm.name!r} imitates the prompts whose rollouts all fail, which would be drawn again"
    else:
        return
    yield Mistake(("rollout", "max_draws"), f"{draws} is not allowed: {text}; allowed: 1")


def _groups(recipe: Recipe, algorithm: Algorithm) -> Iterator[Mistake]:
    if "rollouts" not in algorithm.sources:
        return
    size = recipe.rollout.group_size
    if "groups" in algorithm.needs and size == 1:
        yield Mistake(
            ("rollout", "group_size"),
            f"1 is not allowed: algorithm {algorithm.name!r} compares the rollouts of one prompt; allowed: at least 2",
        )
    pairing = algorithm.plan.pairing
    if pairing is not None and (size == 1 or size % pairing.multiple):
        allowed = "at least 2" if pairing.multiple == 1 else f"a multiple of {pairing.multiple}"
        yield Mistake(
            ("rollout", "group_size"),
            f"{size} is not allowed: algorithm {algorithm.name!r} pairs {pairing.formula}; allowed: {allowed}",
        )
    for term in algorithm.terms:
        gate = getattr(term.describe().get("weight"), "gate", None)
        if gate is not None and gate >= size:
            yield Mistake(
                ("algorithm", "gate"),
                f"{gate} is not allowed: of rollout.group_size = {size} rollouts never more than {gate} are solved; "
                f"allowed: at most {size - 1}",
            )
            return


def _paired(_: Recipe, algorithm: Algorithm) -> Iterator[Mistake]:
    paired = [term for term in algorithm.terms if getattr(term, "couples", "") == "pair"]
    if algorithm.plan.pairing is None and any(term.source == "rollouts" for term in paired):
        text = "a term over rollouts compares two of them, and nothing pairs them; allowed: with `pairing: neighbours`"
        yield Mistake(("algorithm",), text)


def _mismatched(recipe: Recipe, algorithm: Algorithm) -> Iterator[Mistake]:
    if algorithm.plan.mismatched and recipe.training.prompts_per_step == 1:
        yield Mistake(
            ("training", "prompts_per_step"),
            f"1 is not allowed: algorithm {algorithm.name!r} joins each prompt of a step with the completion of "
            "another; allowed: at least 2",
        )
    if algorithm.plan.mismatched and any(getattr(term, "couples", "") == "pair" for term in algorithm.terms):
        text = f"{algorithm.name!r} reads preferences as pairs and as single completions; allowed: prospect_value with "
        yield Mistake(("algorithm",), text + "`anchored: false`, or in an algorithm without terms that compare two")


def _balanced(_: Recipe, algorithm: Algorithm) -> Iterator[Mistake]:
    names = {term.name for term in algorithm.terms}
    for term in algorithm.terms:
        weight = term.describe().get("weight")
        wanted = [getattr(weight, role, None) for role in ("imitation", "policy")]
        missing = [name for name in wanted if name is not None and name not in names]
        if missing:
            text = f"entropy_balance compares the terms {wanted[0]!r} and {wanted[1]!r}, and there is no {missing[0]!r}"
            yield Mistake(("algorithm",), f"{text}; allowed: `imitation` and `policy` among {', '.join(sorted(names))}")


def _training(recipe: Recipe, algorithm: Algorithm) -> Iterator[Mistake]:
    training, dtype = recipe.training, recipe.model.dtype
    if training.warmup_steps > training.steps:
        yield Mistake(
            ("training", "warmup_steps"),
            f"{training.warmup_steps} is not allowed: training.steps is {training.steps}; allowed: at most that",
        )
    warmup = recipe.critic.warmup_steps if algorithm.plan.critic is not None else 0
    if warmup >= training.steps:
        yield Mistake(
            ("critic", "warmup_steps"),
            f"{warmup} is not allowed: training.steps is {training.steps}, so the policy would never learn; "
            f"allowed: at most {training.steps - 1}",
        )
    if training.mixed_precision != "no" and dtype != "float32":
        yield Mistake(
            ("training", "mixed_precision"),
            f"{training.mixed_precision!r} is not allowed: it keeps float32 weights, and model.dtype is {dtype!r}; "
            "allowed: 'no', or model.dtype float32",
        )


def _model(recipe: Recipe, _: Algorithm) -> Iterator[Mistake]:
    model = recipe.model
    for section, settings in (("model", model), ("teacher", recipe.teacher)):
        if settings is not None and (settings.path is None) == (settings.config is None):
            state = "neither path nor config is set" if settings.path is None else "both path and config are set"
            yield Mistake((section,), f"{state}; allowed: one of them (config makes a new model)")
    if model.path is None and model.config is not None and recipe.tokenizer.path is None:
        yield Mistake(
            ("tokenizer", "path"),
            "missing: model.config has no tokenizer; allowed: a directory, a hub id, or 'characters'",
        )


def _critic(_: Recipe, algorithm: Algorithm) -> Iterator[Mistake]:
    read = algorithm.needs & {"values", "old_values"}
    if read and algorithm.plan.critic is None:
        yield Mistake(
            ("algorithm",),
            f"{algorithm.name!r} reads a critic's {' and '.join(sorted(read))}, but trains no critic; "
            "allowed: an algorithm whose plan has one, such as ppo or oreal",
        )


def _teacher(recipe: Recipe, algorithm: Algorithm) -> Iterator[Mistake]:
    if "divergence" in algorithm.needs and recipe.teacher is None:
        yield Mistake(
            ("teacher",),
            f"missing: algorithm {algorithm.name!r} measures the divergence from a teacher; "
            "allowed: a directory with a model, or a hub id (owner/name)",
        )


def _sources(recipe: Recipe, _: Algorithm) -> Iterator[Mistake]:
    for kind in ("prompts", "demonstrations", "preferences", "trajectories"):
        for index, source in enumerate(getattr(recipe, kind)):
            if source.path == "reasoning_gym" and "dataset" not in source.config:
                yield Mistake(
                    (kind, index, "config", "dataset"), "missing: the name of a reasoning-gym dataset, as in chain_sum"
                )


def _trackers(recipe: Recipe, _: Algorithm) -> Iterator[Mistake]:
    for index, tracker in enumerate(recipe.tracking.trackers):
        if importlib.util.find_spec(tracker) is None:
            yield Mistake(
                ("tracking", "trackers", index),
                f"{tracker!r} needs the package {tracker!r}, which is not installed: {install_command(tracker)}",
            )


RULES: tuple[Callable[[Recipe, Algorithm], Iterator[Mistake]], ...] = (
    _model,
    _data,
    _hybrid,
    _reference,
    _unrewarded,
    _rewards,
    _groups,
    _redrawn,
    _paired,
    _mismatched,
    _balanced,
    _training,
    _critic,
    _teacher,
    _sources,
    _trackers,
)
