"""Code: do the tests of the problem pass?"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from posttrain import sandbox
from posttrain.errors import DataError
from posttrain.reward import Graded
from posttrain.reward.code import passes, prints
from posttrain.sandbox import Limits

_FENCE = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:\n```|\Z)", re.DOTALL | re.IGNORECASE)


def code_tests(
    completion: str,
    tests: str | Sequence[str] | Mapping[str, Sequence[str]],
    entry_point: str = "",
    given: str = "",
    *,
    seconds: float = 6.0,
    memory_bytes: int = 512 << 20,
    partial: bool = False,
) -> float:
    """1.0 where the completion's code passes every test, else 0.0; each in a sandbox without network.

    tests: Python statements (where they define `check`, it is called with the function `entry_point`), a list of
    statements, or {"inputs": [...], "outputs": [...]}: what the program reads, and what it must then print. given: code
    that the completion goes on from, put in front of it unless it defines `entry_point` itself. The code is the
    completion's last ``` fence, else all of it; a thought up to "</think>" is not looked at. partial: the share of
    passed tests of a list. seconds, memory_bytes: for one run; a list of statements runs at once. UserError where no
    sandbox can be made: nothing is run without one.
    """
    sandbox.check()
    limits = Limits(seconds=seconds, memory_bytes=memory_bytes)
    text = completion.rpartition("</think>")[2]
    fences = _FENCE.findall(text)
    code = fences[-1] if fences else text
    if given and (not entry_point or not re.search(rf"^\s*(?:async\s+)?def\s+{re.escape(entry_point)}\b", code, re.M)):
        code = f"{given}{code}"
    if not code.strip():
        return Graded(0.0, None)
    if isinstance(tests, Mapping):
        results = _printed(code, tests, limits, partial)
    elif isinstance(tests, str):
        results = [passes(code, tests, entry_point, limits)]
    elif partial:
        results = [passes(code, one, entry_point, limits) for one in tests]
    else:
        results = [passes(code, "\n".join(tests), entry_point, limits)]
    return Graded(sum(results) / len(results) if partial else all(results), code)


def _printed(code: str, tests: Mapping[str, Sequence[str]], limits: Limits, partial: bool) -> list[bool]:
    """Whether each input gives its output; without `partial`, up to the first that does not."""
    inputs, outputs = tests.get("inputs", ()), tests.get("outputs", ())
    if not inputs or len(inputs) != len(outputs):
        raise DataError(f"code_tests: {len(inputs)} inputs and {len(outputs)} outputs; allowed: as many, 1 or more")
    results: list[bool] = []
    for text, expected in zip(inputs, outputs, strict=True):
        results.append(prints(code, text, expected, limits))
        if not (results[-1] or partial):
            break
    return results


def warm_up() -> None:
    """Try the sandbox once, so that a machine without one says so before the first call."""
    sandbox.check()
