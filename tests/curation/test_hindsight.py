"""Dialogues played again from a better line: prefixes, proposals, rewards, and what offline RL reads of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from posttrain.__main__ import app
from posttrain.config import load_recipe
from posttrain.config.schema import SourceSettings
from posttrain.curation.hindsight import ModelController, Place, regenerate
from posttrain.data.sources import load_source
from posttrain.errors import RecipeError
from tests.tiny import tiny_model

ENVIRONMENT = """
from posttrain.environments import Observation, Step, told

class Talk:
    capacity = None
    async def reset(self, prompt, columns, seed):
        return Observation(told("Begin.")), Episode(columns["seed"])
    def close(self): pass

class Episode:
    def __init__(self, seed): self.seed, self.said = seed, []
    async def step(self, action):
        if self.seed == 2: raise OSError("gone")
        self.said.append(action)
        return Step(Observation(told(f"{self.seed}: {len(self.said)}")), float(action == "yes"),
                    terminated=len(self.said) == 3, solved="yes" in self.said if len(self.said) == 3 else None)
    async def close(self): pass

def talk(): return Talk()
"""
REWARD = """
def earned(environment_rewards):
    \"\"\"What the turns earned.\"\"\"
    return sum(environment_rewards)
"""
RECIPE = """
model: MODEL
algorithm: rloo
environment: talk
episode: {max_turns: 5}
prompts: {path: tasks, config: {seed: 0, size: 4}}
rewards: earned
rollout: {max_tokens: 3, dtype: float32, reward_workers: 1, group_size: 2}
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made, tokenizer = tiny_model(max_position_embeddings=2048)
    folder = tmp_path_factory.mktemp("model")
    made.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def recipe(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in (("environments/talk.py", ENVIRONMENT), ("rewards/earned.py", REWARD)):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text)
    monkeypatch.setenv("POSTTRAIN_PATH", str(tmp_path))
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.replace("MODEL", str(model)))
    return path


class Yes:
    """Says yes wherever it is asked, but for the dialogue of seed 3."""

    def __init__(self) -> None:
        self.places: list[Place] = []

    def propose(self, places: Sequence[Place]) -> list[str | None]:
        self.places += places
        return [None if dialogue.example.columns["seed"] == 3 else "yes" for dialogue, _ in places]


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_dialogues_go_on_from_the_proposal(recipe: Path, tmp_path: Path) -> None:
    output, controller = tmp_path / "dialogues.jsonl", Yes()
    found = regenerate(load_recipe(recipe).recipe, 4, output, controller, turns=2)
    assert (found.rows, found.num_regenerated) == (3 + 4, 4)  # seed 2 fails, seed 3 has no proposal
    assert (found.played, found.share_better) == (0.0, 1.0) and found.regenerated == 1.0
    assert [len(dialogue.lines) for dialogue, _ in controller.places] == [3] * 6
    rows = rows_of(output)
    played = {row["seed"]: row for row in rows if row["regenerated"] is None}
    assert set(played) == {0, 1, 3}
    for row in rows[3:]:
        before, after, turn = played[row["seed"]]["completion"], row["completion"], row["regenerated"]
        assert [one["role"] for one in after] == ["assistant", "user", "assistant", "user", "assistant"]
        assert after[: 2 * turn] == before[: 2 * turn] and after[2 * turn]["content"] == "yes"
        assert after[1]["content"] == f"{row['seed']}: 1" and row["prompt"] == [{"role": "user", "content": "Begin."}]
        assert (row["reward"], row["solved"]) == (1.0, True)


def test_offline_rl_reads_one_example_a_task(recipe: Path, tmp_path: Path) -> None:
    output = tmp_path / "dialogues.jsonl"
    regenerate(load_recipe(recipe).recipe, 4, output, Yes())
    examples = load_source(SourceSettings(path=str(output)), "trajectories")
    assert sorted(len(one.outcomes) for one in examples) == [1, 2, 2]
    assert {outcome.reward for one in examples for outcome in one.outcomes} == {0.0, 1.0}


def test_the_command_asks_a_model(recipe: Path, model: Path, tmp_path: Path) -> None:
    output = tmp_path / "dialogues.jsonl"
    told = ["regenerate", str(recipe), str(output), "--controller", str(model), "--count", "2", "--max-tokens", "400"]
    result = CliRunner().invoke(app, [*told, "--temperature", "0.3"])
    assert result.exit_code == 0, result.output
    assert "reward 0.000 as played" in result.output and len(rows_of(output)) >= 3
    short = ModelController(str(model), max_tokens=1)
    with pytest.raises(RecipeError, match=r"nothing was regenerated: 2 dialogues, 0 proposals"):
        regenerate(load_recipe(recipe).recipe, 2, tmp_path / "none.jsonl", short)


def test_a_model_is_shown_the_end(recipe: Path, tmp_path: Path) -> None:
    controller = Yes()
    regenerate(load_recipe(recipe).recipe, 1, tmp_path / "dialogues.jsonl", controller)
    dialogue, turn = controller.places[0]
    prompt = ModelController("x").prompt(dialogue, turn)
    assert not isinstance(prompt, str)
    (asked,) = prompt
    assert all(f"assistant: {line}" in asked["content"] for line in dialogue.lines)
    assert "user: 0: 2" in asked["content"] and "a score of 0.0" in asked["content"]
    assert f"line number {turn + 1} the assistant said:\n{dialogue.lines[turn]}\n" in asked["content"]


def test_it_repeats(recipe: Path, tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        regenerate(load_recipe(recipe).recipe, 3, tmp_path / name, Yes())
    assert rows_of(tmp_path / "a.jsonl") == rows_of(tmp_path / "b.jsonl")
