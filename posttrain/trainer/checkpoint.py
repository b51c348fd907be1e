"""Checkpoints: everything to continue, written so that a kill at any moment leaves the former one usable.

A checkpoint is written to a hidden directory, flushed to disk, and renamed to `step_N` in one move; only then are the
oldest ones removed.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from posttrain.errors import CheckpointError
from posttrain.trainer.anchor import Anchor
from posttrain.trainer.window import StepData, load_steps, save_steps

_STATE = "state.json"


def save_checkpoint(
    directory: Path,
    step: int,
    keep: int,
    accelerator: Any,
    state: dict[str, Any],
    pending: Sequence[StepData],
    anchor: Anchor | None = None,
) -> Path:
    """Write `directory`/step_`step` and keep the newest `keep`; returns its path.

    The accelerator writes weights, optimiser and every RNG; each rank its own pending steps; `state` is what the loop
    needs besides (JSON); anchor: the reference, which is written where it has changed.
    """
    unfinished, final = directory / f".step_{step}", directory / f"step_{step}"
    if accelerator.is_main_process:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(unfinished), safe_serialization=True)
    save_steps(pending, unfinished / f"pending_{accelerator.process_index}.jsonl")
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        if anchor is not None:
            anchor.save(unfinished)
        (unfinished / _STATE).write_text(json.dumps(state | {"step": step, "num_pending": len(pending)}))
        _flush(unfinished)
        shutil.rmtree(final, ignore_errors=True)
        unfinished.rename(final)
        _flush_directory(directory)
        for old in complete_checkpoints(directory)[:-keep]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()
    return final


def complete_checkpoints(directory: Path) -> list[Path]:
    """The finished checkpoints under `directory`, oldest first."""
    found = [path for path in directory.glob("step_*") if (path / _STATE).is_file()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step_")))


def load_checkpoint(path: Path, accelerator: Any) -> tuple[dict[str, Any], list[StepData]]:
    """Put `path` back into the accelerator's objects; returns the loop's state and this rank's pending steps."""
    state: dict[str, Any] = json.loads((path / _STATE).read_text())
    if state["num_ranks"] != accelerator.num_processes:
        raise CheckpointError(
            f"{path} was written by {state['num_ranks']} ranks; this run has {accelerator.num_processes}: "
            "launch it with the same number"
        )
    accelerator.load_state(str(path))
    return state, load_steps(path / f"pending_{accelerator.process_index}.jsonl", state["num_pending"])


def _flush(directory: Path) -> None:
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    _flush_directory(directory)


def _flush_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
