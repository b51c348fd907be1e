"""A checkpoint of another number of ranks, put back into this run's: weights, optimiser, random states.

Data parallelism writes them whole, and FSDP2 in a format that any number of ranks reads; DeepSpeed's parts are first
made into its universal form. Nothing of it is bit-exact: the ranks add up in another order.
"""

from __future__ import annotations

import contextlib
import io
import random
import shutil
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch


def load_of_other_ranks(path: Path, accelerator: Any, rates: Sequence[float], seed: int) -> None:
    """Put the checkpoint `path` into the accelerator's objects; every rank's random state is new, from `seed`.

    rates: the learning rates of the optimiser's groups at that moment.
    """
    if hasattr(accelerator.state, "deepspeed_plugin") and accelerator.state.deepspeed_plugin is not None:
        _load_universal(path, accelerator)
    else:
        accelerator.load_state(str(path))
    (optimizer,) = accelerator._optimizers
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    own = seed * 1_000_003 + accelerator.process_index
    random.seed(own)
    np.random.seed(own % 2**32)
    torch.manual_seed(own)


def _load_universal(path: Path, accelerator: Any) -> None:
    """DeepSpeed's own conversion, by one rank, next to the checkpoint; gone once every rank has read it."""
    whole = path.parent / f".{path.name}_universal"
    if accelerator.is_main_process:
        _convert(path / "pytorch_model", whole / "pytorch_model")
    accelerator.wait_for_everyone()
    (engine,) = accelerator._models
    groups = [{name: value for name, value in one.items() if name != "params"} for one in engine.optimizer.param_groups]
    engine._config.load_universal_checkpoint = True
    try:
        accelerator.load_state(str(whole))
    finally:
        engine._config.load_universal_checkpoint = False
    for loaded, own in zip(engine.optimizer.param_groups, groups, strict=True):
        loaded.update(own)  # ZeRO-3 gives all of them the settings of the first
    for one in engine.optimizer.optimizer.state.values():  # which have one count in common, and each would move it on
        one["step"] = one["step"].clone()
    kept_whole = getattr(engine.optimizer, "persistent_parameters", [])
    if kept_whole:  # what is not spread stays as it was, until it is made of its parts anew
        kept_whole[0].partition(kept_whole)
        kept_whole[0].all_gather(kept_whole)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        shutil.rmtree(whole)


def _convert(parts: Path, whole: Path) -> None:
    from deepspeed.checkpoint.ds_to_universal import main

    shutil.rmtree(whole, ignore_errors=True)
    whole.mkdir(parents=True)
    how = Namespace(
        input_folder=str(parts),
        output_folder=str(whole),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        main(how)
