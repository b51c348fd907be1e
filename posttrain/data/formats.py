"""What a row means: plain and conversational formats, as TRL defines them, to `Example`.

    prompts         {"prompt"} or {"messages"} that end with the user's; a demonstration in the row is kept
    demonstrations  {"prompt", "completion"}, {"messages"} (all from the first assistant message on is supervised), or
                    {"text"} (all of it is supervised)
    preferences     {"prompt", "chosen", "rejected"}, or {"chosen", "rejected"} that begin with the same messages; or
                    unpaired {"prompt", "completion", "label"}: a chosen side where label is true, else a rejected one;
                    maybe with {"margin"}: by how much the chosen side should win
    trajectories    as demonstrations, with {"reward"}: a number, or null for ungraded; maybe with {"solved"}, and
                    {"stop_reason"}, "length" where the completion was cut off; the lines of a run's rollouts/ are such
    steps, attributes: trajectories that are labelled in place of a reward (`data.labels`)

Each text is either plain or a list of messages. Recipes rename columns, make the prompt from a template (where
"{options:letters}" writes a list as "A. ...", "B. ...", a line each), put a system message in front, or turn plain text
into a conversation (see `SourceSettings`).
"""

from __future__ import annotations

import math
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.config.schema import SourceSettings
from posttrain.data.examples import Completion, Example
from posttrain.data.labels import step_labels
from posttrain.data.readers import excerpt
from posttrain.errors import DataError, did_you_mean
from posttrain.trajectory import Message, Prompt

_TEXTS = frozenset({"prompt", "completion", "messages", "text", "chosen", "rejected"})
_LABELS = {"true": True, "1": True, "false": False, "0": False}
Template = tuple[tuple[str, str | None, str], ...]


class BadRowError(ValueError):
    """A row that cannot be used, and why. The loader adds the place, and stops or counts it."""


@dataclass(frozen=True)
class RowFormat:
    """Turns the columns of one row into an `Example` of `kind`, by the recipe's settings of its source."""

    settings: SourceSettings
    kind: str
    template: Template | None

    @classmethod
    def of(cls, settings: SourceSettings, kind: str) -> RowFormat:
        """The format of one source. Raises DataError for an unknown kind and for a template that cannot be parsed."""
        if kind not in KINDS:
            raise DataError(f"unknown kind of data '{kind}', {did_you_mean(kind, KINDS)}")
        return cls(settings, kind, None if settings.template is None else parse_template(settings.template))

    def example(self, row: Mapping[str, Any], example_id: str) -> Example:
        """The row as an example. Raises BadRowError."""
        columns = dict(row)
        for ours, theirs in self.settings.columns.items():
            columns[ours] = _column(row, ours, theirs)
        if self.template is not None:
            columns["prompt"] = fill(self.template, columns)
        parts = KINDS[self.kind](columns)
        prompt, found = self._converse(parts.pop("prompt"), parts)
        _check_prompt(prompt)
        for side in found.values():
            _check_completion(side)
        sides: dict[str, Any] = dict(found)
        kept = {name: value for name, value in columns.items() if name in row or name not in _TEXTS}
        margin = _margin(columns) if self.kind == "preferences" else 0.0
        return Example(id=example_id, prompt=prompt, columns=kept, margin=margin, **sides)

    def _converse(
        self, prompt: Prompt, sides: dict[str, Completion | None]
    ) -> tuple[Prompt, dict[str, Completion | None]]:
        """Prompt and sides as all text or all conversations, with the recipe's system message."""
        plain = all(side is None or isinstance(side, str) for side in (prompt, *sides.values()))
        if plain and not self.settings.chat and not self.settings.system:
            return prompt, sides
        if prompt == "":
            raise BadRowError("the row has no prompt, so `chat` and `system` cannot make a conversation of it")
        messages: tuple[Message, ...] = ({"role": "user", "content": prompt},) if isinstance(prompt, str) else prompt
        own = messages[:1] if messages and messages[0]["role"] == "system" else ()
        if self.settings.system == "":
            messages = messages[len(own) :]
        elif self.settings.system is not None:
            if own:
                raise BadRowError("the row has a system message already; leave `system` out of the recipe")
            messages = ({"role": "system", "content": self.settings.system}, *messages)
        return messages, {name: _assistant(side) for name, side in sides.items()}


def _column(row: Mapping[str, Any], ours: str, theirs: str) -> Any:
    """The value of a column, or of "column.key" within one. Raises BadRowError."""
    value: Any = row
    for key in [theirs] if theirs in row else theirs.split("."):
        if not isinstance(value, Mapping) or key not in value:
            names = value if isinstance(value, Mapping) else row
            raise BadRowError(f"no column '{theirs}' (columns.{ours}), {did_you_mean(key, names)}")
        value = value[key]
    return value


