"""`posttrain explore`: on a chain where a random action hardly ever leads on, a demonstration's workflow does."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from typer.testing import CliRunner

from posttrain.__main__ import app
from posttrain.curation.explore import CONSTRAINTS, Workflow, WorkflowPolicy, features
from posttrain.errors import RecipeError

ENVIRONMENT = """
from posttrain.environments import Observation, Step, told

VERBS = ("find", "clean", "lift", "sell")
THINGS = ("key", "lamp", "coin", "rope")
ACTIONS = tuple(f"{verb} {thing}" for verb in VERBS for thing in THINGS)

class Chain:
    capacity = None
    def __init__(self, listed): self.actions = ACTIONS if listed else ()
    async def reset(self, prompt, columns, seed):
        thing = THINGS[columns["seed"] % 4]
        return Observation(told(f"Get rid of the {thing}."), actions=self.actions), Episode(thing, self.actions)
    def close(self): pass

class Episode:
    def __init__(self, thing, actions): self.thing, self.actions, self.done = thing, actions, 0
    async def step(self, action):
        right = action == f"{VERBS[self.done]} {self.thing}"
        self.done += right
        end = not right or self.done == len(VERBS)
        return Step(Observation(told("Good."), actions=self.actions), terminated=end, solved=right if end else None)
    async def close(self): pass

def chain(*, listed: bool = True): return Chain(listed)
"""
RECIPE = """
model:
  config: {model_type: qwen3, hidden_size: 8, intermediate_size: 8, num_hidden_layers: 1, num_attention_heads: 1,
    num_key_value_heads: 1, head_dim: 8, max_position_embeddings: 128}
tokenizer: characters
algorithm: grpo
environment: chain
prompts: {path: tasks, config: {seed: 1, size: 3}}
rewards: {name: regex_match, expression: a}
episode: {max_turns: 4}
"""
VERBS, THINGS = ("find", "clean", "lift", "sell"), ("key", "lamp", "coin", "rope")


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "parts" / "environments").mkdir(parents=True)
    (tmp_path / "parts" / "environments" / "chain.py").write_text(ENVIRONMENT)
    monkeypatch.setenv("POSTTRAIN_PATH", str(tmp_path / "parts"))
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    said = [{"role": "assistant", "content": f"{verb} key"} for verb in VERBS]
    heard = [{"role": "user", "content": "Good."}] * 4
    completion = [message for pair in zip(said, heard, strict=True) for message in pair][:-1]
    row = {"prompt": [{"role": "user", "content": "Get rid of the key."}], "completion": completion}
    (tmp_path / "shown.jsonl").write_text(json.dumps(row))
    return path


def run(recipe: Path, *words: str) -> str:
    files = ["--demonstrations", str(recipe.with_name("shown.jsonl")), "--output", str(recipe.with_name("found.jsonl"))]
    return CliRunner().invoke(app, ["explore", str(recipe), *words, *files], catch_exceptions=False).output


def test_a_demonstration_of_one_task_solves_the_others(recipe: Path) -> None:
    """Random actions solve one episode in 65,536; the key's demonstration says how lamp, coin and rope are done."""
    numbers = [int(word.replace(",", "")) for word in run(recipe, "--count", "900").split() if word[0].isdigit()]
    assert numbers[0] == 900
    assert numbers[1] >= 200
    rows = [json.loads(line) for line in recipe.with_name("found.jsonl").read_text().splitlines()]
    assert sorted(row["seed"] for row in rows) == [1, 2, 3]  # each once
    for row in rows:
        thing = THINGS[row["seed"]]
        assert row["prompt"] == [{"role": "user", "content": f"Get rid of the {thing}."}]
        assert [one["content"] for one in row["completion"][::2]] == [f"{verb} {thing}" for verb in VERBS]


def test_an_environment_without_listed_actions_is_refused(recipe: Path) -> None:
    with pytest.raises(RecipeError, match="lists no actions"):
        run(recipe, "environment={name: chain, listed: false}", "--count", "3")


def test_the_lattice() -> None:
    goal = "Take the key."
    assert features("take key", goal) == {"verb": "take", "length": 1, "in_goal": 1, "text": "take key"}
    workflow = Workflow((features("take key", goal),))
    actions = ["take key", "take lamp", "drop key", "look"]
    assert workflow.allowed(0, (), actions, goal) == actions
    assert workflow.allowed(0, ("verb",), actions, goal) == ["take key", "take lamp"]
    assert workflow.allowed(0, ("in_goal",), actions, goal) == ["take key", "drop key"]
    assert workflow.allowed(0, ("verb", "in_goal"), actions, "Take the lamp.") == ["take lamp"]
    assert workflow.allowed(0, ("text",), actions, "Take the lamp.") == ["take key"]
    assert len(set(CONSTRAINTS)) == 9


def test_the_policy_climbs_its_expected_reward() -> None:
    """A step's mean update is rate times the gradient of E[R], by finite differences."""
    draw, size = random.Random(0), len(CONSTRAINTS)
    rewards = [draw.random() for _ in range(size)]
    scores = [draw.gauss(0, 1) for _ in range(size)]

    def expected(values: list[float]) -> float:
        policy = WorkflowPolicy(psi={(0, 0): values})
        return sum(p * r for p, r in zip(policy.probabilities(0, 0), rewards, strict=True))

    moved = [0.0] * size
    for constraint, probability in enumerate(WorkflowPolicy(psi={(0, 0): scores}).probabilities(0, 0)):
        policy = WorkflowPolicy(baseline=0.3, psi={(0, 0): list(scores)})
        policy.update(0, [constraint], rewards[constraint])
        moved = [m + probability * (new - old) for m, new, old in zip(moved, policy.psi[0, 0], scores, strict=True)]
    for index in range(size):
        up, down = ([s + h * (i == index) for i, s in enumerate(scores)] for h in (1e-5, -1e-5))
        assert moved[index] == pytest.approx(0.8 * (expected(up) - expected(down)) / 2e-5, rel=1e-6, abs=1e-9)
