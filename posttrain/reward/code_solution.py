"""The sandboxed process that holds a solution: it defines what the code defines, and answers calls of it.

Run as text inside `posttrain.sandbox`, together with `code_values`; it sees neither the tests nor what they expect.
Only plain values cross over (see `code_values`), so that a solution cannot hand over an object that equals everything.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from posttrain.reward.code_values import decode, encode


def main() -> None:
    """First line in: the code. Then a line a call: {"name", "arguments", "keywords"}; a line each out."""
    calls = os.fdopen(os.dup(0), "r", encoding="utf-8")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)

    def say(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    names: dict[str, Any] = {"__name__": "solution"}
    sys.setrecursionlimit(20_000)
    try:
        exec(compile(json.loads(calls.readline()), "solution", "exec"), names)
        say({"names": [name for name, value in names.items() if callable(value)]})
    except BaseException as error:
        say({"error": type(error).__name__})
        return
    for line in calls:
        call = json.loads(line)
        try:
            arguments, keywords = decode(call["arguments"]), decode(call["keywords"])
            say({"value": encode(names[call["name"]](*arguments, **keywords))})
        except BaseException as error:
            say({"error": type(error).__name__})
