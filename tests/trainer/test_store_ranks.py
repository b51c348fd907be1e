"""The trajectory store of two real ranks holds what one rank's does, advantages of the whole batch with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from posttrain.data.recorded import read, scan, shards
from tests.trainer.processes import Run, run_ranks


def _stored(output: Path) -> list[dict[str, Any]]:
    return [read(place) for place, _ in scan(shards(output), ["step"])]


def test_two_ranks_store_what_one_does(
    tiny_recipe: dict[str, Any], write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    """The advantage of REINFORCE++ is whitened over the tokens of all ranks; five prompts are uneven shares."""
    tiny_recipe["algorithm"] = {"name": "reinforce_pp", "kl_weight": 0.0}
    tiny_recipe["prompts"] = tiny_recipe.pop("demonstrations")
    tiny_recipe["rewards"] = [{"name": "reasoning_gym", "strict": False}]
    tiny_recipe["training"] |= {"prompts_per_step": 5, "steps": 1}
    recipe = write_recipe(tiny_recipe)
    Run(recipe, tmp_path / "alone").finish()
    run_ranks(recipe, tmp_path / "both")
    alone, both = _stored(tmp_path / "alone"), _stored(tmp_path / "both")
    assert [path.name for path in shards(tmp_path / "both")] == ["step_1_rank_0.parquet", "step_1_rank_1.parquet"]
    assert [row["rank"] for row in both] == [0] * 12 + [1] * 8
    ours = {(row["prompt_id"], row["sample"]): row for row in both}
    assert len(ours) == len(alone) == 20
    assert len({value for row in alone for value in row["advantage"]}) > 1, "something to whiten"
    for row in alone:
        other = ours[row["prompt_id"], row["sample"]]
        assert [turn["completion_ids"] for turn in other["turns"]] == [turn["completion_ids"] for turn in row["turns"]]
        assert other["advantage"] == pytest.approx(row["advantage"], rel=1e-4)
    shown = [json.loads(line) for line in (tmp_path / "both" / "rollouts" / "step_1.jsonl").open()]
    for one in shown:
        sample = shown.index(one) % 4
        assert one["advantage"] == pytest.approx(ours[one["prompt_id"], sample]["advantage"], rel=1e-6)
