"""`rollout.listed_actions`: the policy is sampled, and trained, among the commands that the game would carry out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from posttrain.config import load_recipe
from posttrain.data import recorded
from posttrain.errors import RunError
from posttrain.trainer import train
from posttrain.trainer.noise import measure

WriteRecipe = Callable[..., Path]


@pytest.fixture
def corridor(tiny_recipe: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """GRPO from scratch in a corridor of two rooms with a coin at its end."""
    game = {"family": "coin_collector", "game": {"level": 2}, "instructions": None, "cache": str(tmp_path / "games")}
    del tiny_recipe["demonstrations"]
    tiny_recipe |= {
        "algorithm": {"name": "grpo", "kl_weight": 0.1},
        "prompts": {"path": "tasks", "config": {"size": 2, "seed": 1}},
        "environment": {"name": "text_game", "processes": 1} | game,
        "episode": {"max_turns": 4, "history_turns": 0},
        "rewards": ["episode_return"],
    }
    tiny_recipe["model"]["config"]["max_position_embeddings"] = 1024
    tiny_recipe["rollout"] |= {"max_tokens": 32, "listed_actions": True}
    tiny_recipe["training"] |= {"steps": 2, "prompts_per_step": 2}
    return tiny_recipe


def test_untrained_it_does_only_what_can_be_done(
    corridor: dict[str, Any], write_recipe: WriteRecipe, tmp_path: Path
) -> None:
    assert train(load_recipe(write_recipe(corridor)), tmp_path / "run") is None
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["invalid_actions_share"] for row in metrics] == [0.0, 0.0]
    assert 0 < metrics[0]["policy/entropy"] < 1.5, "of some five commands, token by token, not of the vocabulary"
    places = [place for place, _ in recorded.scan(recorded.shards(tmp_path / "run"), ["step"])]
    for place in places:
        for turn in recorded.read(place)["turns"]:
            assert turn["text"].split()[0] in {"go", "take", "drop", "look", "inventory", "examine"}
            for token, logprob, allowed in zip(turn["completion_ids"], turn["logprobs"], turn["allowed"], strict=True):
                assert token in allowed
                assert (logprob == 0) == (len(allowed) == 1)
    assert len(places) == 16


def test_sampler_and_trainer_agree(corridor: dict[str, Any], write_recipe: WriteRecipe) -> None:
    noise, _ = measure(load_recipe(write_recipe(corridor)).recipe, 2)
    assert len(noise.differences) > 100
    assert float(noise.differences.abs().max()) < 1e-4, "log-probabilities under the same mask"


def test_an_environment_that_lists_nothing_is_refused(
    tiny_recipe: dict[str, Any], write_recipe: WriteRecipe, tmp_path: Path
) -> None:
    tiny_recipe["rollout"] |= {"listed_actions": True}
    with pytest.raises(RunError, match="listed_actions: the environment lists no actions for reasoning_gym"):
        train(load_recipe(write_recipe(tiny_recipe)), tmp_path / "run")
