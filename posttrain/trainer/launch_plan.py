"""What a launch file makes of a step, without any of its devices: ranks, shares, micro-batches, collectives."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from posttrain.batch import Source, TokenSequence
from posttrain.config import Recipe, load_recipe
from posttrain.data.plan import assign, measure
from posttrain.errors import UserError
from posttrain.estimator import Algorithm
from posttrain.trainer.corrected import algorithm_of

Kind = Literal["one process", "data parallel", "ZeRO-1", "ZeRO-2", "ZeRO-3", "FSDP2"]

_SPREAD = "weights of a layer gathered in every forward and backward pass, gradients reduced in every micro-batch"
_COLLECTIVES: dict[Kind, str] = {
    "one process": "none",
    "data parallel": "gradients added up over the ranks in the last micro-batch of a step",
    "ZeRO-1": "gradients added up over the ranks in the last micro-batch of a step, new weights gathered after it",
    "ZeRO-2": "gradients reduced to their owners in every micro-batch, new weights gathered after a step",
    "ZeRO-3": _SPREAD,
    "FSDP2": _SPREAD,
}
_NUM_LENGTHS = 8
_NUM_OUTCOMES = 4


@dataclass(frozen=True)
class Launch:
    """What a launch file says. offloaded: what is kept in the host's memory."""

    num_ranks: int
    num_machines: int
    kind: Kind
    offloaded: tuple[str, ...] = ()


@dataclass(frozen=True)
class LaunchPlan:
    """A step as `launch` carries it out, with lengths as `assumed`; a number for each rank where there are several.

    tokens: of each rank, in its micro-batches. idle: micro-batches of all ranks that hold nothing and only take part in
    the collectives.
    """

    launch: Launch
    prompts: list[int]
    sequences: list[int]
    microbatches: int
    tokens: list[int]
    idle: int
    budget_tokens: int
    collectives: str
    assumed: str

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    def __str__(self) -> str:
        """A line each."""
        launch, busiest = self.launch, max(self.tokens)
        machines = f"{launch.num_machines} machine{'s' * (launch.num_machines > 1)}"
        offloaded = f", {' and '.join(launch.offloaded)} in the host's memory" if launch.offloaded else ""
        even = sum(self.tokens) / (len(self.tokens) * busiest) if busiest else 1.0
        rows = {
            "ranks": f"{launch.num_ranks} on {machines}, {launch.kind}{offloaded}",
            "examples": f"{sum(self.prompts)} a step: {_counted(self.prompts)}",
            "sequences": f"{sum(self.sequences)} a step: {_counted(self.sequences)}",
            "micro-batches": f"{self.microbatches} a rank and step, of at most {self.budget_tokens:,} tokens; "
            f"{busiest:,} tokens on the fullest rank, {even:.0%} of that on average"
            + (f"; {self.idle} of them empty" if self.idle else ""),
            "collectives": f"{self.collectives}; every rank takes part in each",
            "assumed": self.assumed,
        }
        return "\n".join(f"{name:<16}{phrase}" for name, phrase in rows.items())


def explain_launch(name: str, overrides: Sequence[str], launch: Path, format: str) -> str:
    """The plan of a step of the recipe `name`, as text or json."""
    if format == "latex":
        raise UserError("--format latex is for objectives; with --launch allowed: text, json")
    recipe = load_recipe(name, overrides, stop_at_warnings=False).recipe
    plan = launch_plan(recipe, algorithm_of(recipe), read_launch(launch))
    return json.dumps(plan.as_dict(), indent=2) if format == "json" else str(plan)


def read_launch(path: Path) -> Launch:
    """A launch file of accelerate; UserError where it cannot be read or says what posttrain does not run."""
    try:
        said = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"launch file {str(path)!r} cannot be read: {error}; see recipes/launch") from error
    if not isinstance(said, dict) or not isinstance(said.get("num_processes"), int):
        raise UserError(f"launch file {str(path)!r} has no num_processes; allowed: one as in recipes/launch")
    num_ranks, num_machines = said["num_processes"], said.get("num_machines", 1)
    if num_ranks < 1 or num_machines < 1 or num_ranks % num_machines:
        raise UserError(
            f"launch file {str(path)!r}: num_processes is {num_ranks}, of all machines together; "
            f"allowed: a multiple of num_machines, which is {num_machines}"
        )
    return Launch(num_ranks, num_machines, _kind(said, path), _offloaded(said))


