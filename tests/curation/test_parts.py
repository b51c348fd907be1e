"""A long command that is killed: what it has made is not made again, and what others have made is not taken."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from posttrain.config import load_recipe
from posttrain.curation.parts import in_parts
from posttrain.errors import RecipeError
from posttrain.rollout.collector import Collector
from posttrain.trainer.label_steps import label_steps


class Killed(BaseException):
    """What no command catches."""


class Maker:
    """Squares, and is killed when it is asked for the square of one of `deadly`."""

    def __init__(self, *deadly: int) -> None:
        self.deadly, self.asked = deadly, list[int]()

    def __call__(self, numbers: Sequence[int]) -> list[int]:
        self.asked += numbers
        if {*numbers} & {*self.deadly}:
            raise Killed
        return [number**2 for number in numbers]


@pytest.mark.parametrize("cut", [0, 3])
def test_what_was_made_before_a_kill_is_not_made_again(tmp_path: Path, cut: int) -> None:
    output, numbers = tmp_path / "out.jsonl", list(range(7))
    with pytest.raises(Killed):
        in_parts(output, {"seed": 0}, numbers, Maker(5), 2)
    (left,) = tmp_path.iterdir()
    left.write_bytes(left.read_bytes()[: -cut or None])
    second = Maker()
    assert in_parts(output, {"seed": 0}, numbers, second, 2) == [number**2 for number in numbers]
    assert second.asked == numbers[2 if cut else 4 :]
    assert not list(tmp_path.iterdir())


def test_what_others_have_left_is_not_taken(tmp_path: Path) -> None:
    output, numbers = tmp_path / "out.jsonl", [1, 2, 3]
    with pytest.raises(Killed):
        in_parts(output, {"seed": 0}, numbers, Maker(3), 2)
    (left,) = tmp_path.iterdir()
    before = left.read_bytes()
    for made_by, asked, size in (({"seed": 1}, numbers, 2), ({"seed": 0}, [1, 2, 4], 2), ({"seed": 0}, numbers, 1)):
        with pytest.raises(RecipeError, match=r"\.out\.jsonl\.parts: was left by a command that had other data"):
            in_parts(output, made_by, asked, Maker(), size)
    assert left.read_bytes() == before
    assert in_parts(output, {"seed": 0}, numbers, Maker(1), 2) == [1, 4, 9]


def test_labels_of_steps_after_a_kill_are_those_without_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = ["rollout.group_size=3", "rollout.max_tokens=6"]
    recipe = load_recipe("tiny/grpo", overrides).recipe
    label_steps(recipe, tmp_path / "whole.jsonl", count=20, samples=2, separator="5")
    collect, calls = Collector.collect, list[int]()

    def killed(self: Collector, examples: Sequence[object], *rest: object, **more: object) -> object:
        calls.append(len(examples))
        if len(calls) == 3:
            raise Killed
        return collect(self, examples, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Collector, "collect", killed)
    output = tmp_path / "killed.jsonl"
    with pytest.raises(Killed):
        label_steps(recipe, output, count=20, samples=2, separator="5")
    assert not output.exists()
    label_steps(recipe, output, count=20, samples=2, separator="5")
    assert calls[3] == 4, "the first 16 prompts are not played again"
    assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert len([json.loads(line) for line in output.read_text().splitlines()]) > 20
