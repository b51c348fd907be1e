"""Grades code by its tests, in sandboxes: tests that call it, and tests that feed it and read what it prints."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from posttrain import sandbox
from posttrain.sandbox import Limits

_HERE = Path(__file__).parent
_IMPORT = "from posttrain.reward.code_values import decode, encode\n"
_FUTURE = "from __future__ import annotations\n"


def passes(code: str, tests: str, entry_point: str = "", limits: Limits | None = None) -> bool:
    """Whether `tests` run to their end, where calls of what `code` defines are answered from another sandbox.

    tests: statements, assertions among them; where they define `check`, it is called with the function `entry_point`.
    Only plain values cross between the two (`code_values`); arguments that a function changes in place stay unchanged
    in the tests. Errors as `sandbox.check`.
    """
    limits = limits or Limits()
    sandbox.check()
    given = sandbox.in_memory(json.dumps({"code": code, "tests": tests, "entry_point": entry_point}).encode())
    calls_out, calls_in = os.pipe()
    answers_out, answers_in = os.pipe()
    verdict_out, verdict_in = os.pipe()
    started = []
    try:
        started.append(sandbox.start(_program("code_solution"), limits, stdin=calls_out, stdout=answers_in))
        started.append(
            sandbox.start(
                f"import os; os.dup2({given}, 3)\n{_program('code_checks')}",
                limits,
                stdin=answers_out,
                stdout=calls_in,
                stderr=verdict_in,
                keep=(given,),
            )
        )
    finally:
        for descriptor in (given, calls_out, calls_in, answers_out, answers_in, verdict_in):
            os.close(descriptor)
    try:
        return sandbox.read(verdict_out, time.monotonic() + limits.seconds, limits.output_bytes) == b"passed"
    finally:
        os.close(verdict_out)
        for process in started:
            sandbox.stop(process)


def prints(code: str, text: str, expected: str, limits: Limits | None = None) -> bool:
    """Whether the program `code`, fed with `text`, ends well and prints `expected` (line ends may be blank)."""
    ran = sandbox.run(code, text, limits)
    return ran.status == 0 and _lines(ran.output) == _lines(expected)


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip().splitlines()]


def _program(name: str) -> str:
    """One text of the values' module and of `name`, which ends in its main."""
    values, own = ((_HERE / f"{part}.py").read_text().replace(_FUTURE, "") for part in ("code_values", name))
    return f"{values}\n{own.replace(_IMPORT, '')}\nmain()\n"
