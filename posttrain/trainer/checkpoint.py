"""Checkpoints: everything to continue, written so that a kill at any moment leaves the former one usable.

A checkpoint is written to a hidden directory, flushed to disk, and renamed to `step_N` in one move; only then are the
oldest ones removed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from posttrain.durable import flush
from posttrain.errors import CheckpointError
from posttrain.trainer.anchor import Anchor
from posttrain.trainer.distributed import spread_of
from posttrain.trainer.other_ranks import load_of_other_ranks
from posttrain.trainer.pending import load_pending, save_pending
from posttrain.trainer.redistribute import step_share, window_share
from posttrain.trainer.step_data import StepData
from posttrain.trainer.window import Window

_STATE = "state.json"


def save_checkpoint(
    directory: Path,
    step: int,
    keep: int,
    accelerator: Any,
    state: dict[str, Any],
    pending: Sequence[StepData],
    ahead: Sequence[Window] = (),
    anchor: Anchor | None = None,
) -> Path:
    """Write `directory`/step_`step` and keep the newest `keep`; returns its path.

    The accelerator writes weights, optimiser and every RNG; each rank its own pending steps and the windows that it
    has played ahead; `state` is what the loop needs besides (JSON); anchor: the reference, which is written where it
    has changed.
    """
    unfinished, final = directory / f".step_{step}", directory / f"step_{step}"
    if accelerator.is_main_process:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(unfinished), safe_serialization=True)
    save_pending(unfinished, accelerator.process_index, pending, ahead)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        if anchor is not None:
            anchor.save(unfinished)
        written = {"step": step, "num_pending": len(pending), "spread": spread_of(accelerator)}
        (unfinished / _STATE).write_text(json.dumps(state | written))
        _flush(unfinished)
        shutil.rmtree(final, ignore_errors=True)
        unfinished.rename(final)
        flush(directory)
        for old in complete_checkpoints(directory)[:-keep]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()
    return final


def complete_checkpoints(directory: Path) -> list[Path]:
    """The finished checkpoints under `directory`, oldest first."""
    found = [path for path in directory.glob("step_*") if (path / _STATE).is_file()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step_")))


def place_of(path: Path) -> tuple[int, int]:
    """The step that a checkpoint was written after, and the steps of its window that are still to be done."""
    state = json.loads((path / _STATE).read_text())
    return state["step"], state["num_pending"]


def load_checkpoint(path: Path, accelerator: Any) -> tuple[dict[str, Any], list[StepData], list[Window]]:
    """Put `path` back into the accelerator's objects; the loop's state, this rank's pending steps, its windows.

    On as many ranks as wrote it, the run goes on bit for bit. On another number it goes on from the same weights,
    optimiser, schedule and data cursor, with the same pending steps and windows in other hands, and with new random
    states; what it adds up, it adds up in another order. CheckpointError where weights were spread in another way.
    """
    state: dict[str, Any] = json.loads((path / _STATE).read_text())
    if state["spread"] != spread_of(accelerator):
        raise CheckpointError(
            f"{path} was written with {state['spread']}; the launch file says {spread_of(accelerator)}; "
            "allowed: the same, on any number of ranks"
        )
    if state["num_ranks"] != accelerator.num_processes:
        return state, *_of_other_ranks(path, accelerator, state)
    accelerator.load_state(str(path))
    return state, *load_pending(path, accelerator.process_index, state["num_pending"])


def _of_other_ranks(path: Path, accelerator: Any, state: Mapping[str, Any]) -> tuple[list[StepData], list[Window]]:
    """The same of a checkpoint that another number of ranks wrote: their steps and windows are shared out anew."""
    num, rank, num_ranks = state["num_ranks"], accelerator.process_index, accelerator.num_processes
    if accelerator.is_main_process:
        print(
            f"resuming on {num_ranks} ranks what {num} began: same weights, optimiser, schedule and data from here on, "
            "not bit for bit what they would have done; random states are new"
        )
    load_of_other_ranks(path, accelerator, state["schedule"]["_last_lr"], state["step"])
    steps, windows = zip(*(load_pending(path, one, state["num_pending"]) for one in range(num)), strict=True)
    return (
        [step_share(shares, rank, num_ranks) for shares in zip(*steps, strict=True)],
        [window_share(shares, rank, num_ranks) for shares in zip(*windows, strict=True)],
    )


def _flush(directory: Path) -> None:
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            flush(path)
    flush(directory)
