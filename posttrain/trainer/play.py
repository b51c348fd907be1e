"""Play a recipe's episodes and print them, without training: what was said by whom, and what each turn earned."""

from __future__ import annotations

from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from posttrain.config import Recipe
from posttrain.errors import RecipeError
from posttrain.picture import in_words
from posttrain.trainer.traces import answer
from posttrain.trajectory import EpisodeEnd, Prompt, Trajectory, Turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ENDS = {
    EpisodeEnd.TERMINATED: "the environment ended it",
    EpisodeEnd.TRUNCATED: "the environment cut it off",
    EpisodeEnd.TURNS: "out of turns",
    EpisodeEnd.TOKENS: "out of tokens",
    EpisodeEnd.SECONDS: "out of time",
    EpisodeEnd.INVALID: "an action that could not be carried out ended it",
    EpisodeEnd.ERROR: "failed",
}
_OUTCOMES = {True: "solved", False: "not solved"}


def play(recipe: Recipe, count: int) -> None:
    """Sample `count` episodes of the recipe's starting model and print them with their rewards."""
    from posttrain.trainer.setup import build

    console = Console(highlight=False)
    with ExitStack() as stack, TemporaryDirectory() as scratch:
        loop = build(recipe, Path(scratch), stack, say=lambda line: None)
        if loop.collector is None or loop.builder.prompts is None:
            raise RecipeError(f"algorithm {recipe.algorithm.name} samples nothing: there are no episodes to play")
        for group in loop.collector.collect(loop.builder.prompts.take(count), 1, recipe.seed):
            for trajectory in group.trajectories:
                console.print(episode_text(trajectory, loop.tokenizer), soft_wrap=True)


def episode_text(trajectory: Trajectory, tokenizer: PreTrainedTokenizerBase) -> str:
    """One episode as rich markup: its rewards, the prompt, each turn with the answer to it, and how it ended."""
    rewards = ", ".join(f"{name} {_number(value)}" for name, value in trajectory.rewards.items())
    head = f"[bold]{escape(trajectory.prompt_id)}[/bold]  reward {_number(trajectory.reward)} ({escape(rewards)})"
    turns = trajectory.turns
    answers = [answer(before, after, tokenizer) for before, after in pairwise(turns)]
    several = len(turns) > 1
    lines = [head, escape(_text(trajectory.prompt))]
    for number, turn in enumerate(turns, start=1):
        lines += [f"[dim]{_label(number, turn)}[/dim]"] if several else []
        lines.append(f"[green]{escape(turn.text)}[/green]")
        lines += [escape(answers[number - 1])] if number < len(turns) else []
    lines.append(f"[dim]{_tail(trajectory)}[/dim]")
    lines += [f"[red]{escape(trajectory.error)}[/red]"] if trajectory.error else []
    return "\n".join(lines) + "\n"


def _label(number: int, turn: Turn) -> str:
    earned = "" if turn.reward is None else f"  reward {turn.reward:g}"
    invalid = f"  invalid: {escape(turn.invalid)}" if turn.invalid is not None else ""
    masked = "  (not trained on)" if turn.masked else ""
    return f"turn {number}{earned}{invalid}{masked}"


def _tail(trajectory: Trajectory) -> str:
    """How long it was, and how it ended."""
    num_turns = len(trajectory.turns)
    said = f"{trajectory.num_completion_tokens} tokens, stopped by {trajectory.stop_reason}"
    if num_turns > 1 or trajectory.outcome is not None:
        invalid = f", {trajectory.num_invalid} invalid" if trajectory.num_invalid else ""
        said = f"{num_turns} turns{invalid}, {said}"
    if trajectory.end is not None and (num_turns > 1 or trajectory.outcome is not None):
        outcome = "" if trajectory.outcome is None else f": {_OUTCOMES[trajectory.outcome]}"
        said += f"; {_ENDS[trajectory.end]}{outcome}"
    return said


def _text(prompt: Prompt) -> str:
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{message['role']}: {in_words(message['content'])}" for message in prompt)


def _number(value: float | None) -> str:
    return "ungraded" if value is None else f"{value:g}"