def parse_template(template: str) -> Template:
    """The (text, column or None, format specification) pieces of a format string. Raises DataError."""
    try:
        pieces = tuple((text, column, spec or "") for text, column, spec, _ in string.Formatter().parse(template))
    except ValueError as error:
        raise DataError(f"template {template!r}: {error}; write a literal brace as '{{{{' or '}}}}'") from error
    if not any(column for _, column, _ in pieces):
        raise DataError(f"template {template!r}: names no column; write one as '{{column}}'")
    return pieces


def fill(template: Template, columns: Mapping[str, Any]) -> str:
    """The template's text with the row's values. Raises BadRowError for a missing or empty column."""
    text = ""
    for literal, column, spec in template:
        text += literal
        if column is not None:
            if columns.get(column) is None:
                problem = "is null" if column in columns else f"does not exist, {did_you_mean(column, columns)}"
                raise BadRowError(f"template: column '{column}' {problem}")
            value = columns[column]
            text += lettered(value) if spec == "letters" and isinstance(value, list | tuple) else format(value, spec)
    return text


def lettered(options: Sequence[Any]) -> str:
    """A line an option: "A. first", "B. second", ...; BadRowError for more than the alphabet has."""
    if len(options) > len(string.ascii_uppercase):
        raise BadRowError(f"{len(options)} options; allowed: at most {len(string.ascii_uppercase)}")
    return "\n".join(f"{letter}. {option}" for letter, option in zip(string.ascii_uppercase, options, strict=False))


def _prompts(columns: Mapping[str, Any]) -> dict[str, Any]:
    if columns.get("prompt") is None and columns.get("messages") is not None:
        messages = _conversation("messages", columns["messages"])
        first = _first_assistant(messages) if messages[-1]["role"] == "assistant" else len(messages)
        return {"prompt": messages[:first], "completion": messages[first:] or None}
    completion = columns.get("completion")
    return {
        "prompt": _text("prompt", _required(columns, "prompt", "messages")),
        "completion": None if completion is None else _text("completion", completion),
    }


def _demonstrations(columns: Mapping[str, Any]) -> dict[str, Any]:
    if columns.get("prompt") is not None or columns.get("completion") is not None:
        prompt = _text("prompt", _required(columns, "prompt"))
        return {"prompt": prompt, "completion": _text("completion", _required(columns, "completion"))}
    if columns.get("messages") is not None:
        messages = _conversation("messages", columns["messages"])
        first = _first_assistant(messages)
        return {"prompt": messages[:first], "completion": messages[first:]}
    text = _text("text", _required(columns, "text", "prompt", "completion", "messages"))
    if not isinstance(text, str):
        raise BadRowError("column 'text' holds messages; name it with columns: {messages: ...}")
    return {"prompt": "", "completion": text}


def _preferences(columns: Mapping[str, Any]) -> dict[str, Any]:
    if "chosen" not in columns and "rejected" not in columns and "label" in columns:
        return _unpaired(columns)
    chosen = _text("chosen", _required(columns, "chosen"))
    rejected = _text("rejected", _required(columns, "rejected"))
    if chosen == rejected:
        raise BadRowError(f"chosen and rejected are the same: {excerpt(chosen)}")
    if isinstance(chosen, str) is not isinstance(rejected, str):
        raise BadRowError("chosen and rejected must both be text or both be messages")
    shared = _num_shared(chosen, rejected)
    prompt = None if columns.get("prompt") is None else _text("prompt", columns["prompt"])
    if isinstance(chosen, str):
        if prompt is None:
            raise BadRowError("column 'prompt' is missing; only messages can hold the prompt in chosen and rejected")
    elif prompt is None or chosen[0]["role"] != "assistant":
        if prompt is not None and not isinstance(prompt, str) and prompt != chosen[: len(prompt)]:
            raise BadRowError("chosen does not begin with the messages of the prompt, nor with an assistant message")
        prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def _margin(columns: Mapping[str, Any]) -> float:
    value = columns.get("margin")
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if value is not None and not number:
        raise BadRowError(f"column 'margin' must be a finite number or null, got {excerpt(value)}")
    return float(value or 0.0)


def _steps(columns: Mapping[str, Any]) -> dict[str, Any]:
    prompt = _text("prompt", _required(columns, "prompt"))
    try:
        steps, _ = step_labels({name: _required(columns, name) for name in ("completions", "labels")} | dict(columns))
    except ValueError as error:
        raise BadRowError(str(error)) from error
    return {"prompt": prompt, "completion": "".join(steps)}


def _unpaired(columns: Mapping[str, Any]) -> dict[str, Any]:
    label = columns["label"]
    named = _LABELS.get(label.strip().lower()) if isinstance(label, str) else None  # a .csv file's
    desirable = named if named is not None else label
    if desirable not in (True, False):
        raise BadRowError(f"column 'label' must be true or false, got {excerpt(label)}")
    prompt = _text("prompt", _required(columns, "prompt"))
    side = _text("completion", _required(columns, "completion"))
    return {"prompt": prompt, "chosen": side if desirable else None, "rejected": None if desirable else side}


