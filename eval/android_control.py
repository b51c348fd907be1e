"""AndroidControl (arXiv 2406.03679) as UI-S1's semi-online performance: how far a policy gets on its own history."""

from __future__ import annotations

from posttrain.config.schema import EpisodeSettings, Named, SourceSettings
from posttrain.evaluation.benchmark import Benchmark
from posttrain.reward import RewardSpec


def android_control(
    *,
    data: str,
    instructions: bool = True,
    history_turns: int | None = None,
    temperature: float = 0.0,
    top_p: float = 1.0,
    max_tokens: int = 512,
) -> Benchmark:
    """The recordings in `data` (.jsonl, a row an episode: goal, steps), in text; solved where every action is right.

    An episode ends at the first mistake (arXiv 2509.11543, app. A.3); PG, TSR and their mean stand beside the rate.
    Screens are pictures and are not shown: with `instructions` each step says what is to be done, else the goal alone.
    history_turns: how many of its turns the policy sees.
    """
    return Benchmark(
        name="android_control",
        source=SourceSettings(path=data, template="{goal}", chat=True),
        rewards=(RewardSpec("recorded_steps"),),
        environment=Named(name="semi_online", match="gui", patches=0, instructions=instructions),  # type: ignore[call-arg]
        episode=EpisodeSettings(history_turns=history_turns),
        temperature=temperature,
        top_p=top_p,
        max_tokens=max_tokens,
    )
