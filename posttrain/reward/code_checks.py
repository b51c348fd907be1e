"""The sandboxed process that holds the tests: it calls the solution, in the other process, as if it were here.

Run as text inside `posttrain.sandbox`, together with `code_values`. No line of the solution runs in it, so that what it
says is what the tests say.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from posttrain.reward.code_values import decode, encode


def main() -> None:
    """Calls go out on standard output and answers come in on standard input; "passed" on standard error is the verdict.

    Descriptor 3 holds {"code", "tests", "entry_point"}.
    """
    with os.fdopen(3, encoding="utf-8") as file:
        given = json.load(file)
    answers = os.fdopen(os.dup(0), "r", encoding="utf-8")
    calls = os.fdopen(os.dup(1), "w", encoding="utf-8")
    verdict = os.fdopen(os.dup(2), "w", encoding="utf-8")
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)

    def ask(question: Any) -> dict[str, Any]:
        calls.write(json.dumps(question) + "\n")
        calls.flush()
        answer: dict[str, Any] = json.loads(answers.readline())
        if "error" in answer:
            raise RuntimeError(f"the solution raised {answer['error']}")
        return answer

    def remote(name: str) -> Any:
        def call(*arguments: Any, **keywords: Any) -> Any:
            asked = {"name": name, "arguments": encode(arguments), "keywords": encode(keywords)}
            return decode(ask(asked)["value"])

        return call

    names: dict[str, Any] = {name: remote(name) for name in ask(given["code"])["names"]}
    if given["entry_point"]:
        names["candidate"] = names[given["entry_point"]]
    exec(compile(given["tests"], "tests", "exec"), names)
    if given["entry_point"] and "check" in names:
        names["check"](names[given["entry_point"]])
    verdict.write("passed")
    verdict.flush()
    sys.stdout.flush()
