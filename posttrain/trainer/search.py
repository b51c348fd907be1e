"""`posttrain search`: solutions of a recipe's tasks by A* over plans, as demonstrations."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from posttrain.config import Recipe
from posttrain.curation.written import check_output, write_rows
from posttrain.errors import RecipeError
from posttrain.rollout.plan_costs import FutureCost, MemoryAndFrequency, Nothing, OnePerStep, PastCost, RelativePosition
from posttrain.rollout.plan_search import Found, SearchSettings, search

PAST: dict[str, PastCost] = {"memory_and_frequency": MemoryAndFrequency(), "one_per_step": OnePerStep()}
FUTURE: dict[str, FutureCost] = {"relative_position": RelativePosition(), "nothing": Nothing()}

_Cost = TypeVar("_Cost")


def search_tasks(
    recipe: Recipe, count: int, output: Path, *, proposals: int, tries: int, past: str, future: str
) -> str:
    """Search `count` of the recipe's prompts with its starting model; the plans that solve them go to `output`.

    A row is {prompt, completion, plan, tried, and the task's columns}: a demonstration. Returns what was found, in
    words. RecipeError where the recipe samples nothing or nothing was solved.
    """
    from posttrain.trainer.setup import build

    check_output(output)
    settings = SearchSettings(proposals, tries, _named("past", past, PAST), _named("future", future, FUTURE))
    with ExitStack() as stack, TemporaryDirectory() as scratch:
        loop = build(recipe, Path(scratch), stack, say=lambda line: None)
        if loop.collector is None or loop.builder.prompts is None:
            raise RecipeError(f"algorithm {recipe.algorithm.name} samples nothing: there are no tasks to search")
        found = search(loop.collector, loop.builder.prompts.take(count), settings, recipe.seed)
    solved = [one for one in found if one.plan is not None]
    tried = sum(one.tried for one in found)
    if not solved:
        raise RecipeError(f"none of {len(found)} tasks was solved in {tried:,} plans; allow more tries or proposals")
    write_rows(output, [_row(one) for one in solved])
    return f"{len(solved):,} of {len(found):,} tasks solved, {tried:,} plans tried"


def _row(found: Found) -> dict[str, object]:
    prompt = found.prompt if isinstance(found.prompt, str) else [dict(one) for one in found.prompt]
    columns = {name: value for name, value in found.example.columns.items() if name not in ("prompt", "completion")}
    completion = [dict(one) for one in found.messages]
    return {**columns, "prompt": prompt, "completion": completion, "plan": [*(found.plan or ())], "tried": found.tried}


def _named(option: str, name: str, known: Mapping[str, _Cost]) -> _Cost:
    if name not in known:
        raise RecipeError(f"--{option} {name}: allowed: {', '.join(known)}")
    return known[name]
