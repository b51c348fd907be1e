"""`posttrain explore`: workflow-guided exploration (arXiv 1802.08802), which finds demonstrations where luck would not.

A demonstration's actions are blurred into constraints, such as "an action with this verb whose argument stands in the
goal"; episodes take random actions among those that satisfy one constraint a step; which constraints succeed is learnt.
"""

from __future__ import annotations

import asyncio
import math
import random
import re
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

from posttrain.config import Recipe
from posttrain.config.schema import SourceSettings
from posttrain.curation.record import demonstration_row, said
from posttrain.curation.written import check_output, write_rows
from posttrain.data.examples import Example
from posttrain.data.sources import load_source
from posttrain.environments import Environment, told
from posttrain.errors import DataError, RecipeError
from posttrain.evaluation.partner import make_environment
from posttrain.rollout.episode import messages_of
from posttrain.rollout.seeds import derived_seed
from posttrain.trajectory import Prompt

FEATURES = ("verb", "length", "in_goal")
"""What of an action's words may be kept: the first; how many there are; how many of the others the goal has."""
CONSTRAINTS = (*(kept for size in range(4) for kept in combinations(FEATURES, size)), ("text",))
"""The lattice, from any action to the demonstrated one itself."""

_WORD = re.compile(r"\w+")


def features(action: str, goal: str) -> dict[str, Any]:
    """An action's features in a task whose goal is a text."""
    verb, *others = _WORD.findall(action.lower()) or [""]
    known = set(_WORD.findall(goal.lower()))
    shared = sum(word in known for word in others)
    return {"verb": verb, "length": len(others), "in_goal": shared, "text": action}


@dataclass(frozen=True)
class Workflow:
    """A demonstration as the features of its steps."""

    steps: tuple[Mapping[str, Any], ...]

    def allowed(self, step: int, kept: Sequence[str], actions: Sequence[str], goal: str) -> list[str]:
        """Those of `actions` that agree with the demonstration's in the features `kept`."""
        wanted = self.steps[step]
        own = [(action, features(action, goal)) for action in actions]
        return [action for action, found in own if all(found[name] == wanted[name] for name in kept)]


@dataclass
class WorkflowPolicy:
    """pi(z | d, t) = softmax(psi[d, t])_z over `CONSTRAINTS`, trained by REINFORCE (arXiv 1802.08802, sec. 4.2).

    rate: of learning; baseline: of the rewards' moving average, from which an episode's is told apart (0.8 and 0.1 in
    the authors' code).
    """

    rate: float = 0.8
    baseline_rate: float = 0.1
    baseline: float = 0.0
    psi: dict[tuple[int, int], list[float]] = field(default_factory=dict)

    def probabilities(self, demonstration: int, step: int) -> list[float]:
        """Of each constraint."""
        scores = self.psi.get((demonstration, step), [0.0] * len(CONSTRAINTS))
        powers = [math.exp(score - max(scores)) for score in scores]
        return [power / sum(powers) for power in powers]

    def update(self, demonstration: int, chosen: Sequence[int], reward: float) -> None:
        """psi[d, t] += rate (reward - baseline) grad log pi(z_t | d, t) for each step's chosen constraint z_t."""
        for step, constraint in enumerate(chosen):
            found = self.probabilities(demonstration, step)
            scores = self.psi.setdefault((demonstration, step), [0.0] * len(CONSTRAINTS))
            for index, probability in enumerate(found):
                scores[index] += self.rate * (reward - self.baseline) * ((index == constraint) - probability)
        self.baseline += self.baseline_rate * (reward - self.baseline)


@dataclass(frozen=True)
class Explored:
    """Numbers of episodes played, of those that were solved, and of different ones among these."""

    episodes: int
    solved: int
    rows: int

    def text(self) -> str:
        """In words."""
        return f"{self.episodes:,} episodes, {self.solved:,} solved: {self.rows:,} rows"


