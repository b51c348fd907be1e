"""Dialogues with a goal: held-out two-sided games of TextArena (arXiv 2504.11442); solved: the goal is reached."""

from __future__ import annotations

from typing import Any, Literal

from posttrain.config.schema import EpisodeSettings, Named, PartnerSettings, SourceSettings
from posttrain.evaluation.benchmark import Benchmark
from posttrain.reward import RewardSpec


def dialogue_goal(
    *,
    game: Literal["new_recruit", "truth_and_deception"] = "new_recruit",
    settings: dict[str, Any] | None = None,
    partner: str | None = None,
    partner_name: str | None = None,
    size: int = 100,
    seed: int = 1_000_000,
    max_turns: int = 10,
    temperature: float = 0.0,
    top_p: float = 1.0,
    max_tokens: int = 256,
) -> Benchmark:
    """Games `seed` to `seed` + `size` - 1, which training must not have played.

    settings: of the environment `game`, such as role and goal. partner: a model or endpoint that plays the other side
    in place of the game's script (partner_name: which of an endpoint's), at temperature 1 and with as many tokens.
    """
    other = None if partner is None else PartnerSettings(path=partner, name=partner_name, max_tokens=max_tokens)
    return Benchmark(
        name=f"dialogue_goal/{game}",
        source=SourceSettings(path="tasks", config={"size": size, "seed": seed}),
        rewards=(RewardSpec("episode_success"),),
        environment=Named(name=game, **(settings or {})),
        episode=EpisodeSettings(max_turns=max_turns),
        partner=other,
        temperature=temperature,
        top_p=top_p,
        max_tokens=max_tokens,
    )
