"""`posttrain record`: demonstrations by an environment's own expert, on the tasks of a recipe, without a model."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.config import Recipe
from posttrain.config.schema import EpisodeSettings
from posttrain.curation.written import check_output, write_rows
from posttrain.data.examples import Example
from posttrain.data.sources import load_source
from posttrain.environments import Environment, Guided, Observation
from posttrain.errors import PosttrainError, RecipeError
from posttrain.evaluation.partner import make_environment
from posttrain.rollout.conversation import Conversation
from posttrain.rollout.episode import messages_of
from posttrain.rollout.seeds import derived_seed


@dataclass(frozen=True)
class Recorded:
    """Numbers of episodes played, of rows written, and of episodes left out, by reason."""

    episodes: int
    rows: int
    left_out: Counter[str]

    def text(self) -> str:
        """In words, a line a reason."""
        first = f"{self.episodes:,} episodes, {self.episodes - self.left_out.total():,} solved: {self.rows:,} rows"
        return "\n".join([first, *(f"  {count:,} not: {why}" for why, count in self.left_out.most_common())])


def record(recipe: Recipe, count: int, output: Path, noise: float = 0.0) -> Recorded:
    """Have the expert play the first `count` prompts of `recipe`, and write what it solved as demonstrations.

    A row is an episode: `prompt` and `completion`, messages, with `tools` where there are some, and the columns of the
    task. Where the recipe limits what the policy sees of its history (`episode.history_turns`), a row is a turn, with
    what the policy would see then. noise: the probability that a turn is one of the actions that the environment lists,
    by chance, instead of the expert's, who goes on from wherever that leads. RecipeError where the recipe has no
    prompts, the environment no expert, or, with noise, lists no actions.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    check_output(output)
    if not recipe.prompts:
        raise RecipeError("prompts: not set; the tasks that an expert is to play are read from there")
    tasks = [example for source in recipe.prompts for example in load_source(source, "prompts")[:count]][:count]
    environment = make_environment(recipe.environment, recipe.partner, None)
    with closing(environment):
        played = asyncio.run(_play(environment, tasks, recipe, noise))
    rows = [row for own in played if isinstance(own, list) for row in own]
    left_out = Counter(own for own in played if isinstance(own, str))
    if not rows:
        raise RecipeError(f"environment {recipe.environment.name!r}: no episode was solved: {dict(left_out)}")
    write_rows(output, rows)
    return Recorded(len(played), len(rows), left_out)


async def _play(
    environment: Environment, tasks: Sequence[Example], recipe: Recipe, noise: float
) -> list[list[dict[str, Any]] | str]:
    room = asyncio.Semaphore(environment.capacity or len(tasks))

    async def one(example: Example) -> list[dict[str, Any]] | str:
        async with room:
            try:
                return await _episode(environment, example, recipe, noise)
            except PosttrainError:
                raise
            except Exception as error:  # the environment's code is not ours: its failure is counted
                return f"{type(error).__name__}: {error}"

    return await asyncio.gather(*map(one, tasks))


async def _episode(
    environment: Environment, example: Example, recipe: Recipe, noise: float
) -> list[dict[str, Any]] | str:
    """The rows of an episode; or why it was not solved."""
    limits: EpisodeSettings = recipe.episode
    seed = derived_seed(recipe.seed, example.id, 0)
    chance = random.Random(seed)
    opening, episode = await environment.reset(example.prompt, example.columns, seed)
    try:
        if not isinstance(episode, Guided):
            raise RecipeError(f"environment {recipe.environment.name!r} knows of no expert; allowed: one that does")
        conversation = Conversation(example.prompt, limits.history_turns)
        conversation.start(opening)
        observation = opening
        seen: list[tuple[Any, str]] = []
        for _ in range(limits.max_turns):
            stray = chance.random() < noise
            action = _any_of(observation, recipe, chance) if stray else await episode.expert()
            if action is None:
                return "the expert knows of no action"
            seen.append((conversation.messages, action))
            step = await episode.step(action)
            if step.invalid is not None:
                return f"the action {action!r} is invalid: {step.invalid}"
            if step.terminated or step.truncated:
                break
            conversation.add(action, messages_of(step))
            observation = step.observation
        if not step.solved:
            return f"not solved in {len(seen)} turns"
    finally:
        await episode.close()
    tools: dict[str, Any] = {"tools": [dict(tool) for tool in opening.tools]} if opening.tools else {}
    columns = {name: value for name, value in example.columns.items() if name != "prompt"} | tools
    if limits.history_turns is not None:
        return [demonstration_row(messages, (said(action),), columns) for messages, action in seen]
    (first, _), (last, action) = seen[0], seen[-1]
    return [demonstration_row(first, (*last[len(first) :], said(action)), columns)]


def _any_of(observation: Observation, recipe: Recipe, chance: random.Random) -> str:
    """One of the actions that the environment lists."""
    if not observation.actions:
        raise RecipeError(f"environment {recipe.environment.name!r} lists no actions; noise is drawn from such a list")
    return chance.choice(observation.actions)


def said(action: str) -> dict[str, Any]:
    """An action as a message."""
    return {"role": "assistant", "content": action}


def demonstration_row(prompt: Sequence[Any], completion: Sequence[Any], columns: dict[str, Any]) -> dict[str, Any]:
    """A row of a file of demonstrations: prompt, completion, and the task's columns."""
    messages = {"prompt": [dict(one) for one in prompt], "completion": [dict(one) for one in completion]}
    return messages | columns
