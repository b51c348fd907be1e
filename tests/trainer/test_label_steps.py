"""Monte-Carlo labels: of a policy whose continuations are known, the labels are their pass rates."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from posttrain.__main__ import app
from posttrain.config import load_recipe
from posttrain.config.schema import SourceSettings
from posttrain.data.labels import steps_of
from posttrain.data.sources import load_source
from posttrain.errors import RecipeError
from posttrain.trainer.label_steps import label_steps

_REWARD = '''
"""Solved where the completion's first character comes before its last."""

def first_before_last(completion: str) -> float:
    """1.0 or 0.0."""
    return float(bool(completion) and completion[0] < completion[-1])
'''


@pytest.fixture
def overrides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """GRPO on sums with the tiny random policy, whose spaces end steps."""
    (tmp_path / "rewards").mkdir()
    (tmp_path / "rewards" / "first_before_last.py").write_text(_REWARD)
    monkeypatch.setenv("POSTTRAIN_PATH", str(tmp_path))
    return ["rewards=[first_before_last]", "rollout.group_size=4", "rollout.max_tokens=6"]


def test_labels_are_pass_rates_of_continuations(overrides: list[str], tmp_path: Path) -> None:
    """An untrained policy writes any character alike, so a digit or letter is often passed, and a z-like one hardly."""
    output = tmp_path / "steps.jsonl"
    separators = "5"
    found = label_steps(load_recipe("tiny/grpo", overrides).recipe, output, count=12, samples=16, separator=separators)
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert found.completions == len(rows) <= 48
    assert found.steps == sum(len(row["labels"]) for row in rows)
    several = [row for row in rows if len(row["completions"]) > 1]
    assert several
    for row in rows:
        text = "".join(row["completions"])
        assert tuple(row["completions"]) == steps_of(text, separators)
        assert row["labels"][-1] == float(row["solved"]) == float(text[0] < text[-1])
        assert all(label is None or (16 * label) % 1 == 0 for label in row["labels"][:-1])
        assert row["prompt"][0]["role"] == "user"
    early = [row for row in several if row["completions"][0][0] < "5"]
    late = [row for row in several if row["completions"][0][0] > "x"]
    assert all(row["labels"][0] > 0.4 for row in early)
    assert all(row["labels"][0] < 0.4 for row in late)
    examples = load_source(SourceSettings(path=str(output)), "steps")
    assert examples[0].outcomes[0].steps


def test_by_command_hard(overrides: list[str], tmp_path: Path) -> None:
    output = tmp_path / "steps.jsonl"
    command = ["label-steps", "tiny/grpo", str(output), *overrides, "--count", "3", "--samples", "2", "--hard"]
    result = CliRunner().invoke(app, [*command, "--separator", "5"])
    assert result.exception is None, result.output
    assert "mean label" in result.output
    labels = [label for line in output.read_text().splitlines() for label in json.loads(line)["labels"]]
    assert set(labels) <= {0.0, 1.0, None}


def test_a_recipe_that_samples_nothing(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="samples or grades nothing"):
        label_steps(load_recipe("tiny/sft").recipe, tmp_path / "s.jsonl", count=2)
