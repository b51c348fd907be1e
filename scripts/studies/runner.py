"""Trains and measures the arms of a study, side by side; every run is posttrain's own `train` on a recipe."""

from __future__ import annotations

import logging
import multiprocessing
import os
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from studies import catalogue
from studies.context import Context, merge
from studies.study import Arm, Figures, Finished, Study, Tree
from studies.training import run_recipe


def recipes(study: Study, arm: Arm, context: Context) -> list[Tree]:
    """The arm's recipes, resolved; a stage that starts from the former's model has none yet."""
    found: list[Tree] = []
    for index, stage in enumerate(arm.stages):
        base = study.base if index == 0 or "model" in stage else merge(study.base, {"model": None})
        found.append(context.resolve(merge(base, stage)))
    return found


def run_arm(name: str, index: int, seed: int, folder: Path) -> tuple[str, int, Figures]:
    """Train and measure one arm of the study `name` at one seed."""
    study = catalogue.STUDIES[name]
    arm = study.arms[index]
    context = Context(folder / "made", seed)
    done: list[Path] = []
    seconds = 0.0
    for number, tree in enumerate(recipes(study, arm, context)):
        output = folder / name / f"seed{seed}" / f"{index}-{number}"
        tree.setdefault("model", {"path": str(done[-1] / "final") if done else ""})
        seconds += run_recipe(tree, seed, output)
        done.append(output)
    start = Path(context.resolve(study.base["model"]["path"]))
    figures = study.measure(Finished(context, start, tuple(done)))
    return arm.name, seed, figures | {"seconds": seconds}


def run_study(study: Study, seeds: Sequence[int], folder: Path, processes: int = 2) -> list[tuple[str, int, Figures]]:
    """(arm, seed, figures) of every arm and seed."""
    began = time.monotonic()
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _quieten) as pool:
        list(pool.map(_prepare, [study.name] * len(seeds), seeds, [folder] * len(seeds)))
        print(f"{study.name}: starting models ready after {time.monotonic() - began:.0f} s", flush=True)
        jobs = [(index, seed) for seed in seeds for index in range(len(study.arms))]
        waiting = [pool.submit(run_arm, study.name, index, seed, folder) for index, seed in jobs]
        found = []
        for future in waiting:
            arm, seed, figures = future.result()
            shown = ", ".join(f"{key} {value:.4g}" for key, value in figures.items())
            print(f"{study.name}: seed {seed}, {arm}: {shown} ({time.monotonic() - began:.0f} s)", flush=True)
            found.append((arm, seed, figures))
    return found


def _prepare(name: str, seed: int, folder: Path) -> None:
    """Make a seed's files and models, before two arms want them at once."""
    study = catalogue.STUDIES[name]
    context = Context(folder / "made", seed)
    for arm in study.arms:
        recipes(study, arm, context)
    context.resolve(study.base)


def _quieten() -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
