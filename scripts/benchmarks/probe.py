"""GRPO updates in a process of their own: how long one takes, and how much memory it needs at its peak.

python -m benchmarks.probe JSON (see `Probe`) prints one line of JSON. Under torchrun every rank takes its share of the
groups, and rank 0 prints the longest time and the largest memory of any.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Probe:
    """What is run: `steps` updates on random groups, the last of them timed.

    side: ours or trl. microbatch: of ours in tokens, of TRL in rows. ranks: processes with a thread each, for ours;
    0: one process with as many threads as there are cores.
    """

    side: str
    scale: str
    groups: int
    prompt: int
    shortest: int
    longest: int
    microbatch: int
    vocabulary: int | None = None
    group_size: int = 8
    mixed: str = "no"
    ranks: int = 0
    steps: int = 2


@dataclass(frozen=True)
class Found:
    """Seconds of the last step; peak memory above what was held before the first one; weights of the model."""

    seconds: float
    peak_bytes: int
    num_parameters: int


def measure(probe: Probe) -> Found:
    """Run it in fresh processes; RuntimeError with what they wrote where they fail."""
    module = ["benchmarks.probe", json.dumps(asdict(probe))]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(probe.ranks)]
    command = [sys.executable, *(launcher if probe.ranks else []), "-m", *module]
    paths = os.pathsep.join(filter(None, [str(SCRIPTS), str(SCRIPTS.parent), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": paths} | ({"OMP_NUM_THREADS": "1"} if probe.ranks else {})
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{probe} failed:\n{done.stderr[-4000:]}")
    line = next(line for line in done.stdout.splitlines() if line.startswith('{"seconds"'))
    return Found(**json.loads(line))


def _run(probe: Probe) -> None:
    import torch

    from benchmarks.measure import time_of
    from benchmarks.ours import GRPO, Ours
    from benchmarks.peer import PeerGrpo
    from benchmarks.workloads import SCALES, groups

    scale = SCALES[probe.scale]
    if probe.vocabulary is not None:
        scale = scale.with_vocabulary(probe.vocabulary)
    lengths = probe.prompt, probe.shortest, probe.longest, scale.model["vocab_size"]
    sequences = groups(probe.groups, *lengths, size=probe.group_size)
    rank, ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if probe.side == "ours":
        own = [sequence for sequence in sequences if sequence.group % ranks == rank]
        side: Any = Ours("grpo", own, scale, probe.mixed, **GRPO)
    else:
        side = PeerGrpo(sequences, scale, probe.mixed)
    side.use(probe.microbatch)
    gc.collect()
    before = _held(torch)
    taken = [time_of(side.step).wall for _ in range(probe.steps)]
    peak = _peak(torch) - before
    if ranks > 1:
        found = torch.tensor([taken[-1], peak], dtype=torch.float64)
        torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
        taken[-1], peak = found[0].item(), int(found[1])
    if rank == 0:
        number = sum(parameter.numel() for parameter in side.model.parameters())
        print(json.dumps(asdict(Found(taken[-1], int(peak), number))), flush=True)
    if ranks > 1:
        torch.distributed.barrier()
        os._exit(0)  # gloo's threads, asked to end, can wait for a rank that has ended before


def _held(torch: Any) -> int:
    """Bytes held now, after what is free has been given back: of the GPU's allocator, or of this process."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return int(torch.cuda.memory_allocated())
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    return _status("VmRSS")


def _peak(torch: Any) -> int:
    """The largest number of bytes held since `_held`."""
    return int(torch.cuda.max_memory_allocated()) if torch.cuda.is_available() else _status("VmHWM")


def _status(name: str) -> int:
    """A line of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


if __name__ == "__main__":
    _run(Probe(**json.loads(sys.argv[1])))
