"""Sections and fields of a recipe that its run would not read, and why."""

from __future__ import annotations

from posttrain.config.asked import Algorithm
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


def unread(recipe: Recipe, algorithm: Algorithm) -> dict[str, str]:
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
