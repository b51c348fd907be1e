"""`posttrain record`: what an expert plays, as demonstrations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from posttrain.__main__ import app
from posttrain.data.sources import SourceSettings, load_source

ENVIRONMENT = """
from posttrain.environments import Observation, Step, told

ACTIONS = ("add", "skip")

class Count:
    capacity = 2
    async def reset(self, prompt, columns, seed):
        one = Episode(columns["seed"])
        tools = ({"type": "function", "function": {"name": "add"}},)
        opening = ({"role": "system", "content": "count"}, {"role": "user", "content": "0"})
        return Observation(opening, tools, ACTIONS), one
    def close(self): pass

class Episode:
    def __init__(self, goal): self.goal, self.count = goal, 0
    async def expert(self):
        return "add" if self.goal < 9 else None
    async def step(self, action):
        if self.goal == 7: raise OSError("gone")
        self.count += action == "add"
        done = self.count == self.goal
        return Step(Observation(told(str(self.count)), actions=ACTIONS), terminated=done, solved=done or None)
    async def close(self): pass

def counting(): return Count()
"""
RECIPE = """
model:
  config: {model_type: qwen3, hidden_size: 8, intermediate_size: 8, num_hidden_layers: 1, num_attention_heads: 1,
    num_key_value_heads: 1, head_dim: 8, max_position_embeddings: 128}
tokenizer: characters
algorithm: grpo
environment: counting
episode: {max_turns: 4}
prompts: {path: tasks, config: {seed: 2, size: 9}}
rewards: {name: regex_match, expression: a}
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "parts" / "environments").mkdir(parents=True)
    (tmp_path / "parts" / "environments" / "counting.py").write_text(ENVIRONMENT)
    monkeypatch.setenv("POSTTRAIN_PATH", str(tmp_path / "parts"))
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


def record(recipe: Path, *words: str) -> tuple[str, list[dict[str, Any]]]:
    output = recipe.with_name("demonstrations.jsonl")
    output.unlink(missing_ok=True)
    done = CliRunner().invoke(app, ["record", str(recipe), *words, "--output", str(output)], catch_exceptions=False)
    return done.output, [json.loads(line) for line in output.read_text().splitlines()]


def test_an_episode_is_a_row(recipe: Path) -> None:
    printed, rows = record(recipe, "--count", "8")
    assert printed.splitlines()[0] == "8 episodes, 3 solved: 3 rows"
    assert "3 not: not solved in 4 turns" in printed and "1 not: OSError: gone" in printed
    assert "1 not: the expert knows of no action" in printed
    assert [row["seed"] for row in rows] == [2, 3, 4]
    assert [message["content"] for message in rows[1]["prompt"]] == ["count", "0"]
    assert [message["content"] for message in rows[1]["completion"]] == ["add", "1", "add", "2", "add"]
    (first, *_) = load_source(SourceSettings(path=str(recipe.with_name("demonstrations.jsonl"))), "demonstrations")
    assert first.tools[0]["function"] == {"name": "add"}


def test_with_limited_history_a_turn_is_a_row(recipe: Path) -> None:
    printed, rows = record(recipe, "episode.history_turns=0", "--count", "1")
    assert printed.startswith("1 episodes, 1 solved: 2 rows")
    assert [[message["content"] for message in row["prompt"]] for row in rows] == [["count", "0"], ["count", "1"]]
    assert all([message["content"] for message in row["completion"]] == ["add"] for row in rows)


def test_some_turns_are_any_action(recipe: Path) -> None:
    noisy = ("episode.max_turns=30", "--count", "4", "--noise", "0.6")
    printed, rows = record(recipe, *noisy)
    assert printed.startswith("4 episodes, 4 solved: 4 rows")
    said = [[one["content"] for one in row["completion"] if one["role"] == "assistant"] for row in rows]
    assert [actions.count("add") for actions in said] == [2, 3, 4, 5]
    skipped = sum(actions.count("skip") for actions in said)
    assert 2 <= skipped <= 20  # 6 expected: of every action 0.3 skip, and 14 add
    assert record(recipe, *noisy)[1] == rows
    assert all("skip" not in json.dumps(row["completion"]) for row in record(recipe, "--count", "4")[1])


def test_noise_needs_actions(recipe: Path) -> None:
    from posttrain.errors import RecipeError

    parts = recipe.with_name("parts") / "environments" / "counting.py"
    parts.write_text(ENVIRONMENT.replace('("add", "skip")', "()"))
    with pytest.raises(RecipeError, match="'counting' lists no actions"):
        record(recipe, "--count", "4", "--noise", "1")


def test_nothing_solved_is_an_error(recipe: Path) -> None:
    from posttrain.errors import RecipeError

    with pytest.raises(RecipeError, match="no episode was solved"):
        record(recipe, "episode.max_turns=1", "--count", "1")
