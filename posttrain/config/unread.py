"""Sections and fields of a recipe that its run would not read, and why."""

from __future__ import annotations

from posttrain.config.asked import Algorithm
from posttrain.config.correction import correctable, correction
from posttrain.config.schema import Recipe, RolloutSettings, ServedSettings

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

SERVED_READS = frozenset(ServedSettings.model_fields)
"""The rollout settings that only replicas have."""

GRADING = frozenset({"reward_workers", "deadline_seconds", "memory_bytes"})
"""The rollout settings that only rewards use."""


def unread(recipe: Recipe, algorithm: Algorithm) -> dict[str, str]:
    """Sections and fields (dotted) that this run would not read -> why."""
    name = algorithm.name
    found = _unused_by_engine(recipe) | _unused_in_rollouts(recipe, algorithm) | _unused_models(recipe, algorithm)
    found |= _unused_corrections(recipe, algorithm)
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
    found |= _unused_in_curriculum(recipe, algorithm)
    if recipe.training.optimizer == "adafactor":
        why = "training.optimizer is adafactor, which has none"
        found |= dict.fromkeys(("training.betas", "training.epsilon"), why)
    if not recipe.tracking.trackers:
        found["tracking.project"] = "tracking.trackers is empty"
    kinds = ("prompts", "demonstrations", "preferences", "trajectories")
    sources = [(f"{kind}.{index}", one) for kind in kinds for index, one in enumerate(getattr(recipe, kind))]
    return found | {
        f"{place}.config": "it belongs to `path: reasoning_gym` and `path: tasks`"
        for place, one in sources
        if one.path not in ("reasoning_gym", "tasks")
    }


def _unused_in_curriculum(recipe: Recipe, algorithm: Algorithm) -> dict[str, str]:
    """All of it where no prompt is played and graded; else what its strategy or its record does not read."""
    settings = recipe.curriculum
    if settings is None:
        return {}
    if "rollouts" not in algorithm.sources or not algorithm.grades_rollouts:
        return {"curriculum": f"algorithm {algorithm.name!r} grades no rollouts, and pass rates are theirs"}
    found: dict[str, str] = {}
    for keys, strategy in ((("bounds", "weights"), "buckets"), (("target", "width"), "target")):
        if settings.strategy != strategy:
            found |= dict.fromkeys((f"curriculum.{key}" for key in keys), f"it belongs to `strategy: {strategy}`")
    if settings.strategy is None:
        found |= dict.fromkeys(("curriculum.exploration", "curriculum.decay"), "no curriculum.strategy is set")
    if settings.recorded_run is None and settings.recorded_column is None:
        why = "no pass rates are known before training: set recorded_run or recorded_column"
        found |= dict.fromkeys(("curriculum.min_pass_rate", "curriculum.max_pass_rate"), why)
    return found


def _unused_models(recipe: Recipe, algorithm: Algorithm) -> dict[str, str]:
    """The models beside the policy that nothing asks for, and revisions of what has none."""
    found: dict[str, str] = {}
    if "divergence" not in algorithm.needs:
        found["teacher"] = f"no term of algorithm {algorithm.name!r} measures a divergence from a teacher"
    if algorithm.plan.critic is None:
        found["critic"] = f"algorithm {algorithm.name!r} trains no second model"
    if "reference_logprobs" not in algorithm.needs:
        found["reference"] = f"algorithm {algorithm.name!r} measures nothing against a reference"
    elif recipe.lora is not None and not algorithm.plan.reference_samples:
        found["reference"] = "with lora the reference is the model without its adapter: there is no copy"
    if recipe.critic.path is None:
        found["critic.revision"] = "critic.path is not set: the critic starts as the policy does"
    for section, settings in (("model", recipe.model), ("teacher", recipe.teacher)):
        if settings is not None and settings.config is not None:
            found[f"{section}.revision"] = f"{section}.config makes a new model"
    return found


def _unused_by_engine(recipe: Recipe) -> dict[str, str]:
    if recipe.rollout.engine != "vllm":
        return dict.fromkeys((f"rollout.{key}" for key in VLLM_READS | SERVED_READS), "it belongs to `engine: vllm`")
    found = {}
    if recipe.rollout.memory_fraction is not None:
        found["rollout.batch_tokens"] = "rollout.memory_fraction gives the size of the cache"
    if recipe.rollout.mode != "served":
        return found | dict.fromkeys((f"rollout.{key}" for key in SERVED_READS), "it belongs to `mode: served`")
    found["rollout.sleep"] = "replicas have devices of their own"
    if recipe.rollout.servers:
        elsewhere = "rollout.servers were started elsewhere"
        found |= {"rollout.replica_devices": elsewhere, "rollout.max_restarts": elsewhere}
    if recipe.rollout.weights_transfer == "nccl":
        found["rollout.weights_directory"] = "rollout.weights_transfer: nccl writes no files"
    return found


def _unused_corrections(recipe: Recipe, algorithm: Algorithm) -> dict[str, str]:
    """What is not read of the settings for rollouts of another policy."""
    if "rollouts" not in algorithm.sources:
        return {}
    found: dict[str, str] = {}
    kind = correction(recipe, algorithm)
    if not correctable(algorithm):
        found["rollout.correction"] = f"algorithm {algorithm.name!r} has no policy gradient on rollouts without one"
    if kind == "none":
        found["rollout.correction_cap"] = "nothing is corrected (rollout.correction)"
        if "old_logprobs" not in algorithm.needs:
            found["rollout.old_logprobs"] = f"no term of algorithm {algorithm.name!r} reads old_logprobs"
    return found


def _unused_in_rollouts(recipe: Recipe, algorithm: Algorithm) -> dict[str, str]:
    """What is not read where nothing is sampled, or where nothing that is sampled is graded."""
    name, evaluates = algorithm.name, recipe.evaluation is not None
    if "rollouts" not in algorithm.sources:
        samples = f"algorithm {name!r} samples no rollouts"
        written = "tracking.groups_per_step", "tracking.trajectories"
        found = dict.fromkeys(("prompts", "rewards", "environment", "episode", "partner", *written), samples)
        reason = f"{samples}, and an evaluation samples as its benchmark says" if evaluates else samples
        read = EVALUATION_READS | SERVED_READS if evaluates else frozenset()
        return found | {f"rollout.{key}": reason for key in RolloutSettings.model_fields if key not in read}
    found = {"episode": "environment single_turn has one turn"} if recipe.environment.name == "single_turn" else {}
    if algorithm.grades_rollouts:
        return found
    ungraded = f"nothing in algorithm {name!r} reads rewards of rollouts"
    unread = frozenset() if evaluates else GRADING
    return found | dict.fromkeys(("rewards", "rollout.max_draws", *(f"rollout.{key}" for key in unread)), ungraded)
