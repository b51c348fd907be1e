"""A demonstration in a model's answer: a task and steps as JSON, made into a conversation.

    {"task": ..., "steps": [{"observation": ..., "thought": ... (or without), "action": ...}, ...]}

The user states the task with the first observation, and each further observation; the assistant thinks and acts.
"""

from __future__ import annotations

import json
import re
from typing import Any

SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["task", "steps"],
    "properties": {
        "task": {"type": "string", "pattern": r"\S"},
        "steps": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["observation", "action"],
                "properties": {
                    "observation": {"type": "string", "pattern": r"\S"},
                    "thought": {"type": "string"},
                    "action": {"type": "string", "pattern": r"\S"},
                },
            },
        },
    },
}


class NoDemonstrationError(ValueError):
    """An answer that holds no demonstration, and why."""


def messages_of(answer: str, action: re.Pattern[str] | None = None) -> list[dict[str, str]]:
    """The conversation in an answer. NoDemonstrationError where there is none, or an action does not match `action`.

    The JSON object may stand in a block of code or behind other words; what follows it is left out.
    """
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match

    start = answer.find("{")
    if start < 0:
        raise NoDemonstrationError("no JSON object")
    try:
        found, _ = json.JSONDecoder().raw_decode(answer, start)
    except json.JSONDecodeError as error:
        raise NoDemonstrationError(f"not JSON: {error.msg} at character {error.pos}") from error
    except (RecursionError, ValueError) as error:  # nested too deep, a number of thousands of digits
        raise NoDemonstrationError(f"not JSON that can be read: {error}") from error
    wrong = best_match(Draft202012Validator(SCHEMA).iter_errors(found))
    if wrong is not None:
        raise NoDemonstrationError(f"not a demonstration: {wrong.json_path}: {wrong.message[:200]}")
    messages: list[dict[str, str]] = []
    for number, step in enumerate(found["steps"]):
        if action is not None and not action.fullmatch(step["action"]):
            raise NoDemonstrationError(f"step {number}: action {step['action'][:80]!r} does not match {action.pattern}")
        seen = step["observation"] if messages else f"{found['task']}\n\n{step['observation']}"
        said = "\n".join(filter(None, (step.get("thought", "").strip(), step["action"])))
        messages += [{"role": "user", "content": seen}, {"role": "assistant", "content": said}]
    return messages
