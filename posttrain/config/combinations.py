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
        "engine", "dtype", "batch_tokens", "attempts",
        "reward_workers", "deadline_seconds", "memory_bytes", "max_failure_rate",
    }
)  # fmt: skip
"""The rollout settings that an evaluation uses; how it samples is its benchmark's."""


class Term(Protocol):
    """What is asked of a term; its source is a word such as "rollouts"."""

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


class Algorithm(Protocol):
    """What is asked of an algorithm."""

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


def impossible(recipe: Recipe, algorithm: Algorithm) -> Iterator[Mistake]:
    """Every combination that cannot work."""
    for rule in RULES:
        yield from rule(recipe, algorithm)


def unused(recipe: Recipe, algorithm: Algorithm) -> dict[str, str]:
    """Sections and fields (dotted) that this run would not read -> why."""
    name = algorithm.name
    found: dict[str, str] = {}
    rollouts = "rollouts" in algorithm.sources
    imitates = "demonstrations" in algorithm.sources
    if not rollouts:
        samples = f"algorithm {name!r} samples no rollouts"
        found |= dict.fromkeys(("prompts", "rewards", "environment", "tracking.groups_per_step"), samples)
        read = EVALUATION_READS if recipe.evaluation is not None else frozenset()
        reason = f"{samples}, and an evaluation samples as its benchmark says" if read else samples
        found |= {f"rollout.{key}": reason for key in RolloutSettings.model_fields if key not in read}
    if not imitates and (recipe.prompts or not rollouts):
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
    if recipe.model.config is not None:
        found["model.revision"] = "model.config makes a new model"
    for kind in ("prompts", "demonstrations", "preferences", "trajectories"):
        for index, source in enumerate(getattr(recipe, kind)):
            if source.path != "reasoning_gym":
                found[f"{kind}.{index}.config"] = "it belongs to `path: reasoning_gym`"
    return found


def _data(recipe: Recipe, algorithm: Algorithm) -> Iterator[Mistake]:
    for source in ("demonstrations", "preferences", "trajectories"):
        if source in algorithm.sources and not getattr(recipe, source):
            yield Mistake(
                (source,), f"missing: algorithm {algorithm.name!r} reads {source}; allowed: a list of sources"
            )
    if "rollouts" in algorithm.sources and not recipe.prompts and not recipe.demonstrations:
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


def _unrewarded(_: Recipe, algorithm: Algorithm) -> Iterator[Mistake]:
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
    if "rewards" in algorithm.needs and "rollouts" in algorithm.sources and not recipe.rewards:
        yield Mistake(("rewards",), f"missing: algorithm {algorithm.name!r} reads rewards; allowed: a list of rewards")
    for name, count in Counter(reward.name for reward in recipe.rewards).items():
        if count > 1:
            yield Mistake(("rewards",), f"{name!r} is listed {count} times; allowed: each reward once")
    outcomes = [reward.name for reward in recipe.rewards if reward.outcome]
    if len(outcomes) > 1:
        yield Mistake(("rewards",), f"{' and '.join(outcomes)} are both `outcome: true`; allowed: at most one")


def _groups(recipe: Recipe, algorithm: Algorithm) -> Iterator[Mistake]:
    if "rollouts" not in algorithm.sources:
        return
    size = recipe.rollout.group_size
    if "groups" in algorithm.needs and size == 1:
        yield Mistake(
            ("rollout", "group_size"),
            f"1 is not allowed: algorithm {algorithm.name!r} compares the rollouts of one prompt; allowed: at least 2",
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


def _training(recipe: Recipe, _: Algorithm) -> Iterator[Mistake]:
    training, dtype = recipe.training, recipe.model.dtype
    if training.warmup_steps > training.steps:
        yield Mistake(
            ("training", "warmup_steps"),
            f"{training.warmup_steps} is not allowed: training.steps is {training.steps}; allowed: at most that",
        )
    if training.mixed_precision != "no" and dtype != "float32":
        yield Mistake(
            ("training", "mixed_precision"),
            f"{training.mixed_precision!r} is not allowed: it keeps float32 weights, and model.dtype is {dtype!r}; "
            "allowed: 'no', or model.dtype float32",
        )


def _model(recipe: Recipe, _: Algorithm) -> Iterator[Mistake]:
    model = recipe.model
    if (model.path is None) == (model.config is None):
        state = "neither path nor config is set" if model.path is None else "both path and config are set"
        yield Mistake(("model",), f"{state}; allowed: one of them (config makes a new model)")
    if model.path is None and model.config is not None and recipe.tokenizer.path is None:
        yield Mistake(
            ("tokenizer", "path"),
            "missing: model.config has no tokenizer; allowed: a directory, a hub id, or 'characters'",
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
    _unrewarded,
    _rewards,
    _groups,
    _training,
    _sources,
    _trackers,
)
