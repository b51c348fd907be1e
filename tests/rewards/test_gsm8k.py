"""The final number of a GSM8K solution."""

from __future__ import annotations

import pytest

from posttrain.catalog import find
from posttrain.errors import DataError

gsm8k = find("rewards", "gsm8k")


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("He pays 2 * 9 = <<2*9=18>>18.\n#### 18", "16 - 7 = 9\n#### 18"),
        ("18", "18"),
        ("It costs $1,234.50.", "1234.5"),
        ("#### $70,000", "#### 70,000"),
        ("#### 5 apples, not 7", "5"),
        ("So \\boxed{1{,}000} of 2000 people", "1000"),
        ("\\boxed{3} and then \\boxed{x = 4 \\text{ m}}", "4"),
        ("The change is -$5", "-5"),
        ("The change is $-5", "-5"),
        ("The change is −5", "-5"),
        ("10-5", "5"),
        ("7.00", "7"),
        (".5", "0.5"),
        ("the answer is 42.", "42"),
        ("the answer is 42", 42),
        ("#### 6\nor rather #### 7", "7"),
    ],
)
def test_right(completion: str, answer: str) -> None:
    assert gsm8k(completion, answer) == 1.0


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("18 or 19", "18"),
        ("#### none of the 18", "17"),
        ("18 ####", "18"),
        ("-18", "18"),
        ("1,2,3", "123"),
        ("eighteen", "18"),
        ("\\boxed{17} 18", "18"),
        ("1.8", "18"),
        ("", "18"),
    ],
)
def test_wrong(completion: str, answer: str) -> None:
    assert gsm8k(completion, answer) == 0.0


def test_gold_without_a_number_is_a_mistake_in_the_data() -> None:
    with pytest.raises(DataError, match="no number: 'eighteen'"):
        gsm8k("18", "eighteen")
