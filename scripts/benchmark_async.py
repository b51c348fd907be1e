"""Wall time of one run with `rollout.max_staleness: 1` against 0: the same recipe, seed, prompts and tokens.

Each side is a process of `posttrain train`, pinned to the cores that its work is to have, alternating. A served
sampler has a core of its own in both; the embedded one shares the trainer's. What is compared is the time of the steps
after the first two, in which everything is used for the first time.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

TARGET = 1.25
SKIPPED = 2

RECIPE: dict[str, Any] = {
    "model": {
        "config": {
            "model_type": "qwen3",
            "hidden_size": 160,
            "intermediate_size": 448,
            "num_hidden_layers": 4,
            "num_attention_heads": 5,
            "num_key_value_heads": 5,
            "head_dim": 32,
            "max_position_embeddings": 1024,
            "tie_word_embeddings": True,
        }
    },
    "tokenizer": {"path": "characters"},
    "algorithm": {"name": "grpo", "kl_weight": 0.0},
    "prompts": {
        "path": "reasoning_gym",
        "config": {"dataset": "chain_sum", "size": 1024, "seed": 1, "min_terms": 2, "max_terms": 3, "max_digits": 2},
    },
    "rewards": [{"name": "regex_match", "expression": "[aeiou0-9]{2}", "whole": False}],
    "rollout": {"group_size": 8, "max_tokens": 64, "reward_workers": 1},
    "training": {"steps": 12, "prompts_per_step": 16, "learning_rate": 1e-4},
    "checkpoint": {"every_steps": 0},
    "tracking": {"groups_per_step": 0, "trajectories": "none"},
    "seed": 1,
}


def async_benchmark(runs: int) -> list[dict[str, object]]:
    """A row for each engine that is here: ours is max_staleness 1, its peer max_staleness 0."""
    cores = sorted(os.sched_getaffinity(0))
    rows = [_row("transformers engine in a thread", runs, cores, [])]
    if importlib.util.find_spec("vllm") is not None and len(cores) > 1:
        with _replica(cores[-1:]) as url:
            more = ["rollout.engine=vllm", "rollout.mode=served", f"rollout.servers=[{url}]"]
            rows.append(_row("served vLLM on a core of its own", runs, cores[:1], more))
    return rows


def _row(work: str, runs: int, cores: Sequence[int], more: Sequence[str]) -> dict[str, object]:
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(runs):
        for ahead, taken in zip((1, 0), seconds, strict=True):
            taken.append(_run(cores, [*more, f"rollout.max_staleness={ahead}"]))
    ratio = statistics.median(waits / ahead for ahead, waits in zip(*seconds, strict=True))
    return {
        "work": f"max_staleness 1 against 0, {work}",
        "ours_seconds": statistics.median(seconds[0]),
        "peer_seconds": statistics.median(seconds[1]),
        "ratio": ratio,
        "target": TARGET,
    }


def _run(cores: Sequence[int], more: Sequence[str]) -> float:
    """Seconds of the steps after the first ones."""
    with TemporaryDirectory() as directory:
        recipe, output = Path(directory) / "recipe.yaml", Path(directory) / "run"
        recipe.write_text(json.dumps(RECIPE))
        command = [sys.executable, "-m", "posttrain", "train", str(recipe), *more, "--output", str(output)]
        done = subprocess.run(_pinned(cores, command), env=_environment(), capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return float(rows[-1]["time_seconds"]) - float(rows[SKIPPED - 1]["time_seconds"])


@contextmanager
def _replica(cores: Sequence[int]) -> Iterator[str]:
    """A replica of the recipe's model on `cores`; its address."""
    with TemporaryDirectory() as directory, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        recipe, log = Path(directory) / "recipe.yaml", Path(directory) / "log"
        recipe.write_text(json.dumps(RECIPE))
        served = ["rollout.engine=vllm", "rollout.mode=served", f"rollout.servers=[http://127.0.0.1:{port}]"]
        command = [sys.executable, "-m", "posttrain", "serve", "--port", str(port), str(recipe), *served]
        with log.open("w") as file:
            process = subprocess.Popen(
                _pinned(cores, command), env=_environment(), stdout=file, stderr=file, start_new_session=True
            )
        try:
            _until_it_answers(f"http://127.0.0.1:{port}/health", process, log)
            yield f"http://127.0.0.1:{port}"
        finally:
            with suppress(ProcessLookupError):  # where it could not start
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _until_it_answers(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError:
            time.sleep(1)
    raise SystemExit(f"the replica does not answer:\n{log.read_text()[-2000:]}")


def _pinned(cores: Sequence[int], command: Sequence[str]) -> list[str]:
    return ["taskset", "-c", ",".join(map(str, cores)), *command]


def _environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}
