"""TextWorld (arXiv 1806.11532): held-out games of one family, made by seed; solved where the game is won."""

from __future__ import annotations

from typing import Any, Literal

from posttrain.config.schema import EpisodeSettings, Named, SourceSettings
from posttrain.environments.text_game import INSTRUCTIONS
from posttrain.evaluation.benchmark import Benchmark
from posttrain.reward import RewardSpec


def textworld(
    *,
    family: Literal["simple", "cooking", "coin_collector", "treasure_hunter", "custom"] = "simple",
    game: dict[str, Any] | None = None,
    grammar: dict[str, Any] | None = None,
    size: int = 100,
    seed: int = 1_000_000,
    show_actions: bool = False,
    instructions: str | None = INSTRUCTIONS,
    max_turns: int = 50,
    history_turns: int | None = None,
    listed_actions: bool = False,
    processes: int = 2,
    temperature: float = 0.0,
    top_p: float = 1.0,
    max_tokens: int = 32,
) -> Benchmark:
    """Games `seed` to `seed` + `size` - 1, which training must not have played; settings as those of `text_game`.

    max_turns, history_turns: as in a recipe's `episode`; listed_actions: as in its `rollout`.
    """
    environment: dict[str, Any] = {
        "family": family,
        "game": game or {},
        "grammar": grammar or {},
        "show_actions": show_actions,
        "instructions": instructions,
        "processes": processes,
    }
    return Benchmark(
        name=f"textworld/{family}",
        source=SourceSettings(path="tasks", config={"size": size, "seed": seed}),
        rewards=(RewardSpec("episode_success"),),
        environment=Named(name="text_game", **environment),
        episode=EpisodeSettings(max_turns=max_turns, history_turns=history_turns),
        listed_actions=listed_actions,
        temperature=temperature,
        top_p=top_p,
        max_tokens=max_tokens,
    )
