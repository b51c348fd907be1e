"""Benchmarks, each side by side with what it is compared to, in one run, alternating.

scripts/benchmark update    GRPO's update against TRL's on the same completions, and with half of the groups to prune
scripts/benchmark sft       supervised fine-tuning against TRL, without and with its packing
scripts/benchmark dpo       direct preference optimisation against TRL
scripts/benchmark memory    the update's peak memory over a vocabulary of 150 thousand tokens against TRL's
scripts/benchmark step      one optimiser step against bare PyTorch on the same tokens
scripts/benchmark device    packed rows to padded ones on this device, an update's memory to its prediction
scripts/benchmark scaling   time and memory against tokens, group size, vocabulary and ranks, with exponents
scripts/benchmark rollout   the collector over vLLM against vLLM alone and TRL's colocated vLLM, and a weight sync
scripts/benchmark async     training beside a sampler that does not wait
scripts/benchmark rewards   answers graded per second by two workers

Before it is timed, the first step of both sides must have the same gradient. Each side then takes the micro-batch that
is quickest for it. ratio is the median over runs of peer / ours: it grows with better, as its target does.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

WRITTEN = ("work", "ours_seconds", "peer_seconds", "ratio", "target")
AGAINST_TRL = ("update", "sft", "dpo", "step")
SUBJECTS = (*AGAINST_TRL, "memory", "device", "scaling", "rollout", "async", "rewards")
PUBLISHED = {
    "0.6b": "prime-rl, one H100, reinforcement learning of Qwen3-0.6B: 11.9k tokens/s, 12.5 GiB",
    "4b-lora": "prime-rl, one H100, Qwen3-4B with LoRA of rank 16 at 16k tokens: 6.23k tokens/s, MFU 21.7%, 23.3 GiB",
}
"""What a peer's authors report for the same model, to be read beside the tokens a second."""

TOLERANCE = {"no": 1e-4, "bf16": 5e-2}
"""How far the two gradients may be apart, of their norm: sums run in different orders, in bf16 over rounded values."""


def rows_of(subject: str, runs: int, scale: str, mixed: str, *, compile: bool = False) -> list[Any]:
    """Measure one subject."""
    if subject == "rollout":
        from benchmark_rollout import rollout_benchmark

        return rollout_benchmark(runs)
    if subject == "async":
        from benchmark_async import async_benchmark

        return async_benchmark(runs)
    if subject == "rewards":
        from benchmark_rewards import rewards_benchmark

        return rewards_benchmark(runs, 200 if scale == "toy" else 2000)
    if subject in AGAINST_TRL:
        from benchmarks import dpo, sft, step, update
        from benchmarks.workloads import SCALES

        measures: dict[str, Callable[..., list[Any]]] = {
            "update": update.update_benchmark,
            "sft": sft.sft_benchmark,
            "dpo": dpo.dpo_benchmark,
            "step": step.step_benchmark,
        }
        return measures[subject](runs, replace(SCALES[scale], compile=compile), mixed, TOLERANCE[mixed])
    from benchmarks.device import device_benchmark
    from benchmarks.memory import memory_benchmark
    from benchmarks.scaling import scaling_benchmark
    from benchmarks.workloads import SCALES

    if subject == "device":
        return device_benchmark(runs, scale, replace(SCALES[scale], compile=compile), mixed)
    return memory_benchmark(runs, scale, mixed) if subject == "memory" else scaling_benchmark(runs, scale, mixed)


def show(rows: list[Any]) -> None:
    """The table; a ratio's least and greatest run, and its value on the processors' clock, where they are known."""
    width = max(len(row["work"]) for row in rows) + 2
    print(f"\n{'work':<{width}}{'ours':>10}{'peer':>10}{'peer/ours':>11}{'target':>8}")
    for row in rows:
        line = f"{row['work']:<{width}}{row['ours_seconds']:>9.3f}s{row['peer_seconds']:>9.3f}s"
        print(f"{line}{row['ratio']:>11.3f}{row['target']:>8.3f}{_missed(row)}")
        beside = _beside(row)
        if beside:
            print(f"    {beside}", flush=True)


def _missed(row: Mapping[str, Any]) -> str:
    return "" if row["ratio"] >= row["target"] else "  missed"


def _beside(row: Mapping[str, Any]) -> str:
    ratios, cpu = row.get("ratios", []), row.get("cpu_ratio")
    parts = [f"ratio {min(ratios):.3f} to {max(ratios):.3f}"] if len(ratios) > 1 else []
    if cpu is not None:
        parts.append(f"by processors' time {cpu:.3f}")
    return "; ".join(filter(None, [*parts, row.get("note", "")]))


def _quiet() -> None:
    """What libraries say on import is no part of a table."""
    warnings.filterwarnings("ignore")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    logging.disable(logging.WARNING)
    import datasets

    datasets.disable_progress_bars()


def main() -> None:
    """Run what is asked for, print its table, write its JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmark", nargs="+", choices=SUBJECTS)
    parser.add_argument("--runs", type=int, default=5, help="timed runs of each side (default: 5)")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--scale", help="small, 0.6b or 4b-lora (default: small; on a GPU 0.6b); toy takes seconds")
    parser.add_argument("--compile", action="store_true", help="our layers by torch.compile, as `model.compile` has it")
    parser.add_argument("--dtype", choices=("float32", "bf16"), help="(default: float32; on a GPU bf16)")
    arguments = parser.parse_args()
    if arguments.runs < 1:
        parser.error(f"--runs is {arguments.runs}; allowed: at least 1")
    _quiet()
    import torch
    from benchmarks.machine import describe
    from benchmarks.workloads import SCALES

    on_gpu = torch.cuda.is_available()
    scale = arguments.scale or ("0.6b" if on_gpu else "small")
    if scale not in SCALES:
        parser.error(f"--scale is {scale!r}; allowed: {', '.join(SCALES)}")
    dtype = arguments.dtype or ("bf16" if on_gpu else "float32")
    print(describe(), flush=True)
    mixed = "bf16" if dtype == "bf16" else "no"
    rows: list[Any] = []
    for subject in arguments.benchmark:
        found = rows_of(subject, arguments.runs, scale, mixed, compile=arguments.compile)
        rows += found
        show(found)
        if arguments.json:
            written = [{name: row[name] for name in WRITTEN} for row in rows]
            arguments.json.write_text(json.dumps({"rows": written}, indent=2) + "\n")
    if scale in PUBLISHED:
        print(f"published: {PUBLISHED[scale]}")


if __name__ == "__main__":
    main()
