"""Training on recorded trajectories, and rollouts that start inside demonstrations, through the real trainer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from posttrain.algorithms import load
from posttrain.batch import Source
from posttrain.config import load_recipe
from posttrain.data.sources import load_source
from posttrain.data.stream import Stream
from posttrain.errors import RecipeError
from posttrain.models.tokenizer import load_tokenizer
from posttrain.trainer import train
from posttrain.trainer.window import WindowBuilder

WriteRecipe = Callable[..., Path]


def _metrics(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def offline(tiny_recipe: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """Return-weighted imitation of a table: for each sum a right answer and two wrong ones."""
    rows = []
    for a in range(4):
        for b in range(4):
            for shift in range(3):
                rows.append({"prompt": f"{a} + {b} =", "completion": str(a + b + shift), "reward": float(shift == 0)})
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("demonstrations", "rewards", "rollout"):
        del tiny_recipe[name]
    tiny_recipe |= {"algorithm": {"name": "return_weighted", "beta": 0.1}}
    tiny_recipe["trajectories"] = {"path": str(path), "chat": True}
    return tiny_recipe


@pytest.mark.parametrize(
    "algorithm",
    [{"beta": 0.1}, {"beta": None, "keep": "solved"}, {"keep": "best", "self_normalised": True}, {"std": True}],
    ids=str,
)
def test_the_better_trajectories_win(
    offline: dict[str, Any], write_recipe: WriteRecipe, tmp_path: Path, algorithm: dict[str, Any]
) -> None:
    offline["algorithm"] |= algorithm
    offline["training"] |= {"steps": 30, "prompts_per_step": 16, "learning_rate": 0.01}
    offline["checkpoint"] = {"every_steps": 0}
    assert train(load_recipe(write_recipe(offline)), tmp_path / "run") is None
    metrics = _metrics(tmp_path / "run")
    assert {row["num_sequences"] for row in metrics} == {48}, "16 prompts, 3 trajectories each"
    assert metrics[-1]["epoch"] == 30
    assert metrics[-1]["imitation/nll"] < metrics[0]["imitation/nll"] / 2


def test_the_rollouts_of_a_run_train_another(
    tiny_recipe: dict[str, Any], offline: dict[str, Any], write_recipe: WriteRecipe, tmp_path: Path
) -> None:
    first = json.loads(json.dumps(offline | {"algorithm": {"name": "grpo"}}))
    del first["trajectories"]
    first |= {
        "prompts": {"path": "reasoning_gym", "config": {"dataset": "chain_sum", "size": 8, "max_terms": 2}},
        "rewards": [{"name": "reasoning_gym", "strict": False}],
        "rollout": {"group_size": 4, "max_tokens": 8, "dtype": "float32", "reward_workers": 1},
    }
    train(load_recipe(write_recipe(first, "first")), tmp_path / "first")
    recorded = [json.loads(line) for file in (tmp_path / "first" / "rollouts").iterdir() for line in file.open()]
    offline["trajectories"] = {"path": str(tmp_path / "first")}
    offline["training"]["prompts_per_step"] = 8
    loaded = load_recipe(write_recipe(offline, "second"))
    assert train(loaded, tmp_path / "second") is None
    assert _metrics(tmp_path / "second")[0]["num_sequences"] == len(recorded), "one step reads all eight prompts"

    settings = loaded.recipe.trajectories[0]
    tokenizer = load_tokenizer(loaded.recipe.tokenizer, loaded.recipe.model)
    stream = Stream([load_source(settings, "trajectories")], [1.0], seed=0)
    algorithm = load("return_weighted")
    builder = WindowBuilder(loaded.recipe, algorithm, tokenizer, None, None, trajectories=stream)
    steps = builder.steps(builder.play(0, lambda: pytest.fail("nothing is played")))
    sequences = steps[0].sequences
    assert {s.source for s in sequences} == {Source.TRAJECTORIES}
    assert sorted(s.reward or 0.0 for s in sequences) == sorted(one["reward"] for one in recorded)
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    ended = sum(s.token_ids[-1] == end for s in sequences)
    assert ended == sum(one["stop_reason"] == "stop" for one in recorded), (
        "what was cut off does not learn to end there"
    )
    assert len({s.group for s in sequences}) == 8


@pytest.mark.parametrize("advantage", ["gae", "group_relative"])
def test_rollouts_start_inside_demonstrations(
    tiny_recipe: dict[str, Any], write_recipe: WriteRecipe, tmp_path: Path, advantage: str
) -> None:
    tiny_recipe["algorithm"] = {"name": "dr_po", "reset_probability": 0.5, "advantage": advantage}
    tiny_recipe["rewards"] = [{"name": "reasoning_gym", "strict": False}]
    loaded = load_recipe(write_recipe(tiny_recipe))
    assert train(loaded, tmp_path / "run") is None
    assert all(row["num_sequences"] == 16 and row["grad_norm"] > 0 for row in _metrics(tmp_path / "run"))
    rows = [json.loads(line) for line in (tmp_path / "run" / "rollouts" / "step_1.jsonl").open()]
    given = [row for row in rows if row["given"]]
    assert 0 < len(given) < 16
    assert all(row["completion"].startswith(row["given"]) for row in given)
    assert all(len(row["tokens"]) == len(row["advantage"]) == len(row["logprobs"]) for row in rows)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"demonstrations": []}, "demonstrations: missing: algorithm 'dr_po' starts rollouts inside demonstrations"),
        (
            {"prompts": "owner/name"},
            "prompts: set, but nothing would read it: algorithm 'dr_po' starts rollouts inside",
        ),
    ],
)
def test_resets_need_demonstrations(
    tiny_recipe: dict[str, Any], write_recipe: WriteRecipe, change: dict[str, Any], message: str
) -> None:
    tiny_recipe |= {"algorithm": "dr_po"} | change
    with pytest.raises(RecipeError, match=message) as error:
        load_recipe(write_recipe(tiny_recipe))
    assert len(str(error.value).splitlines()) == 1


def test_trajectories_need_a_source(offline: dict[str, Any], write_recipe: WriteRecipe) -> None:
    del offline["trajectories"]
    with pytest.raises(RecipeError, match="trajectories: missing: algorithm 'return_weighted' reads trajectories"):
        load_recipe(write_recipe(offline))
