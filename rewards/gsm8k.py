"""GSM8K (arXiv 2110.14168): is the final number right?"""

from __future__ import annotations

import re
from decimal import Decimal

from posttrain.errors import DataError
from posttrain.reward import Graded

_NUMBER = re.compile(
    r"(?P<sign>(?<![\w)])-\$?|\$-)?"  # a minus after a digit, a letter or ")" subtracts
    r"(?P<digits>(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)"
)
_BOXED = re.compile(r"\\boxed\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
_MARK = "####"


def gsm8k(completion: str, answer: str) -> float:
    """1.0 where the completion's final number equals the gold number, else 0.0.

    answer: a GSM8K solution ending in "#### 18", or the number itself. The completion's final number is the first one
    after its last "####"; without one, the last in its last \\boxed{}; else its last number. Thousands separators,
    "$" and trailing zeros do not matter. DataError where `answer` holds no number.
    """
    gold = _final_number(str(answer))
    if gold is None:
        raise DataError(f"gsm8k: the column 'answer' holds no number: {answer!r:.100}")
    found = _final_number(completion)
    return Graded(found == gold, None if found is None else format(found.normalize(), "f"))


def _final_number(text: str) -> Decimal | None:
    text = text.replace("{,}", ",").replace("\\$", "$").replace("−", "-")
    _, mark, tail = text.rpartition(_MARK)
    if mark:
        first = _NUMBER.search(tail)
        return _value(first) if first else None
    boxed = _BOXED.findall(text)
    for part in (*boxed[-1:], text):
        numbers = list(_NUMBER.finditer(part))
        if numbers:
            return _value(numbers[-1])
    return None


def _value(number: re.Match[str]) -> Decimal:
    sign = "-" if number["sign"] else ""
    return Decimal(sign + number["digits"].replace(",", ""))
