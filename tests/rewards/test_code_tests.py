"""Code graded by tests: right and wrong solutions, and solutions that try to pass without being right."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain import catalog
from posttrain.errors import DataError
from posttrain.reward.code_values import decode, encode

TESTS = ["assert add(1, 2) == 3", "assert add(-1, 1) == 0", "assert add([1], [2]) == [1, 2]"]
RIGHT = "def add(a, b):\n    return a + b"


def score(completion: str, tests: Any = TESTS, *inputs: Any, **settings: Any) -> float:
    return float(catalog.find("rewards", "code_tests")(completion, tests, *inputs, seconds=3.0, **settings))


@pytest.mark.parametrize(
    "completion",
    [
        RIGHT,
        f"<think>Shall I?</think>Here it is:\n```python\n{RIGHT}\n```\nIt adds.",
        f"```python\ndef add(a, b): return 0\n```\nBetter:\n```py\n{RIGHT}\n```",
        f"print('noise')\nimport sys\nsys.stderr.write('more')\n{RIGHT}",
        f"```python\n{RIGHT}",
    ],
)
def test_right_code_passes(completion: str) -> None:
    assert score(completion) == 1.0


ATTACKS = {
    "leaves": "import sys\nsys.exit(0)",
    "leaves at once": "import os\nos._exit(0)",
    "equals everything": "class E:\n    def __eq__(self, other): return True\ndef add(a, b): return E()",
    "a number that equals everything": (
        "class E(int):\n    def __eq__(self, other): return True\n    __hash__ = int.__hash__\n"
        "def add(a, b): return E(7)"
    ),
    "says that it passed": (
        "import os\nfor n in range(64):\n    try: os.write(n, b'passed')\n    except OSError: pass\nos._exit(0)"
    ),
    "answers before it is asked": (
        "import os\nfor n in range(3, 64):\n    try: os.write(n, b'{\"value\": null}\\n' * 9)\n    except OSError: pass"
    ),
    "breaks assertions": "import builtins\nbuiltins.AssertionError = None\ndef add(a, b): return 3",
    "never ends": "def add(a, b):\n    while True: pass",
    "recurses": "def add(a, b): return add(a, b)",
    "fills the memory": "def add(a, b): return [0] * 10**12",
    "looks for the tests": (
        "import glob, os\ndef add(a, b):\n    return [open(p).read() for p in glob.glob('/proc/*/cmdline')] and 3"
    ),
    "is not Python": "def add(a, b) return a + b",
    "is empty": "",
}


@pytest.mark.parametrize("code", ATTACKS.values(), ids=ATTACKS)
def test_code_that_is_not_right_does_not_pass(code: str) -> None:
    assert score(code) == 0.0


def test_a_list_of_tests_may_pay_in_parts() -> None:
    assert score("def add(a, b): return 3", partial=True) == pytest.approx(1 / 3)


def test_a_check_function_is_called_with_what_the_prompt_began() -> None:
    begun = (
        'from typing import List\n\n\ndef near(numbers: List[float], limit: float) -> bool:\n    """Are any two?"""\n'
    )
    tests = (
        "def check(candidate):\n    assert candidate([1.0, 1.2], 0.5) is True\n"
        "    assert not candidate([1.0, 9.0], 0.5)\n"
    )
    rest = "    return any(abs(a - b) < limit for i, a in enumerate(numbers) for b in numbers[:i])\n"
    assert score(rest, tests, "near", begun) == 1.0
    assert score(f"```python\n{begun}{rest}```", tests, "near", begun) == 1.0
    assert score("    return True\n", tests, "near", begun) == 0.0


def test_programs_are_fed_and_read() -> None:
    tests = {"inputs": ["4\n", "5"], "outputs": ["8\n", "10"]}
    assert score("print(int(input()) * 2)", tests) == 1.0
    assert score("print(8)", tests) == 0.0
    assert score("print(8)", tests, partial=True) == 0.5
    assert score("print(int(input()) * 2); raise SystemExit(1)", tests) == 0.0
    with pytest.raises(DataError, match="1 inputs and 2 outputs"):
        score("print(8)", {"inputs": ["4"], "outputs": ["8", "9"]})


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=20)
    | st.binary(max_size=20)
    | st.complex_numbers(allow_nan=False)
)


def _containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    keys = st.text(max_size=5) | st.integers()
    return st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(keys, inner)


PLAIN = st.recursive(SCALARS, _containers, max_leaves=12)


@given(value=PLAIN)
def test_plain_values_cross_exactly(value: Any) -> None:
    found = decode(encode(value))
    assert found == value
    assert repr(found)[:10_000] == repr(value)[:10_000]  # True is not 1


@given(value=st.sets(st.integers()) | st.frozensets(st.text(max_size=3)))
def test_sets_cross_too(value: Any) -> None:
    found = decode(encode(value))
    assert (type(found), found) == (type(value), value)


def test_other_objects_do_not_cross() -> None:
    with pytest.raises(TypeError, match="cannot leave the sandbox"):
        encode(object())
