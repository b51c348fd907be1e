"""Equality as mathematics, with math-verify's own time limits off and the worker's deadline in their place."""

from __future__ import annotations

import pytest
from antlr4.atn.PredictionMode import PredictionMode
from latex2sympy2_extended import latex2sympy2
from math_verify import verify

from posttrain.catalog import find
from posttrain.errors import RecipeError
from posttrain.reward import Grader, RewardSpec
from posttrain.reward.mathematics import parse_answer, plain_number, too_large
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
        ("\\boxed{0.333333}", "\\frac{1}{3}"),
        ("\\boxed{3.}", "3"),
        ("\\boxed{.5}", "0.50"),
        ("\\boxed{15 \\text{ cm}^2}", "15\\mbox{ cm}^2"),
        ("\\boxed{52}", "52_8"),
        ("\\boxed{(0,9)\\cup(9,36)}", "(0,9) \\cup (9,36)"),
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
        ("\\boxed{.0000673}", ".0000672"),  # alike to six places, and the gold answer has more
        ("\\boxed{52_9}", "52_8"),
        ("\\boxed{5 \\text{ cm} \\cdot 2^{5}}", "5"),
        ("\\boxed{6 \\(5\\)}", "5"),
        ("\\boxed{5 \\} 6}", "5"),
        ("\\boxed{\uff15}", "5"),
        ("The answer is $\uff15$", "5"),
        ("\\boxed{[2, 3]}", "5"),
        ("\\boxed{x^2 + 1}", "x^2 + 1.001"),
    ],
)
def test_not_equal(completion: str, answer: str) -> None:
    assert math_answer(completion, answer) == 0.0


@pytest.mark.parametrize(
    ("answer", "large"),
    [
        ("9^{9^{9^9}}", True),
        ("2^3^4^5", True),
        ("((20!)!)!", True),
        ("(" * 51 + "4" + ")" * 51, True),
        ("x^{2^{n}} + y^{2^{n}}", False),
        ("\\frac{(n+1)!}{n!}", False),
        ("2^5 + 3^5 + 4^5 + 5^5", False),
        ("\\sqrt{1 + \\sqrt{2 + \\sqrt{3 + \\sqrt{4}}}}", False),
    ],
)
def test_answers_made_to_be_computed_for_ever(answer: str, large: bool) -> None:
    assert too_large(answer) is large


def test_boxed_only() -> None:
    assert math_answer("The answer is $12$", "12", boxed=True) == 0.0
    assert math_answer("\\boxed{12} in words: 13", "12", boxed=True) == 1.0


@pytest.mark.parametrize(
    ("completion", "answer", "strict", "usual", "tolerant"),
    [
        ("\\boxed{0.333333}", "\\frac{1}{3}", 0, 1, 1),
        ("\\boxed{1.414214}", "\\sqrt{2}", 0, 1, 1),
        ("It is $4$.", "4", 0, 1, 1),
        ("\\boxed{2t + 1}", "2x + 1", 0, 0, 1),
        ("\\boxed{1 < x < 2}", "(1, 2)", 0, 0, 1),
        ("\\boxed{2x + 1}", "1 + 2x", 1, 1, 1),
        ("\\boxed{2x + 3}", "2y + 1", 0, 0, 0),
    ],
)
def test_modes(completion: str, answer: str, strict: int, usual: int, tolerant: int) -> None:
    found = [math_answer(completion, answer, mode=mode) for mode in ("strict", "usual", "tolerant")]
    assert found == [strict, usual, tolerant]


@pytest.mark.parametrize(("found", "right"), [("3.1", 0), ("3.14", 1), ("\\frac{22}{7}", 1), ("\\pi", 1), ("-3.14", 0)])
def test_tolerance(found: str, right: int) -> None:
    assert math_answer(f"\\boxed{{{found}}}", "\\pi", tolerance=0.005) == right
    assert math_answer(f"\\boxed{{{found}}}", "3.14159", tolerance=0.005) == right
    assert math_answer(f"\\boxed{{{found}}}", "\\pi") == (found == "\\pi")
    with pytest.raises(RecipeError, match="tolerance is 1"):
        math_answer("\\boxed{1}", "1", tolerance=1.0)


@pytest.mark.parametrize(
    ("found", "answer", "right"),
    [
        ("5 \\text{ cm}", "5 \\mbox{ cm}", 1),
        ("5\\,\\mathrm{cm}", "5 \\text{ cm}", 1),
        ("5 \\text{ inch}", "5 \\text{ cm}", 0),
        ("5", "5 \\text{ cm}", 0),
        ("5 \\text{ cm}", "5", 1),
        ("15 \\text{ cm}^3", "15 \\mbox{ cm}^2", 0),
        ("90^\\circ", "90^\\circ", 1),
        ("90", "90^\\circ", 0),
        ("6 \\text{ apples}", "6 \\text{ apple}", 1),
    ],
)
def test_units(found: str, answer: str, right: int) -> None:
    assert math_answer(f"\\boxed{{{found}}}", answer, units="match") == right


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12", "12"), ("-1,234,567", "-1234567"), ("10,\\!080", "10080"), ("1{,}000", "1000"), ("0.50", "1/2"),
        (".5", "1/2"), ("-3/4", "-3/4"), ("\\dfrac{6}{8}", "3/4"), ("1,2", None), ("1/0", None), ("\uff11", None),
        ("1e5", None), ("", None), ("--1", None), ("9" * 31, None), ("50\\%", None), ("\\frac12", None),
    ],
)  # fmt: skip
def test_plain_numbers(text: str, value: str | None) -> None:
    found = plain_number(text)
    assert (None if found is None else str(found.value)) == value


def test_what_goes_before_math_verify_never_contradicts_it() -> None:
    """Every pair of these answers, graded with and without the tests that stand in front."""
    answers = [
        "1/2",
        "0.5",
        "\\frac{3}{4}",
        "x + 1",
        "1 + x",
        "x^2",
        "\\sqrt{2}",
        "2^{0.5}",
        "1.414214",
        "(1,2)",
        "[0,1]",
    ]
    answers += [
        "\\{1,2\\}",
        "1 \\pm 2",
        "3 + 4i",
        "5",
        "\\text{east}",
        "\\frac{x^2-1}{x-1}",
        "\\sin^2 x + \\cos^2 x",
        "1",
    ]
    for gold in answers:
        for found in answers:
            alone = verify(parse_answer(gold), parse_answer(found), timeout_seconds=None)
            assert math_answer(f"\\boxed{{{found}}}", gold) == float(alone), (gold, found)


def test_the_parser_s_two_stages_build_the_same_tree() -> None:
    parse_answer("x")  # after this the package makes parsers of two stages

    def tree(text: str, whole: bool) -> str:
        parser = latex2sympy2._Latex2Sympy(None, True).create_parser(text)
        if whole:
            parser._interp.predictionMode = PredictionMode.LL
            return str(type(parser).__base__.math(parser).toStringTree(recog=parser))
        return str(parser.math().toStringTree(recog=parser))

    for text in [
        "(3, \\frac{\\pi}{2})",
        "[0,1)",
        "x^{5} - 2x + 1",
        "\\begin{pmatrix} 1 & 2 \\\\ 3 & 4 \\end{pmatrix}",
        "1, -2",
    ]:
        assert tree(text, whole=False) == tree(text, whole=True)


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
