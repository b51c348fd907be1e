"""Completions on disk: what a kill leaves is gone on with, and what has changed is played again."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from posttrain.data.examples import Example
from posttrain.evaluation.command import run_evaluations
from posttrain.evaluation.evaluation import Completed
from posttrain.evaluation.model import NamedModel
from posttrain.evaluation.samples import Played, Samples
from posttrain.trajectory import StopReason

ITEMS = [
    Example(f"i#{number}", ({"role": "user", "content": f"{number}?"},), columns={"answer": number})
    for number in range(4)
]


def played(items: list[Example]) -> Played:
    made = (Completed(one.id, f"{one.id} ¿\n", 3, 1.0, True, StopReason.STOP, prompt=one.prompt) for one in items)
    return Played(tuple(made), 0.5)


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    first = Samples(tmp_path, "a/b", {"seed": 1})
    first.add(0, ITEMS[:2], played(ITEMS[:2]))
    second = Samples(tmp_path, "a/b", {"seed": 1})
    assert second.path == first.path
    assert second.find(0, ITEMS[:2]) == played(ITEMS[:2])
    assert second.find(2, ITEMS[2:]) is None
    assert second.num_completions == 2


def test_other_identities_and_other_items_find_nothing(tmp_path: Path) -> None:
    Samples(tmp_path, "b", {"seed": 1}).add(0, ITEMS[:2], played(ITEMS[:2]))
    assert Samples(tmp_path, "b", {"seed": 2}).find(0, ITEMS[:2]) is None
    changed = [Example(ITEMS[0].id, ITEMS[0].prompt, columns={"answer": 7}), ITEMS[1]]
    assert Samples(tmp_path, "b", {"seed": 1}).find(0, changed) is None
    assert Samples(tmp_path, "b", {"seed": 1}).find(0, ITEMS) is None


@pytest.mark.parametrize("lost", [1, 20, 60, 150, 400])
def test_a_cut_file_goes_on_after_its_last_whole_chunk(tmp_path: Path, lost: int) -> None:
    file = Samples(tmp_path, "b", {})
    file.add(0, ITEMS[:2], played(ITEMS[:2]))
    whole = file.path.stat().st_size
    file.add(2, ITEMS[2:], played(ITEMS[2:]))
    content = file.path.read_bytes()
    file.path.write_bytes(content[: max(whole, len(content) - lost)])
    again = Samples(tmp_path, "b", {})
    assert again.find(0, ITEMS[:2]) is not None
    assert again.find(2, ITEMS[2:]) is None
    again.add(2, ITEMS[2:], played(ITEMS[2:]))
    assert file.path.read_bytes() == content


def test_a_file_that_was_cut_before_its_first_line_begins_anew(tmp_path: Path) -> None:
    path = Samples(tmp_path, "b", {"seed": 1}).path
    head = path.read_text()
    for left in ("", head[:5], head.removesuffix("\n")):
        path.write_text(left)
        samples = Samples(tmp_path, "b", {"seed": 1})
        samples.forget()
        samples.add(0, ITEMS[:2], played(ITEMS[:2]))
        assert path.read_text().startswith(head)
        assert Samples(tmp_path, "b", {"seed": 1}).find(0, ITEMS[:2]) == played(ITEMS[:2])


def test_forgotten_completions_are_gone(tmp_path: Path) -> None:
    file = Samples(tmp_path, "b", {})
    file.add(0, ITEMS, played(ITEMS))
    file.forget()
    assert Samples(tmp_path, "b", {}).num_completions == 0


SIZE = 700
SETTINGS = ("dataset=chain_sum", f"size={SIZE}", "max_tokens=16")


def test_a_killed_evaluation_ends_with_the_same_results(
    tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed at two random moments, then left alone: the result file is that of an undisturbed one, byte for byte."""
    draw = random.Random(5)
    folder = tmp_path / "killed"
    for _ in range(2):
        process = _start(folder, model)
        deadline = time.monotonic() + 120
        while not any('"chunk"' in file.read_text() for file in folder.glob("samples/*")):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(draw.uniform(0.0, 0.5))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert not (folder / "out.json").exists()
    found = _evaluate(folder, model)
    assert "--fresh plays them again" in capsys.readouterr().out
    assert found == _evaluate(tmp_path / "whole", model)
    assert "--fresh plays them again" not in capsys.readouterr().out
    assert found.count(b'"completion":') == SIZE


def _start(folder: Path, model: str) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    files = ["--output", str(folder / "samples"), "--json", str(folder / "out.json")]
    command = [sys.executable, "-m", "posttrain", "eval", "reasoning_gym", *SETTINGS, "--model", model, *files]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def _evaluate(folder: Path, model: str) -> bytes:
    folder.mkdir(exist_ok=True)
    file, named = folder / "out.json", NamedModel(model)
    run_evaluations(["reasoning_gym"], SETTINGS, model=named, output=folder / "samples", json_file=file)
    return file.read_bytes()
