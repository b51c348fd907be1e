"""MiniWoB++ (arXiv 1802.08802) in a real Chromium: small web tasks by name and seed; solved where the page says so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from posttrain.config.schema import EpisodeSettings, Named, SourceSettings
from posttrain.environments.browser_view import View
from posttrain.evaluation.benchmark import Benchmark
from posttrain.reward import RewardSpec

TASKS = (
    "click-button",
    "click-button-sequence",
    "click-checkboxes",
    "click-dialog",
    "click-dialog-2",
    "click-option",
    "click-tab",
    "click-test",
    "click-widget",
    "enter-password",
    "enter-text",
    "enter-text-dynamic",
    "focus-text",
    "focus-text-2",
    "login-user",
)
"""Tasks that can be done by the ids of elements alone, nearly always: nothing covers them, and no picture is needed."""


def miniwob(
    *,
    tasks: Sequence[str] = TASKS,
    seeds_per_task: int = 20,
    seed: int = 1_000_000,
    view: View = "tree",
    reload_pages: bool = True,
    max_turns: int = 10,
    history_turns: int | None = None,
    processes: int = 2,
    episodes_per_process: int = 16,
    max_tokens: int = 256,
    temperature: float = 0.0,
    top_p: float = 1.0,
) -> Benchmark:
    """Each of `tasks` with seeds `seed`, seed + 1 and so on, which training must not have seen; a rate for each task.

    view, reload_pages, processes, episodes_per_process: as the environment's (`environments.browser`). max_turns,
    history_turns: as in `episode` of a recipe. max_tokens: of one turn.
    """
    environment: dict[str, Any] = {
        "view": view,
        "reload_pages": reload_pages,
        "processes": processes,
        "episodes_per_process": episodes_per_process,
    }
    return Benchmark(
        name="miniwob",
        source=SourceSettings(
            path="tasks", config={"task": [*tasks], "seed": seed, "size": len(tasks) * seeds_per_task}
        ),
        rewards=(RewardSpec("episode_success"),),
        environment=Named(name="browser", **environment),
        episode=EpisodeSettings(max_turns=max_turns, history_turns=history_turns),
        by="task",
        temperature=temperature,
        top_p=top_p,
        max_tokens=max_tokens,
    )
