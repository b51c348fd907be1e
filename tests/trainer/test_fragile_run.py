"""A run whose environment fails on every fifth task: it goes on, and counts exactly what failed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.trainer.processes import Run, metrics

FRAGILE = '''
from posttrain.environments import Environment
from posttrain.environments.processes import InProcesses

def fragile() -> Environment:
    """Fails where the row says so."""
    return InProcesses(make="tests.environments.playable:Fragile", settings={}, processes=2, episodes_per_process=1)
'''


def test_failures_at_a_fifth_leave_the_run_going_with_exact_counts(
    tiny_recipe: dict[str, Any], write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "environments").mkdir()
    (tmp_path / "environments" / "fragile.py").write_text(FRAGILE)
    del tiny_recipe["demonstrations"]
    tasks = ["fine", "fine", "broken", "fine", "fine"]
    recipe = write_recipe(
        tiny_recipe
        | {
            "algorithm": {"name": "grpo", "kl_weight": 0.0},
            "prompts": {"path": "tasks", "config": {"size": 20, "task": tasks}},
            "environment": {"name": "fragile"},
            "rewards": "episode_success",
            "rollout": {"group_size": 3, "max_tokens": 2, "dtype": "float32", "reward_workers": 1},
            "training": {"steps": 2, "prompts_per_step": 10, "learning_rate": 1e-3},
            "checkpoint": {"every_steps": 0},
        }
    )
    run = Run(recipe, tmp_path / "run", environment={"POSTTRAIN_PATH": str(tmp_path)})
    run.finish()
    rows = metrics(run.output)
    assert [row["num_graded"] + row["num_ungraded"] for row in rows] == [30, 30]
    assert sum(row["num_ungraded"] for row in rows) == 12, "the three rollouts of each of four tasks"
    page = (run.output / "report.html").read_text()
    assert "IndexError: pop from empty list" in page
    assert "ended with status 7" in page