def _trajectories(columns: Mapping[str, Any]) -> dict[str, Any]:
    if columns.get("completion") == "":  # a policy may end at once
        parts = {"prompt": _text("prompt", _required(columns, "prompt")), "completion": ""}
    else:
        parts = _demonstrations(columns)
    if (turns := columns.get("num_turns", 1)) not in (None, 1):
        raise BadRowError(f"the rollout has {turns} turns, of which only the last was kept; allowed: 1")
    if "reward" not in columns:
        raise BadRowError(f"column 'reward' is missing (null where ungraded), {did_you_mean('reward', columns)}")
    reward = columns["reward"]
    if isinstance(reward, str):  # a .csv file's
        try:
            reward = float(reward) if reward.strip() else None
        except ValueError as error:
            raise BadRowError(f"column 'reward' must be a number or empty, got {excerpt(reward)}") from error
    if reward is not None and (not isinstance(reward, int | float) or not math.isfinite(reward)):
        raise BadRowError(f"column 'reward' must be a finite number or null, got {excerpt(reward)}")
    columns["reward"] = None if reward is None else float(reward)  # type: ignore[index]
    return parts


KINDS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "prompts": _prompts,
    "demonstrations": _demonstrations,
    "preferences": _preferences,
    "trajectories": _trajectories,
    "steps": _steps,
    "attributes": _demonstrations,
}


def _required(columns: Mapping[str, Any], name: str, *instead: str) -> Any:
    """The value of a column that must be there. `instead` names columns that would do as well."""
    if columns.get(name) is not None:
        return columns[name]
    if name in columns:
        raise BadRowError(f"column '{name}' is null")
    others = f" (or {', '.join(repr(other) for other in instead)})" if instead else ""
    raise BadRowError(
        f"column '{name}'{others} is missing; the row has {', '.join(map(repr, columns)) or 'no columns'}: "
        f"name the file's column with columns: {{{name}: ...}}"
    )


def _text(name: str, value: Any) -> str | tuple[Message, ...]:
    """Plain text as it is, or a list of messages, checked."""
    if isinstance(value, str):
        if not value:
            raise BadRowError(f"column '{name}' is empty")
        return value
    if isinstance(value, list | tuple):
        return _conversation(name, value)
    raise BadRowError(
        f"column '{name}' must be text or a list of messages, got {type(value).__name__}: {excerpt(value)}"
    )


def _conversation(name: str, value: Any) -> tuple[Message, ...]:
    """Messages without their null entries (tables fill those in for keys that other messages have)."""
    if not isinstance(value, list | tuple) or not value:
        raise BadRowError(f"column '{name}' must be a list of messages, got {excerpt(value)}")
    for index, message in enumerate(value):
        problem = None
        if not isinstance(message, Mapping):
            problem = "must be an object with role and content"
        elif not isinstance(message.get("role"), str):
            problem = "has no role"
        elif not isinstance(message.get("content"), str | list) and not message.get("tool_calls"):
            problem = "has neither content (text or a list of parts) nor tool_calls"
        if problem:
            raise BadRowError(f"column '{name}': message {index} {problem}: {excerpt(message)}")
    return tuple({key: entry for key, entry in message.items() if entry is not None} for message in value)


def _first_assistant(messages: tuple[Message, ...]) -> int:
    """Index of the first assistant message. Raises BadRowError where there is none."""
    for index, message in enumerate(messages):
        if message["role"] == "assistant":
            return index
    raise BadRowError(f"the conversation has no assistant message: {excerpt(messages)}")


def _num_shared(chosen: Completion, rejected: Completion) -> int:
    """How many first messages two conversations share (characters of text are not compared)."""
    if isinstance(chosen, str) or isinstance(rejected, str):
        return 0
    differ = (i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b)
    return next(differ, min(len(chosen), len(rejected)))


def _assistant(side: Completion | None) -> Completion | None:
    """Plain text as an assistant's message; messages as they are."""
    return ({"role": "assistant", "content": side},) if isinstance(side, str) else side


def _check_prompt(prompt: Prompt) -> None:
    if not prompt and not isinstance(prompt, str):
        raise BadRowError("the conversation has no message before the first assistant message")
    if not isinstance(prompt, str) and prompt[-1]["role"] == "assistant":
        raise BadRowError(f"the prompt ends with an assistant message: {excerpt(prompt[-1])}")


def _check_completion(completion: Completion | None) -> None:
    if completion is None or isinstance(completion, str):
        return
    if not completion:
        raise BadRowError("the completion is empty: nothing follows the messages of the prompt")
    for which, message in (("first", completion[0]), ("last", completion[-1])):
        if message["role"] != "assistant":
            raise BadRowError(f"the {which} message of a completion must be the assistant's: {excerpt(message)}")
