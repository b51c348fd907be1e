"""Play a recipe's episodes and print them, without training."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.markup import escape

from posttrain.config import Recipe
from posttrain.errors import RecipeError
from posttrain.trajectory import Prompt, Trajectory


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
                console.print(_shown(trajectory), soft_wrap=True)


def _shown(trajectory: Trajectory) -> str:
    rewards = ", ".join(f"{name} {_number(value)}" for name, value in trajectory.rewards.items())
    head = f"[bold]{escape(trajectory.prompt_id)}[/bold]  reward {_number(trajectory.reward)} ({escape(rewards)})"
    tail = f"[dim]{trajectory.num_completion_tokens} tokens, stopped by {trajectory.stop_reason}[/dim]"
    failure = f"\n[red]{escape(trajectory.error)}[/red]" if trajectory.error else ""
    turns = "\n".join(f"[green]{escape(turn.text)}[/green]" for turn in trajectory.turns)
    return f"{head}\n{escape(_text(trajectory.prompt))}\n{turns}\n{tail}{failure}\n"


def _text(prompt: Prompt) -> str:
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{message['role']}: {message['content']}" for message in prompt)


def _number(value: float | None) -> str:
    return "ungraded" if value is None else f"{value:g}"
