"""A dry run of every launch file: the plan of a step for its number of ranks, without its devices."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file

from posttrain.algorithms import load
from posttrain.config import Recipe, load_recipe
from posttrain.errors import UserError
from posttrain.trainer.launch_plan import Launch, explain_launch, launch_plan, read_launch

FILES = sorted((Path(__file__).parents[2] / "recipes" / "launch").glob("*.yaml"))
RANKS = {
    "cpu_2": (2, "data parallel"),
    "cpu_fsdp2": (2, "FSDP2"),
    "cpu_zero2": (2, "ZeRO-2"),
    "cpu_zero3": (2, "ZeRO-3"),
    "ddp_8gpu": (8, "data parallel"),
    "fsdp2_8gpu": (8, "FSDP2"),
    "single_gpu": (1, "one process"),
    "zero2_8gpu": (8, "ZeRO-2"),
    "zero3_4nodes": (32, "ZeRO-3"),
    "zero3_8gpu": (8, "ZeRO-3"),
}


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return load_recipe("grpo_gsm8k_qwen2.5-0.5b").recipe


def _of(recipe: Recipe, num_ranks: int, prompts: int) -> tuple[list[int], list[int], int, int]:
    changed = recipe.model_copy(update={"training": recipe.training.model_copy(update={"prompts_per_step": prompts})})
    algorithm = load(recipe.algorithm.name, **recipe.algorithm.settings)
    found = launch_plan(changed, algorithm, Launch(num_ranks, 1, "ZeRO-3"))
    return found.prompts, found.sequences, found.idle, sum(found.tokens)


def test_every_launch_file_is_known() -> None:
    assert [path.stem for path in FILES] == sorted(RANKS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_launch_file_is_accelerates_and_plans_a_step(path: Path, recipe: Recipe) -> None:
    config = load_config_from_file(str(path))
    assert f"recipes/launch/{path.name} -m posttrain train RECIPE" in path.read_text()
    launch = read_launch(path)
    assert (launch.num_ranks, launch.kind) == RANKS[path.stem]
    assert (launch.num_ranks, launch.num_machines) == (config.num_processes, config.num_machines)
    plan = json.loads(explain_launch("grpo_gsm8k_qwen2.5-0.5b", [], path, "json"))
    assert len(plan["prompts"]) == len(plan["tokens"]) == launch.num_ranks
    assert sum(plan["prompts"]) == recipe.training.prompts_per_step
    assert sum(plan["sequences"]) == recipe.training.prompts_per_step * recipe.rollout.group_size
    assert max(plan["tokens"]) <= plan["microbatches"] * plan["budget_tokens"]
    text = explain_launch("grpo_gsm8k_qwen2.5-0.5b", [], path, "text")
    assert f"{launch.num_ranks} on {launch.num_machines} machine" in text


def test_a_number_of_prompts_that_ranks_do_not_divide(recipe: Recipe) -> None:
    prompts, sequences, _, tokens = _of(recipe, 8, 13)
    assert prompts == [2] * 5 + [1] * 3
    assert sum(sequences) == 13 * recipe.rollout.group_size
    alone = _of(recipe, 1, 13)
    assert alone[:3] == ([13], [sum(sequences)], 0)
    assert tokens >= alone[3]  # a prompt is computed once on every rank that trains on it


def test_fewer_prompts_than_ranks(recipe: Recipe) -> None:
    prompts, sequences, idle, _ = _of(recipe, 32, 3)
    assert prompts == [1] * 3 + [0] * 29
    assert sum(sequences) == 3 * recipe.rollout.group_size
    assert idle == sequences.count(0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_processes": None}, "has no num_processes"),
        ({"num_machines": 3}, "num_processes is 8, of all machines together; allowed: a multiple of num_machines"),
        ({"distributed_type": "TPU"}, "distributed_type is 'TPU'; allowed: NO, MULTI_GPU"),
        ({"distributed_type": "FSDP", "fsdp_config": {"fsdp_version": 1}}, "fsdp_version is 1; allowed: 2"),
        ({"deepspeed_config": {"zero_stage": 4}}, "zero_stage is 4; allowed: 1, 2, 3"),
    ],
)
def test_what_a_launch_file_may_not_say(changes: dict[str, object], said: str, tmp_path: Path) -> None:
    (good,) = (path for path in FILES if path.stem == "zero3_8gpu")
    path = tmp_path / "launch.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(good.read_text()) | changes))
    with pytest.raises(UserError, match=said):
        read_launch(path)


def test_what_is_kept_on_the_host_is_said(tmp_path: Path, recipe: Recipe) -> None:
    (good,) = (path for path in FILES if path.stem == "zero3_8gpu")
    said = yaml.safe_load(good.read_text())
    said["deepspeed_config"] |= {"offload_optimizer_device": "cpu", "offload_param_device": "cpu"}
    path = tmp_path / "launch.yaml"
    path.write_text(yaml.safe_dump(said))
    text = explain_launch("grpo_gsm8k_qwen2.5-0.5b", [], path, "text")
    assert "ZeRO-3, weights and optimiser state in the host's memory" in text