def explore(recipe: Recipe, demonstrations: str, count: int, output: Path) -> Explored:
    """Play `count` episodes on the recipe's prompts in turn; the solved ones go to `output`, as `record` writes them.

    demonstrations: a file of whole episodes, of the same kind of task. An episode follows one of them, for as many
    steps. RecipeError where there are no prompts, the environment does not list its actions, or nothing was solved.
    """
    check_output(output)
    if not recipe.prompts:
        raise RecipeError("prompts: not set; the tasks that are explored are read from there")
    tasks = [example for source in recipe.prompts for example in load_source(source, "prompts")]
    shown = [_workflow(one) for one in load_source(SourceSettings(path=demonstrations), "demonstrations")]
    environment = make_environment(recipe.environment, recipe.partner, None)
    with closing(environment):
        played = asyncio.run(_explore(environment, recipe, tasks, shown, count))
    solved = [row for row in played if row is not None]
    rows = list({repr(row): row for row in solved}.values())
    if not rows:
        raise RecipeError(f"none of {count} episodes was solved; allow more, or give demonstrations of the same task")
    write_rows(output, rows)
    return Explored(len(played), len(solved), len(rows))


async def _explore(
    environment: Environment, recipe: Recipe, tasks: Sequence[Example], shown: Sequence[Workflow], count: int
) -> list[dict[str, Any] | None]:
    """The row of each episode, None of one that was not solved."""
    draw, policy, found = random.Random(recipe.seed), WorkflowPolicy(), []
    for number in range(count):
        demonstration = draw.randrange(len(shown))
        example = tasks[number % len(tasks)]
        seed = derived_seed(recipe.seed, example.id, number // len(tasks))
        workflow, chosen = shown[demonstration], []
        for step in range(len(workflow.steps)):
            chosen += draw.choices(range(len(CONSTRAINTS)), policy.probabilities(demonstration, step))
        row, num_steps = await _episode(environment, recipe, example, workflow, chosen, draw, seed)
        policy.update(demonstration, chosen[:num_steps], float(row is not None))
        found.append(row)
    return found


async def _episode(
    environment: Environment,
    recipe: Recipe,
    example: Example,
    workflow: Workflow,
    chosen: Sequence[int],
    draw: random.Random,
    seed: int,
) -> tuple[dict[str, Any] | None, int]:
    """The row of an episode under a constraint a step, None where it was not solved; and its number of steps."""
    observation, episode = await environment.reset(example.prompt, example.columns, seed)
    first, goal, solved, number = observation.messages, _last(observation.messages), False, 0
    completion: list[Any] = []
    try:
        for number, constraint in enumerate(chosen[: recipe.episode.max_turns], start=1):
            if not observation.actions:
                raise RecipeError(f"environment {recipe.environment.name!r} lists no actions; allowed: one that does")
            allowed = workflow.allowed(number - 1, CONSTRAINTS[constraint], observation.actions, goal)
            if not allowed:
                break
            action = draw.choice(allowed)
            step = await episode.step(action)
            completion.append(said(action))
            if step.terminated or step.truncated:
                solved = bool(step.solved)
                break
            completion += messages_of(step)
            observation = step.observation
    finally:
        await episode.close()
    columns = {name: value for name, value in example.columns.items() if name != "prompt"}
    return (demonstration_row(_messages(first), completion, columns) if solved else None), number


def _workflow(example: Example) -> Workflow:
    if isinstance(example.completion, str) or example.completion is None:
        raise DataError(f"{example.id}: the completion is no conversation; allowed: what `posttrain record` writes")
    goal = _last(example.prompt)
    actions = [str(one["content"]) for one in example.completion if one["role"] == "assistant"]
    return Workflow(tuple(features(action, goal) for action in actions))


def _messages(prompt: Prompt) -> Sequence[Any]:
    return told(prompt) if isinstance(prompt, str) else prompt


def _last(prompt: Prompt) -> str:
    """The last message: what is to be done."""
    return prompt if isinstance(prompt, str) else str(prompt[-1]["content"])
