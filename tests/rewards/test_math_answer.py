"""Equality as mathematics, with math-verify's own time limits off and the worker's deadline in their place."""

from __future__ import annotations

import pytest

from posttrain.catalog import find
from posttrain.reward import Grader, RewardSpec
from posttrain.trajectory import StopReason, Trajectory, Turn

math_answer = find("rewards", "math_answer")


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("\\boxed{0.5}", "\\frac{1}{2}"),
        ("so the answer is $\\frac12$.", "0.5"),
        ("\\boxed{(x+1)^2}", "x^2+2x+1"),
        ("\\boxed{\\left( 3, \\frac{\\pi}{2} \\right)}", "\\left( 3, \\frac{\\pi}{2} \\right)"),
        ("\\boxed{1,000}", "1000"),
        ("\\boxed{50\\%}", "\\frac{1}{2}"),
        ("\\boxed{\\text{Evelyn}}", "\\text{Evelyn}"),
        ("\\boxed{p - q}", "$p-q$"),
        ("\\boxed{7}", "We get \\boxed{7}"),
        ("\\boxed{1} no, \\boxed{2}", "2"),
        ("<think>\\boxed{3}</think> It is \\boxed{4}", "4"),
        ("The answer is 12", "12"),
    ],
)
def test_equal(completion: str, answer: str) -> None:
    assert math_answer(completion, answer) == 1.0


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("\\boxed{0.4}", "\\frac{1}{2}"),
        ("\\boxed{1,2,3,4}", "3"),
        ("$3$ or $4$", "3"),
        ("\\boxed{2} no, \\boxed{1}", "2"),
        ("<think>\\boxed{4}</think> It is \\boxed{3}", "4"),
        ("<think>\\boxed{4}</think>", "4"),
        ("I do not know", "12"),
    ],
)
def test_not_equal(completion: str, answer: str) -> None:
    assert math_answer(completion, answer) == 0.0


def test_boxed_only() -> None:
    assert math_answer("The answer is $12$", "12", boxed=True) == 0.0
    assert math_answer("\\boxed{12} in words: 13", "12", boxed=True) == 1.0


def test_a_gold_answer_that_cannot_be_read_is_ungraded() -> None:
    assert math_answer("\\boxed{12}", "") is None


def test_expressions_too_large_to_compute_cost_only_themselves() -> None:
    def played(text: str) -> Trajectory:
        return Trajectory("p", 0, "q", {"answer": "1"}, (Turn((1,), (2,), (0.0,), StopReason.STOP, 0, text),))

    trajectories = [played(text) for text in ["\\boxed{1}", "\\boxed{9^{9^{9^9}}}", "\\boxed{2}", "\\boxed{((20!)!)!}"]]
    with Grader([RewardSpec("math_answer")], workers=2, deadline_seconds=2.0) as grader:
        grader.grade(trajectories)
    assert [t.reward for t in trajectories if t.reward is not None][:1] == [1.0]
    assert trajectories[2].reward == 0.0
    assert trajectories[1].solved is not True
    assert trajectories[3].solved is not True
