"""One run: posttrain's own `train` on a recipe, and models that are made once a seed by one."""

from __future__ import annotations

import contextlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import yaml

from posttrain.config import Recipe, load_recipe
from studies.context import Context
from studies.study import Tree


@dataclass(frozen=True)
class Trained:
    """A model trained by a recipe: a starting model or a teacher, made once a seed."""

    recipe: Tree

    def path(self, context: Context) -> str:
        """Its directory."""
        tree = context.resolve(self.recipe)
        return str(Path(context.file(tree, "", lambda path: run_recipe(tree, context.seed, path))) / "final")


def run_recipe(tree: Tree, seed: int, output: Path) -> float:
    """Train the recipe in `output`; the seconds its steps took. What it prints goes to log.txt beside its files."""
    from posttrain.trainer import train

    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    written = output / "written.yaml"
    written.write_text(yaml.safe_dump(tree | {"seed": seed}, sort_keys=False))
    with (output / "log.txt").open("w") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        received = train(load_recipe(written), output)
    if received is not None:
        raise KeyboardInterrupt
    shutil.rmtree(output / "checkpoints", ignore_errors=True)
    return float(metrics(output)[-1]["time_seconds"])


def recipe_beside(tree: Tree, path: Path) -> Recipe:
    """The recipe of a file that is about to be made, written next to it."""
    written = path.with_suffix(".yaml")
    written.write_text(yaml.safe_dump(tree))
    return load_recipe(written, stop_at_warnings=False).recipe


def metrics(output: Path) -> list[dict[str, float]]:
    """The rows of a run's metrics.jsonl."""
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
