"""scripts/benchmark: every subject runs end to end at toy size against the real TRL, and unequal work is refused."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
WORKS = {
    "update": ["GRPO, 2 x 8", "GRPO, 4 x 8", "GRPO, half of 8 groups"],
    "sft": ["SFT, 32 x 2-64 tokens, to TRL without", "SFT, 32 x 2-64 tokens, to TRL with packing"],
    "dpo": ["DPO, 8 pairs"],
    "step": ["SFT, 64 x", "SFT, 32 x", "SFT, 8 x", "GRPO, 4 x 8"],
    "memory": ["peak memory of GRPO, 2 x 8"],
    "scaling": ["tokens", "group size", "vocabulary", "ranks"],
    "rewards": ["math_answer, 200 answers, to 1,000", "math_answer, 200 answers, to math", "gsm8k, 200"],
    "device": [
        *(
            f"{layout} rows to padded ones, {dtype}"
            for dtype in ("float32", "bfloat16")
            for layout in ("packed", "shared")
        ),
        *(f"one sequence of 2,048 tokens, activations {how}" for how in ("kept", "computed twice")),
    ],
}
CALLS = [["update", "sft", "dpo", "step"], ["memory"], ["scaling"], ["rewards"], ["device"]]


def command(*arguments: str) -> list[str]:
    return [sys.executable, str(SCRIPTS / "benchmark.py"), *arguments]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, list[dict[str, Any]]]]:
    """What each call printed and the rows it wrote; the calls run side by side."""
    folder = tmp_path_factory.mktemp("benchmark")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    started = []
    for names in CALLS:
        file = folder / f"{names[0]}.json"
        call = command(*names, "--scale", "toy", "--runs", "1", "--json", str(file))
        pipe = subprocess.PIPE
        started.append((file, subprocess.Popen(call, env=environment, stdout=pipe, stderr=pipe, text=True)))
    found = {}
    for names, (file, process) in zip(CALLS, started, strict=True):
        out, error = process.communicate(timeout=600)
        assert process.returncode == 0, error[-3000:]
        found[names[0]] = (out, json.loads(file.read_text())["rows"])
    return found


@pytest.mark.parametrize("names", CALLS, ids=" ".join)
def test_rows(names: list[str], results: dict[str, tuple[str, list[dict[str, Any]]]]) -> None:
    out, rows = results[names[0]]
    works = [work for name in names for work in WORKS[name]]
    assert len(rows) == len(works)
    for row, work in zip(rows, works, strict=True):
        assert list(row) == ["work", "ours_seconds", "peer_seconds", "ratio", "target"]
        assert row["work"].startswith(work)
        assert row["work"] in out
        numbers = [row[name] for name in list(row)[1:]]
        assert all(math.isfinite(number) and number > 0 for number in numbers)
    for version in ("machine:", "trl 1.16", "torch ", "transformers "):
        assert version in out


def test_targets(results: dict[str, tuple[str, list[dict[str, Any]]]]) -> None:
    rows = [row["target"] for names in CALLS[:2] for row in results[names[0]][1]]
    assert rows == pytest.approx([4, 1.8, 1 / 0.6, 1.5, 1.05, 1.6, *[1 / 1.1] * 4, 1 / 0.6])


def test_packed_rows_are_exact(results: dict[str, tuple[str, list[dict[str, Any]]]]) -> None:
    assert all(row["ratio"] >= 1 for row in results["device"][1][:4])


def test_an_unknown_scale() -> None:
    done = subprocess.run(command("update", "--scale", "huge"), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--scale is 'huge'; allowed: toy, small" in done.stderr


@pytest.fixture
def _scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "benchmarks"]:
        del sys.modules[name]


@pytest.mark.usefixtures("_scripts")
def test_sides_that_do_other_work_are_refused() -> None:
    from benchmarks.measure import check_gradients
    from benchmarks.ours import Ours
    from benchmarks.workloads import SCALES, demonstrations

    scale = SCALES["toy"]
    one, same, other = (Ours("sft", demonstrations(number, 8, 16, 128), scale) for number in (4, 4, 5))
    check_gradients("work", one, same, 1e-6)
    with pytest.raises(RuntimeError, match="work: the gradients differ by"):
        check_gradients("work", one, other, 1e-2)


@pytest.mark.usefixtures("_scripts")
def test_runs_alternate_and_the_warm_up_is_not_counted() -> None:
    from benchmarks.measure import alternate

    calls: list[str] = []
    first, second = alternate(lambda: calls.append("a"), lambda: calls.append("b"), 2)
    assert "".join(calls) == "ababab"
    assert len(first) == len(second) == 2


@pytest.mark.usefixtures("_scripts")
def test_exponent() -> None:
    from benchmarks.scaling import exponent

    assert exponent([1, 2, 4], [3.0, 12.0, 48.0]) == pytest.approx(2)


@pytest.mark.usefixtures("_scripts")
def test_arithmetic_of_a_step() -> None:
    from benchmarks.ours import fresh_model
    from benchmarks.throughput import flops
    from benchmarks.workloads import SCALES

    model = fresh_model(SCALES["toy"])
    weights = sum(parameter.numel() for parameter in model.parameters())
    assert flops(model, 10) == 60 * weights  # the head is the embedding
    model.requires_grad_(False)
    assert flops(model, 10) == 40 * weights
