"""Tool calls: does the completion call the right tools with the right arguments?"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from posttrain.environments.tool_calls import BLOCK, read_call
from posttrain.reward import Graded


def tool_calls(
    completion: str, expected_calls: Sequence[Mapping[str, Any]], *, ordered: bool = False, partial: bool = False
) -> float:
    """1.0 where the completion's calls are `expected_calls`, each {"name": ..., "arguments": {...}}, else 0.0.

    Calls are JSON objects between <tool_call> and </tool_call>, as the chat templates of Qwen and Hermes write them; a
    completion without any calls none. Arguments are equal as JSON values. ordered: in the same order. partial: instead
    of 0.0, the share of right calls among the longer of both lists. A call that is not such an object is a wrong call.
    """
    found = [_call(text) for text in BLOCK.findall(completion)]
    wanted = [_canonical(call["name"], call.get("arguments") or {}) for call in expected_calls]
    said = json.dumps(found) if found else None
    if ordered:
        right = sum(ours == theirs for ours, theirs in zip(found, wanted, strict=False))
    else:
        left = list(wanted)
        right = 0
        for call in found:
            if call in left:
                left.remove(call)
                right += 1
    longest = max(len(found), len(wanted))
    share = right / longest if longest else 1.0
    return Graded(share if partial else share == 1.0, said)


def _call(text: str) -> str | None:
    try:
        call = read_call(text)
    except ValueError:
        return None
    return _canonical(call.name, call.arguments)


def _canonical(name: str, arguments: Any) -> str:
    return json.dumps([name, arguments], sort_keys=True)
