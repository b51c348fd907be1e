"""`posttrain regenerate`: finished dialogues, and what would have come of a better line somewhere in them.

Hindsight regenerations (arXiv 2411.05194; a reconstruction, the paper's prompts are not public): a controller that has
read a finished dialogue to its end proposes another line for one place; the dialogue is played again up to there, goes
on from the proposal with the same policy and the same other side, and is graded like the first. Both are recorded
trajectories for offline RL (`algorithms.ilql`).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Protocol

from posttrain import catalog
from posttrain.config import Recipe
from posttrain.curation.dialogues import Dialogue, Player
from posttrain.curation.written import check_output, write_rows
from posttrain.data.examples import Example
from posttrain.data.sources import load_source
from posttrain.errors import RecipeError
from posttrain.evaluation.model import NamedModel, open_model
from posttrain.rollout.collector import Collector
from posttrain.rollout.engine import Sampling
from posttrain.trajectory import Prompt, StopReason

TEMPLATE = Path(__file__).with_name("hindsight.txt")
Place = tuple[Dialogue, int]
"""A finished dialogue and the number of one of its lines."""


class Controller(Protocol):
    """Knows better afterwards."""

    def propose(self, places: Sequence[Place]) -> list[str | None]:
        """A better line for each place; None where it has none."""
        ...


@dataclass(frozen=True)
class ModelController:
    """A model that is shown the whole dialogue. template: a file with {dialogue}, {reward}, {turn} and {line}."""

    model: str
    template: Path = TEMPLATE
    temperature: float = 0.7
    max_tokens: int = 256
    seed: int = 0

    def propose(self, places: Sequence[Place]) -> list[str | None]:
        """One sampled answer to each; None where it was cut off, failed or is empty."""
        named = NamedModel(self.model)
        named.check()
        opened = open_model(named)
        sampling = Sampling(self.max_tokens, opened.stop_ids, self.temperature)
        environment = catalog.build("environments", "single_turn", {})
        collector = Collector(opened.engine, environment, None, opened.tokenizer, sampling)
        examples = [Example(str(number), self.prompt(*place)) for number, place in enumerate(places)]
        answers = [group.trajectories[0] for group in collector.collect(examples, 1, self.seed)]
        return [one.completion.strip() or None if one.stop_reason is StopReason.STOP else None for one in answers]

    def prompt(self, dialogue: Dialogue, turn: int) -> Prompt:
        """What the model is asked."""
        told = [*dialogue.opening, *dialogue.completion]
        said = "\n".join(f"{message['role']}: {message['content']}" for message in told)
        values = {"dialogue": said, "reward": dialogue.reward, "turn": turn + 1, "line": dialogue.lines[turn]}
        return ({"role": "user", "content": self.template.read_text(encoding="utf-8").format(**values)},)


@dataclass(frozen=True)
class Regenerated:
    """Mean rewards of all dialogues as played and of the regenerated ones, what share of these is better; and rows."""

    played: float
    regenerated: float
    share_better: float
    num_regenerated: int
    rows: int

    def text(self) -> str:
        """In words."""
        return (
            f"{self.rows:,} dialogues: reward {self.played:.3f} as played; {self.num_regenerated:,} regenerated from "
            f"another line: {self.regenerated:.3f}, better in {self.share_better:.0%}"
        )


def regenerate(recipe: Recipe, count: int, output: Path, controller: Controller, *, turns: int = 1) -> Regenerated:
    """Play the first `count` prompts of `recipe` with its model, and each again from `turns` of its lines.

    Lines are drawn by the recipe's seed; one without a proposal is left as it is. A row: prompt, completion (messages),
    reward, solved, prompt_id, stop_reason, regenerated (the number of the proposed line; null: as played) and the
    task's columns; what failed is left out. RecipeError where the recipe has no prompts, rewards, or model with
    weights, or nothing was regenerated.
    """
    check_output(output)
    if not recipe.prompts:
        raise RecipeError("prompts: not set; the tasks to be played are read from there")
    tasks = [example for source in recipe.prompts for example in load_source(source, "prompts")[:count]][:count]
    with Player(recipe) as player:
        played = [one for one in player.play(tasks, [()] * len(tasks)) if one is not None]
        places = _places(played, turns, recipe.seed)
        proposed = [
            (*place, line) for place, line in zip(places, controller.propose(places), strict=True) if line is not None
        ]
        lines = [(*one.lines[:turn], line) for one, turn, line in proposed]
        again = player.play([one.example for one, _, _ in proposed], lines, first_sample=1)
    pairs = [(one, turn, after) for (one, turn, _), after in zip(proposed, again, strict=True) if after is not None]
    if not pairs:
        raise RecipeError(f"nothing was regenerated: {len(played)} dialogues, {len(proposed)} proposals")
    rows = [one.row(regenerated=None) for one in played] + [after.row(regenerated=turn) for _, turn, after in pairs]
    write_rows(output, rows)
    return Regenerated(
        fmean(one.reward for one in played),
        fmean(after.reward for _, _, after in pairs),
        fmean(after.reward > one.reward for one, _, after in pairs),
        len(pairs),
        len(rows),
    )


def _places(played: Sequence[Dialogue], turns: int, seed: int) -> list[Place]:
    """Up to `turns` lines of each dialogue, drawn."""
    draws = random.Random(seed)
    chosen = [sorted(draws.sample(range(len(one.lines)), min(turns, len(one.lines)))) for one in played]
    return [(one, turn) for one, own in zip(played, chosen, strict=True) for turn in own]
