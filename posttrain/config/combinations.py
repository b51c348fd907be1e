"""Combinations of valid values that cannot work.

Each rule is a small function of the recipe and its algorithm. An algorithm is known here by what it reads (`sources`,
`needs`), never by its name.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

from posttrain.catalog import Mistake, install_command
from posttrain.config.asked import Algorithm
from posttrain.config.correction import correctable
from posttrain.config.schema import Recipe, RolloutSettings
from posttrain.reward_specs import mistakes_of


def impossible(recipe: Recipe, algorithm: Algorithm) -> Iterator[Mistake]:
    """Every combination that cannot work."""
    for rule in RULES:
        yield from rule(recipe, algorithm)


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


def _evaluations(recipe: Recipe, _: Algorithm) -> Iterator[Mistake]:
    if recipe.final_evaluation is not None and recipe.evaluation is None:
        text = "there is no evaluation to select its step by; allowed: with `evaluation`, on another split"
        yield Mistake(("final_evaluation",), text)


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
    for text in mistakes_of(recipe.rewards):
        yield Mistake(("rewards",), text)


def _partner(recipe: Recipe, _: Algorithm) -> Iterator[Mistake]:
    partner = recipe.partner
    if partner is None:
        return
    if partner.self_play == (partner.path is not None):
        yield Mistake(("partner",), "names nobody, or two; allowed: `path`, or `self_play: true`")
    remote = partner.path is not None and partner.path.startswith(("http://", "https://"))
    if partner.name is not None and not remote:
        yield Mistake(
            ("partner", "name"), "it names one of an endpoint's models; allowed with a path that is http://..."
        )


def _ahead(recipe: Recipe, algorithm: Algorithm) -> Iterator[Mistake]:
    rollout, plan = recipe.rollout, algorithm.plan
    if rollout.max_staleness == 0 or "rollouts" not in algorithm.sources:
        return
    path, text = ("rollout", "max_staleness"), f"{rollout.max_staleness} is not allowed: "
    if rollout.engine == "vllm" and rollout.mode == "colocated":
        why = "vLLM in the trainer's process sets that process's precision and random state while the trainer uses them"
        yield Mistake(path, f"{text}{why}; allowed: 0, mode served, or engine transformers")
    if plan.reference_samples and plan.reference_decay:
        why = f"algorithm {algorithm.name!r} samples from a reference that follows the policy while it plays"
        yield Mistake(path, f"{text}{why}; allowed: 0")


def _old_logprobs(recipe: Recipe, algorithm: Algorithm) -> Iterator[Mistake]:
    rollout = recipe.rollout
    if rollout.old_logprobs == "trainer" or "rollouts" not in algorithm.sources:
        return
    made = {"rollouts"} if algorithm.plan.pairing is None else {"rollouts", "preferences"}
    for term in algorithm.terms:
        if "old_logprobs" in term.needs and term.source not in made:
            text = f"grad_{term.name} reads old_logprobs of {term.source}, which the policy has not sampled"
            yield Mistake(("rollout", "old_logprobs"), f"'sampler' is not allowed: {text}; allowed: trainer")
            return
    if rollout.correction not in ("auto", "none") and correctable(algorithm):
        text = "ratios begin at the sampler's logprobs, so that pi_old / pi_behavior is 1"
        yield Mistake(("rollout", "correction"), f"{rollout.correction!r} is not allowed: {text}; allowed: auto, none")


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


def _curriculum(recipe: Recipe, _: Algorithm) -> Iterator[Mistake]:
    settings = recipe.curriculum
    if settings is None:
        return
    recorded = [name for name in ("recorded_run", "recorded_column") if getattr(settings, name) is not None]
    if settings.strategy is None and not recorded:
        text = "it changes nothing; allowed: with strategy (buckets or target), recorded_run or recorded_column"
        yield Mistake(("curriculum",), text)
    if len(recorded) > 1:
        yield Mistake(("curriculum",), "both recorded_run and recorded_column are set; allowed: one of them")
    low, high = settings.min_pass_rate, settings.max_pass_rate
    if low > high:
        yield Mistake(
            ("curriculum", "min_pass_rate"), f"{low:g} is not allowed: max_pass_rate is {high:g}; allowed: at most that"
        )
    bounds, weights = settings.bounds, settings.weights
    if settings.strategy != "buckets":
        return
    if not bounds or bounds != sorted(set(bounds)) or not 0 < bounds[0] <= bounds[-1] <= 1:
        yield Mistake(("curriculum", "bounds"), f"{bounds} is not allowed; allowed: rising numbers above 0, up to 1")
    elif len(weights) != len(bounds) + 1 or not any(weights):
        yield Mistake(
            ("curriculum", "weights"),
            f"{weights} is not allowed: {len(bounds)} bounds make {len(bounds) + 1} buckets; "
            "allowed: a weight of at least 0 for each, one of them above 0",
        )


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


def _served(recipe: Recipe, algorithm: Algorithm) -> Iterator[Mistake]:
    rollout = recipe.rollout
    if rollout.mode != "served":
        return
    if bool(rollout.servers) == (rollout.replicas is not None):
        state = "both servers and replicas are set" if rollout.servers else "neither servers nor replicas is set"
        text = "allowed: the addresses of servers, or the number of replicas that the run starts itself"
        yield Mistake(("rollout", "servers"), f"{state}; {text}")
    for index, server in enumerate(rollout.servers):
        if urlsplit(server).scheme not in ("http", "https") or not urlsplit(server).hostname:
            yield Mistake(("rollout", "servers", index), f"{server!r} is no address; allowed: as in http://host:8000")
        if server in rollout.servers[:index]:
            yield Mistake(("rollout", "servers", index), f"{server!r} is listed twice; allowed: each server once")
    if rollout.replica_devices and len(rollout.replica_devices) != rollout.replicas:
        yield Mistake(
            ("rollout", "replica_devices"),
            f"{len(rollout.replica_devices)} are named; allowed: one for each of {rollout.replicas} replicas",
        )
    if rollout.weights_transfer == "nccl":
        yield from _over_nccl(rollout)
    if algorithm.plan.reference_samples:
        text = "'served' is not allowed: replicas hold the policy, and the reference of algorithm"
        yield Mistake(("rollout", "mode"), f"{text} {algorithm.name!r} plays rollouts too; allowed: 'colocated'")


def _over_nccl(rollout: RolloutSettings) -> Iterator[Mistake]:
    import torch

    if not torch.cuda.is_available():
        text = "'nccl' is not allowed: it joins GPUs, and there is no CUDA here; allowed: files, http"
        yield Mistake(("rollout", "weights_transfer"), text)
    elif rollout.replicas and not rollout.replica_devices:
        text = "missing: NCCL joins different GPUs; allowed: for each replica others than the trainer's, as in '1'"
        yield Mistake(("rollout", "replica_devices"), text)


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
            "missing: model.config has no tokenizer; allowed: a directory, a hub id, 'characters', or 'bpe'",
        )
    tokenizer = recipe.tokenizer
    if tokenizer.path == "bpe" and tokenizer.corpus is None:
        yield Mistake(("tokenizer", "corpus"), "missing: tokenizer 'bpe' is learnt from it; allowed: a .jsonl file")
    if tokenizer.path != "bpe" and tokenizer.corpus is not None:
        yield Mistake(
            ("tokenizer", "corpus"),
            f"{tokenizer.corpus!r} is read by tokenizer.path bpe alone, and it is {tokenizer.path!r}; allowed: null",
        )


def _quantised(recipe: Recipe, algorithm: Algorithm) -> Iterator[Mistake]:
    model, lora, place = recipe.model, recipe.lora, ("model", "quantization")
    if model.quantization is None:
        return
    text = f"{model.quantization!r} is not allowed: "
    if lora is None:
        yield Mistake(place, text + "quantised weights cannot be trained; allowed: with a section lora")
    elif lora.dora:
        yield Mistake(place, text + "lora.dora is on, whose norms are those of whole weights; allowed: without it")
    if model.path is None:
        yield Mistake(place, text + "model.config makes random weights; allowed: with model.path")
    if algorithm.plan.critic is not None and recipe.critic.path is None:
        yield Mistake(place, text + "the critic starts as a copy of the policy, to be trained; allowed: a critic.path")


def _packages(recipe: Recipe, _: Algorithm) -> Iterator[Mistake]:
    needing = (
        (("model", "quantization"), recipe.model.quantization),
        (("training", "optimizer"), recipe.training.optimizer if "8bit" in recipe.training.optimizer else None),
    )
    for place, value in needing:
        if value is not None and importlib.util.find_spec("bitsandbytes") is None:
            how = install_command("bitsandbytes")
            yield Mistake(place, f"{value!r} needs the package 'bitsandbytes', which is not installed: {how}")


def _critic(_: Recipe, algorithm: Algorithm) -> Iterator[Mistake]:
    read = algorithm.needs & {"values", "old_values"}
    if read and algorithm.plan.critic is None and not algorithm.plan.scores:
        yield Mistake(
            ("algorithm",),
            f"{algorithm.name!r} reads a critic's {' and '.join(sorted(read))}, but trains no critic; "
            "allowed: an algorithm whose plan has one, such as ppo or oreal",
        )


def _reward_model(recipe: Recipe, algorithm: Algorithm) -> Iterator[Mistake]:
    if algorithm.plan.scores and recipe.evaluation is not None:
        text = f"algorithm {algorithm.name!r} trains a reward model, which answers no benchmark"
        yield Mistake(("evaluation",), f"{text}; allowed: none, and `posttrain calibrate` on data that is held out")


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
    _evaluations,
    _hybrid,
    _reference,
    _unrewarded,
    _rewards,
    _groups,
    _ahead,
    _old_logprobs,
    _redrawn,
    _curriculum,
    _partner,
    _paired,
    _mismatched,
    _balanced,
    _served,
    _training,
    _quantised,
    _packages,
    _critic,
    _reward_model,
    _teacher,
    _sources,
    _trackers,
)
