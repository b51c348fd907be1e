"""Figures of an evaluation from known outcomes."""

from __future__ import annotations

import json
from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from posttrain.evaluation.evaluation import Completed, Evaluation
from posttrain.evaluation.statistics import bootstrap_mean, wilson
from posttrain.evaluation.table import results_table
from posttrain.trajectory import StopReason


def _evaluation(outcomes: list[list[bool | None]]) -> Evaluation:
    """outcomes: of each item's completions; ungraded ones were cut off."""
    completions = tuple(
        Completed(
            id=f"items#{index}",
            completion="x",
            num_tokens=3,
            reward=None if solved is None else float(solved),
            solved=solved,
            stop_reason=StopReason.LENGTH if solved is None else StopReason.STOP,
            error="reward gold: deadline" if solved is None else None,
        )
        for index, item in enumerate(outcomes)
        for solved in item
    )
    return Evaluation("tiny", len(outcomes[0]), completions, seconds=2.0)


def test_one_sample_an_item_has_wilsons_interval_over_the_graded() -> None:
    result = _evaluation([[True], [False], [None], [True], [False], [False]])
    assert (result.n, result.num_solved, result.num_ungraded, result.num_truncated) == (6, 2, 1, 1)
    assert result.pass_rate == pytest.approx(2 / 5)
    assert result.interval == wilson(2, 5)
    assert result.num_tokens == 18
    assert result.first_error == "reward gold: deadline"
    assert result.pass_at == {1: pytest.approx(2 / 5)}


def test_several_samples_are_clustered_by_item() -> None:
    result = _evaluation([[True, False, True, True], [False] * 4, [None, None, True, False], [None] * 4])
    assert result.counts == [(4, 3), (4, 0), (2, 1), (0, 0)]
    assert result.pass_rate == pytest.approx((3 / 4 + 0 + 1 / 2) / 3)
    assert result.interval == bootstrap_mean([3 / 4, 0, 1 / 2])
    assert result.pass_at == {
        1: pytest.approx(result.pass_rate),
        2: pytest.approx((1 + 0 + 1) / 3),
        4: pytest.approx((1 + 0) / 2),
    }


@pytest.mark.parametrize("solved", [True, False])
def test_an_interval_has_width_where_all_agree(solved: bool) -> None:
    assert _evaluation([[solved] * 4] * 10).interval == wilson(10 * solved, 10)


def test_correlated_samples_do_not_narrow_the_interval() -> None:
    low, high = _evaluation([[True] * 8] * 20 + [[False] * 8] * 20).interval
    assert high - low > 0.25  # 320 independent samples would give 0.11


def test_json_holds_figures_and_completions() -> None:
    result = _evaluation([[True, False], [None, False]])
    content = json.loads(json.dumps(result.to_json()))
    assert {key: content[key] for key in ("benchmark", "n", "samples", "num_solved", "num_ungraded")} == {
        "benchmark": "tiny",
        "n": 2,
        "samples": 2,
        "num_solved": 1,
        "num_ungraded": 1,
    }
    assert content["interval"] == list(result.interval)
    assert content["pass@1"] == content["avg@2"] == pytest.approx(0.25)
    assert content["completions"][2] == {
        "id": "items#1",
        "completion": "x",
        "num_tokens": 3,
        "reward": None,
        "solved": None,
        "stop_reason": "length",
        "error": "reward gold: deadline",
        "prompt": "",
        "answer": None,
        "extracted": None,
        "counts": {},
        "part": "",
    }


def test_nothing_graded_has_no_rate() -> None:
    with pytest.raises(ValueError, match="no item"):
        _ = _evaluation([[None]]).pass_rate


def test_parts_have_rates_of_their_own() -> None:
    whole = _evaluation([[True], [False], [None], [True]])
    names = ("click", "click", "type", "click")
    result = replace(
        whole, completions=tuple(replace(one, part=name) for one, name in zip(whole.completions, names, strict=True))
    )
    assert not whole.parts
    assert "parts" not in whole.summary()
    assert result.summary()["parts"] == {
        "click": {"n": 3, "num_solved": 2, "num_ungraded": 0, "pass_rate": 2 / 3, "interval": list(wilson(2, 3))},
        "type": {"n": 1, "num_solved": 0, "num_ungraded": 1, "pass_rate": None, "interval": None},
    }
    console = Console(width=100, file=StringIO())
    console.print(results_table([result]))
    lines = [line.split() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]
    assert [line[0] for line in lines] == ["benchmark", "tiny", "click", "type"]
    assert lines[2][1:3] == ["3", "66.7%"]
    assert lines[3][1:] == ["1", "all", "ungraded"]


@pytest.mark.parametrize(
    ("answers", "gold", "solved"),
    [
        (["b", "a", "a"], "a", True),
        (["a", "b", "b"], "a", False),
        (["a", "b", None], "a", True),  # of equals the first
        (["b", "a", None], "a", False),
        ([None, None, "a"], "a", True),  # no answer, no vote
        ([None, None, None], "a", False),
    ],
)
def test_a_majority_is_counted_by_hand(answers: list[str | None], gold: str, solved: bool) -> None:
    own = [
        Completed(f"i{item}", "x", 1, 0.0, one == gold, StopReason.STOP, answer=one, extracted=one is not None)
        for item, votes in enumerate((answers, [gold] * 3))
        for one in votes
    ]
    ungraded = [Completed("i2", "x", 1, None, None, StopReason.STOP, answer=None, extracted=None)] * 3
    assert Evaluation("tiny", 3, (*own, *ungraded), 1.0).majority == (1 + solved) / 2
