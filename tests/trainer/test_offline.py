"""Offline training on the trajectory store of a run: exactly what was sampled, through the real trainer."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from posttrain.algorithms import load
from posttrain.batch import Source, TokenSequence
from posttrain.config import load_recipe
from posttrain.config.schema import SourceSettings
from posttrain.data.recorded import first_step, read, scan, shards
from posttrain.data.sources import load_source
from posttrain.errors import DataError
from posttrain.models.tokenizer import character_tokenizer
from posttrain.rollout.sequences import rollout_sequences
from posttrain.trainer import train
from posttrain.trainer.step_data import Drawn, Played, StepData, StepMaker
from posttrain.trainer.store import TrajectoryStore
from posttrain.trajectory import StopReason, Trajectory, Turn
from tests.trainer.processes import Run

WriteRecipe = Callable[..., Path]
TOKENIZER = character_tokenizer()


def rows(output: Path) -> list[dict[str, Any]]:
    return [read(place) for place, _ in scan(shards(output), ["step"])]


def sequences(output: Path, **settings: Any) -> list[list[TokenSequence]]:
    """What a step over all prompts of a store trains on, by prompt."""
    examples = load_source(SourceSettings(path=str(output), **settings), "trajectories")
    maker = StepMaker(load("return_weighted"), TOKENIZER, max_length=None, paired=False)
    made = maker.step(Drawn([], [], [], [], list(examples)), iter(())).sequences
    return [[one for one in made if one.group == group] for group in range(len(examples))]


@pytest.fixture
def online(tiny_recipe: dict[str, Any]) -> dict[str, Any]:
    """Eight prompts, four rollouts each, at a temperature of their own."""
    del tiny_recipe["demonstrations"]
    return tiny_recipe | {
        "algorithm": {"name": "grpo"},
        "prompts": {"path": "reasoning_gym", "config": {"dataset": "chain_sum", "size": 8, "max_terms": 2}},
        "rewards": [{"name": "reasoning_gym", "strict": False}],
        "rollout": {"group_size": 4, "max_tokens": 8, "dtype": "float32", "reward_workers": 1, "temperature": 0.75},
    }


@pytest.fixture
def offline(tiny_recipe: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """Return-weighted imitation of the run in tmp_path/first, all of its prompts in a step."""
    changed = {name: part for name, part in tiny_recipe.items() if name not in ("demonstrations", "rewards", "rollout")}
    changed["training"] = changed["training"] | {"prompts_per_step": 8, "steps": 2}
    return changed | {"algorithm": {"name": "return_weighted"}, "trajectories": {"path": str(tmp_path / "first")}}


def conversation(**changes: Any) -> Trajectory:
    """Two turns that continue each other, and a third before which the template rewrote what had been said."""
    turns = (
        Turn((3, 20, 4), (30, 31, 2), (-0.1, -1 / 3, -0.25), StopReason.STOP, 4, "xy"),
        Turn((3, 20, 4, 30, 31, 2, 40), (32, 2), (-0.7, -2e-17), StopReason.STOP, 5, "z"),
        Turn((3, 50, 4), (33,), (-1.5,), StopReason.LENGTH, 6, "w", num_given=1),
    )
    made = Trajectory("p#0", 0, "1 + 1", {}, turns, temperature=0.6, reward=0.1 + 0.2, solved=False)
    return replace(made, **changes)


def test_turns_come_back_as_the_sequences_that_were_sampled(tmp_path: Path) -> None:
    played = [
        conversation(),
        conversation(error="environment: gone", reward=None),
        conversation(turns=(), error="engine: gone", reward=None),
        conversation(prompt="2 + 2", reward=None, solved=None, turns=conversation().turns[:1]),
    ]
    data = StepData([], [Played(one, 0, []) for one in played])
    TrajectoryStore(tmp_path, 0, TOKENIZER).write(1, 0, [data], [], [[]])
    first, second = sequences(tmp_path)
    assert first == rollout_sequences(played[0], 0, 0, Source.TRAJECTORIES)
    assert second == rollout_sequences(played[3], 1, 0, Source.TRAJECTORIES)
    assert [one.turns for one in first] == [[0, 0, 0, 1, 1], [2]]
    source = load_source(SourceSettings(path=str(tmp_path)), "trajectories")
    assert (source.num_skipped, source.first_problem) == (2, "p#0: the rollout had failed: environment: gone")


def test_what_max_length_cuts_keeps_the_logprobs_of_what_is_left(tmp_path: Path) -> None:
    data = StepData([], [Played(conversation(), 0, [])])
    TrajectoryStore(tmp_path, 0, TOKENIZER).write(1, 0, [data], [], [[]])
    maker = StepMaker(load("return_weighted"), TOKENIZER, max_length=5, paired=False)
    examples = list(load_source(SourceSettings(path=str(tmp_path)), "trajectories"))
    cut, whole = maker.step(Drawn([], [], [], [], examples), iter(())).sequences
    assert (cut.token_ids, cut.behavior_logprobs) == ((3, 20, 4, 30, 31), (-0.1, -1 / 3))
    assert whole.num_tokens == 4
    assert maker.num_cut == 1


def test_a_run_is_recorded_and_trained_on_token_by_token(
    online: dict[str, Any], offline: dict[str, Any], write_recipe: WriteRecipe, tmp_path: Path
) -> None:
    online["training"] |= {"steps": 4}
    train(load_recipe(write_recipe(online, "first")), tmp_path / "first")
    recorded = rows(tmp_path / "first")
    assert len(recorded) == 4 * 4 * 4, "steps, prompts, rollouts"
    assert all(row["turns"][0]["policy_version"] == row["step"] - 1 for row in recorded)
    assert all(row["generation_seconds"] > 0 and row["grading_seconds"] > 0 for row in recorded)
    sampled = sorted(
        (*row["turns"][0]["prompt_ids"], *row["turns"][0]["completion_ids"], *row["turns"][0]["logprobs"])
        for row in recorded
    )
    found = [one for group in sequences(tmp_path / "first") for one in group]
    assert sorted((*one.token_ids, *(one.behavior_logprobs or ())) for one in found) == sampled
    assert {one.temperature for one in found} == {0.75}
    assert train(load_recipe(write_recipe(offline, "second")), tmp_path / "second") is None
    metrics = [json.loads(line) for line in (tmp_path / "second" / "metrics.jsonl").read_text().splitlines()]
    assert [row["num_sequences"] for row in metrics] == [len(recorded)] * 2, "a step reads all eight prompts"
    assert shards(tmp_path / "second") == [], "nothing was sampled"


def test_the_behavior_policy_is_a_denominator_where_its_logprobs_are_stored(
    online: dict[str, Any], offline: dict[str, Any], write_recipe: WriteRecipe, tmp_path: Path
) -> None:
    online["training"] |= {"steps": 2}
    train(load_recipe(write_recipe(online, "first")), tmp_path / "first")
    part = {"source": "trajectories", "denominator": "behavior"}
    offline["algorithm"] = {"name": "terms", "terms": [part]}
    offline["training"] |= {"steps": 1}
    # The run trained nothing before its first window was sampled: there the ratio to its own sampler is 1.
    offline["trajectories"]["path"] = str(tmp_path / "first")
    for shard in shards(tmp_path / "first"):
        if first_step(shard) > 1:
            shard.unlink()
    offline["training"] |= {"prompts_per_step": 4}
    train(load_recipe(write_recipe(offline, "second")), tmp_path / "second")
    (metrics,) = [json.loads(line) for line in (tmp_path / "second" / "metrics.jsonl").read_text().splitlines()]
    assert metrics["trajectories/kl_k1"] == pytest.approx(0, abs=1e-5)
    table = tmp_path / "table.jsonl"
    table.write_text(json.dumps({"prompt": "1 + 1", "completion": "2", "reward": 1}) + "\n")
    offline["trajectories"] = {"path": str(table), "chat": True}
    with pytest.raises(DataError, match=r"trajectories\.0: .*holds texts without the logprobs"):
        train(load_recipe(write_recipe(offline, "third")), tmp_path / "third")


def test_another_tokenizer_is_refused_before_weights_are_loaded(
    offline: dict[str, Any], write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "first").mkdir()
    other = character_tokenizer()
    other.add_tokens(["<tool>"])
    TrajectoryStore(tmp_path / "first", 0, other).write(1, 0, [StepData([], [Played(conversation(), 0, [])])], [], [[]])
    monkeypatch.setattr("posttrain.trainer.setup.load_model", lambda *_: pytest.fail("the model was loaded"))
    loaded = load_recipe(write_recipe(offline))
    with pytest.raises(DataError, match="holds tokens of another tokenizer") as error:
        train(loaded, tmp_path / "run")
    assert str(error.value).startswith(f"{loaded.path}:")
    assert "trajectories.0: " in str(error.value)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"chat": True}, "chat: True does not apply to the rollouts of a run"),
        ({"columns": {"reward": "r"}}, "columns: .* does not apply to the rollouts of a run"),
        ({"revision": "main"}, "revision: 'main' applies to hub datasets"),
    ],
)
def test_settings_that_nothing_would_read_are_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    TrajectoryStore(tmp_path, 0, TOKENIZER).write(1, 0, [StepData([], [Played(conversation(), 0, [])])], [], [[]])
    with pytest.raises(DataError, match=message):
        load_source(SourceSettings(path=str(tmp_path), **settings), "trajectories")


def test_limit_counts_trajectories(tmp_path: Path) -> None:
    data = StepData([], [Played(conversation(prompt=f"{i % 2}"), i % 2, []) for i in range(6)])
    TrajectoryStore(tmp_path, 0, TOKENIZER).write(1, 0, [data], [], [[]])
    source = load_source(SourceSettings(path=str(tmp_path), limit=3), "trajectories")
    assert [len(example.outcomes) for example in source] == [2, 1]


@pytest.mark.parametrize("damage", [lambda whole: whole[:100], lambda whole: b"", lambda whole: whole[:-9] + b"x" * 9])
def test_a_damaged_shard_is_named(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = TrajectoryStore(tmp_path, 0, TOKENIZER).write(
        1, 0, [StepData([], [Played(conversation(), 0, [])])], [], [[]]
    )
    assert path is not None
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=r"step_1_rank_0.parquet: cannot be read as a shard of trajectories"):
        load_source(SourceSettings(path=str(tmp_path)), "trajectories")


def test_nothing_is_stored_where_the_recipe_says_none(
    online: dict[str, Any], write_recipe: WriteRecipe, tmp_path: Path
) -> None:
    online["tracking"] = {"trajectories": "none"}
    online["training"] |= {"steps": 1}
    train(load_recipe(write_recipe(online)), tmp_path / "run")
    assert not (tmp_path / "run" / "trajectories").exists()
    assert (tmp_path / "run" / "rollouts" / "step_1.jsonl").exists()


def test_groups_that_dynamic_sampling_replaced_are_stored(
    online: dict[str, Any], write_recipe: WriteRecipe, tmp_path: Path
) -> None:
    """An untrained policy solves nothing: every group ends alike, and is drawn again once."""
    online["rewards"] = [{"name": "reasoning_gym", "strict": True}]
    online["rollout"]["max_draws"] = 2
    online["training"] |= {"steps": 1}
    train(load_recipe(write_recipe(online)), tmp_path / "run")
    (metrics,) = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    stored = rows(tmp_path / "run")
    assert [row["dropped"] for row in stored] == [None] * 16 + ["alike"] * 4 * int(metrics["num_redrawn_groups"])
    assert metrics["num_redrawn_groups"] > 0
    assert len({(row["step"], row["group"], row["sample"]) for row in stored}) == len(stored)


def test_a_killed_and_resumed_run_stores_each_trajectory_once(
    online: dict[str, Any], write_recipe: WriteRecipe, tmp_path: Path
) -> None:
    """Windows of two steps, checkpoints every three: one lies inside a window, and shards are ahead of the other."""
    online["rollout"]["updates"] = 2
    online["training"] |= {"steps": 8, "prompts_per_step": 2}
    online["checkpoint"] = {"every_steps": 3}
    path, killed = write_recipe(online), tmp_path / "killed"
    Run(path, killed).kill_when((killed / "trajectories" / "step_5_rank_0.parquet").exists)
    for again in (Run(path, killed, "--resume"), Run(path, tmp_path / "whole")):
        again.finish()
    stored = [rows(tmp_path / name) for name in ("whole", "killed")]
    for row in (row for own in stored for row in own):
        del row["generation_seconds"], row["environment_seconds"], row["grading_seconds"]
    assert stored[0] == stored[1]
    keys = [(row["step"], row["group"], row["sample"]) for row in stored[1]]
    assert keys == [(step, group, sample) for step in range(1, 9) for group in range(2) for sample in range(4)]