def launch_plan(recipe: Recipe, algorithm: Algorithm, launch: Launch) -> LaunchPlan:
    """One step of `recipe` on the ranks of `launch`, by the plan that the trainer makes, of made-up sequences."""
    examples = list(range(recipe.training.prompts_per_step))
    shares = [_share(recipe, algorithm, examples[rank :: launch.num_ranks]) for rank in range(launch.num_ranks)]
    units = []
    sizes: list[int] = []
    for rank, share in enumerate(shares):
        members, own = measure(share, algorithm.couples, layout="shared", whole=False, rank=rank)
        units += own
        sizes += map(len, members)
    budget = recipe.training.tokens_per_microbatch
    assigned = assign(units, budget, launch.num_ranks, "shared")
    return LaunchPlan(
        launch=launch,
        prompts=[len(examples[rank :: launch.num_ranks]) for rank in range(launch.num_ranks)],
        sequences=[sum(sizes[unit] for batch in one for unit in batch) for one in assigned],
        microbatches=max(map(len, assigned)),
        tokens=[sum(units[unit].added_tokens for batch in one for unit in batch) for one in assigned],
        idle=sum(not batch for one in assigned for batch in one),
        budget_tokens=budget,
        collectives=_COLLECTIVES[launch.kind],
        assumed=f"completions of {_NUM_LENGTHS} lengths up to {_longest(recipe, algorithm):,} tokens behind prompts of "
        f"{_prompt(recipe, algorithm):,}, none of them pruned",
    )


def _kind(said: dict[str, Any], path: Path) -> Kind:
    kind = said.get("distributed_type", "NO")
    if kind == "DEEPSPEED":
        stage = (said.get("deepspeed_config") or {}).get("zero_stage")
        stages: dict[Any, Kind] = {1: "ZeRO-1", 2: "ZeRO-2", 3: "ZeRO-3"}
        if stage not in stages:
            raise UserError(f"launch file {str(path)!r}: deepspeed_config.zero_stage is {stage!r}; allowed: 1, 2, 3")
        return stages[stage]
    if kind == "FSDP":
        version = (said.get("fsdp_config") or {}).get("fsdp_version", 1)
        if version != 2:
            raise UserError(f"launch file {str(path)!r}: fsdp_config.fsdp_version is {version!r}; allowed: 2")
        return "FSDP2"
    if kind in ("MULTI_GPU", "MULTI_CPU"):
        return "data parallel"
    if kind != "NO":
        kinds = "NO, MULTI_GPU, MULTI_CPU, DEEPSPEED, FSDP"
        raise UserError(f"launch file {str(path)!r}: distributed_type is {kind!r}; allowed: {kinds}")
    return "one process"


def _offloaded(said: dict[str, Any]) -> tuple[str, ...]:
    zero, fsdp = said.get("deepspeed_config") or {}, said.get("fsdp_config") or {}
    found = ["weights"] if zero.get("offload_param_device", "none") != "none" or fsdp.get("fsdp_offload_params") else []
    return (*found, *(["optimiser state"] if zero.get("offload_optimizer_device", "none") != "none" else []))


def _share(recipe: Recipe, algorithm: Algorithm, examples: Sequence[int]) -> list[TokenSequence]:
    """A rank's sequences: of every source that the algorithm reads, for each of its examples."""
    members = {
        Source.ROLLOUTS: recipe.rollout.group_size,
        Source.DEMONSTRATIONS: 1,
        Source.PREFERENCES: 2,
        Source.TRAJECTORIES: _NUM_OUTCOMES,
    }
    prompt, longest = _prompt(recipe, algorithm), _longest(recipe, algorithm)
    found = []
    for group, example in enumerate(examples):
        number = 0
        for source in sorted(algorithm.sources):
            for _ in range(members[source]):
                completion = max(1, longest * (1 + (5 * example + 3 * number) % _NUM_LENGTHS) // _NUM_LENGTHS)
                ids = (2 * example,) * prompt + (2 * number + 1,) * completion
                mask = (False,) * prompt + (True,) * completion
                found.append(TokenSequence(ids, mask, source, group, pair=group, trajectory=number))
                number += 1
    return found


def _longest(recipe: Recipe, algorithm: Algorithm) -> int:
    """Tokens of the longest completion that is assumed."""
    if Source.ROLLOUTS in algorithm.sources:
        return recipe.rollout.max_tokens
    training = recipe.training
    return max(1, (training.max_length or training.tokens_per_microbatch // 8) * 3 // 4)


def _prompt(recipe: Recipe, algorithm: Algorithm) -> int:
    return max(1, _longest(recipe, algorithm) // 3)


def _counted(numbers: Sequence[int]) -> str:
    """8 on every rank; or: 5 on 4 ranks, 4 on 4 ranks."""
    counts = Counter(numbers)
    if len(counts) == 1:
        return f"{numbers[0]} on each rank"
    return ", ".join(
        f"{number} on {counts[number]} rank{'s' * (counts[number] > 1)}" for number in sorted(counts)[::-1]
    )
