"""Training: one loop for every algorithm."""

from __future__ import annotations

import os
import shutil
import signal
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from rich.console import Console

from posttrain.config import LoadedRecipe, differences, load_recipe, write_resolved
from posttrain.config.located import located
from posttrain.config.schema import ServedSettings
from posttrain.errors import CheckpointError, UserError

_MAY_CHANGE = (
    *(
        "training.steps",
        "checkpoint.",
        "tracking.",
        "evaluation",
        "final_evaluation",
        "rollout.reward_workers",
        "acknowledge",
    ),
    *(f"rollout.{key}" for key in ServedSettings.model_fields),
)
"""What a resumed run may change; the rest would make it another run."""


def train(loaded: LoadedRecipe, output: Path, *, resume: bool = False) -> signal.Signals | None:
    """Run a recipe in `output`; the signal that stopped it, or None where it is done and `output`/final is there.

    CheckpointError where `output` holds a run and `resume` is False, or where the recipe differs from the run's in
    more than how long it lasts and what it writes down.
    """
    checkpoint = _prepare_directory(loaded, output, resume)
    from posttrain.trainer.checkpoint import place_of
    from posttrain.trainer.distributed import named_failures
    from posttrain.trainer.explain import render
    from posttrain.trainer.setup import build
    from posttrain.trainer.tracker import forget_after

    with ExitStack() as stack:
        console = Console(highlight=False, quiet=os.environ.get("RANK", "0") != "0")
        try:
            stack.enter_context(named_failures(loaded.recipe.training.collective_timeout_seconds))
            loop = build(loaded.recipe, output, stack, say=partial(console.print, soft_wrap=True))
        except UserError as error:
            raise located(error, loaded) from error
        output.mkdir(parents=True, exist_ok=True)
        main = loop.accelerator.is_main_process
        if main:
            objective = render(loop.updater.algorithm, loaded, "text")
            (output / "objective.txt").write_text(objective + "\n")
            write_resolved(loaded, output / "recipe.yaml")
            forget_after(output, *((-1,) if checkpoint is None else place_of(checkpoint)))
            print(f"\n{objective}\n")
        if checkpoint is not None:
            loop.restore(checkpoint)
            console.print(f"resuming at step {loop.step} of {loaded.recipe.training.steps}")
        received = loop.run()
        if main and received is not None:
            print(f"stopped by {received.name} after step {loop.step}; go on with:")
            print(f"  posttrain train {loaded.path} --output {output} --resume")
        elif main:
            from posttrain.evaluation.report import write_report
            from posttrain.trainer.memory import compared

            num_ranks = loop.accelerator.num_processes
            print(compared(loaded.recipe, loop.updater.algorithm, loop.meter.peak_bytes(), num_ranks))
            print(f"model: {output / 'final'}\nreport: {write_report(output)}")
    return received


def _prepare_directory(loaded: LoadedRecipe, output: Path, resume: bool) -> Path | None:
    """Check what is in `output`; the checkpoint to go on from, if any."""
    from posttrain.trainer.checkpoint import complete_checkpoints

    former = output / "recipe.yaml"
    if not former.exists():
        return None
    if not resume:
        raise CheckpointError(f"{output} holds a run already: add --resume to go on with it, or give another --output")
    changed = differences(load_recipe(former, stop_at_warnings=False).recipe, loaded.recipe)
    forbidden = [line for line in changed if not line.startswith(_MAY_CHANGE)]
    if forbidden:
        raise CheckpointError(f"{output} was started with another recipe:\n  " + "\n  ".join(forbidden))
    for line in changed:
        print(f"changed since the run started: {line}")
    shutil.rmtree(output / "final", ignore_errors=True)
    found = complete_checkpoints(output / "checkpoints")
    return found[-1] if found else None
