"""Tool calls: read out of what a policy wrote, checked against the tools' schemas, and answered by functions.

Formats, told apart by the text itself: Hermes and Qwen, `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`;
Qwen3-Coder, `<tool_call><function=NAME><parameter=KEY>value</parameter></function></tool_call>`; Llama and Mistral, a
text that is nothing but such a JSON object or a list of them (their special tokens are no part of a turn's text). What
stands before "</think>" calls nothing. The answers are messages of the role "tool", which the chat template writes.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from posttrain.errors import UserError, did_you_mean
from posttrain.trajectory import Message

BLOCK = re.compile(r"<tool_call>\s*(.*?)\s*</tool_call>", re.DOTALL)
_OPEN = "<tool_call>"
_FUNCTION = re.compile(r"<function=([^>\s]+)>(.*)</function>\s*", re.DOTALL)
_PARAMETER = re.compile(r"<parameter=([^>\s]+)>\n?(.*?)\n?</parameter>", re.DOTALL)
_BRIEF = 300


@dataclass(frozen=True)
class ToolCall:
    """A function's name and its arguments. typed: whether the values have JSON's types; else all of them are text."""

    name: str
    arguments: Mapping[str, Any]
    typed: bool = True


@dataclass(frozen=True)
class Parsed:
    """A policy's turn. text: what it says beside its calls. mistake: why a call in it cannot be read, None: all can."""

    text: str
    calls: tuple[ToolCall, ...] = ()
    mistake: str | None = None


def parse_tool_calls(said: str) -> Parsed:
    """The calls in a turn, in order; with a mistake there are none."""
    spoken = said.rpartition("</think>")[2].strip()
    blocks = BLOCK.findall(spoken)
    text = BLOCK.sub("", spoken).strip()
    try:
        if _OPEN in text:
            raise ValueError(f"a {_OPEN} is not closed by </tool_call>")
        if blocks:
            return Parsed(text, tuple(read_call(block) for block in blocks))
        bare = _bare(spoken)
        return Parsed(text) if bare is None else Parsed("", tuple(_call(one) for one in bare))
    except ValueError as error:
        return Parsed(text, (), str(error))


def read_call(block: str) -> ToolCall:
    """The call between <tool_call> and </tool_call>; ValueError says what is wrong with it."""
    function = _FUNCTION.fullmatch(block)
    if function is not None:
        return ToolCall(function[1], dict(_PARAMETER.findall(function[2])), typed=False)
    try:
        value = json.loads(block)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"a tool call is not JSON: {error}") from error
    return _call(value)


def write_call(call: ToolCall) -> str:
    """The call as Hermes and Qwen write it."""
    return f"<tool_call>\n{json.dumps({'name': call.name, 'arguments': dict(call.arguments)})}\n</tool_call>"


def _bare(spoken: str) -> list[Any] | None:
    """The calls of a text that is nothing but them; None where it is anything else."""
    if spoken[:1] not in ("{", "["):
        return None
    try:
        value = json.loads(spoken)
    except (json.JSONDecodeError, RecursionError):
        return None
    found = value if isinstance(value, list) else [value]
    is_call = [isinstance(one, dict) and "name" in one and one.keys() & {"arguments", "parameters"} for one in found]
    return found if found and all(is_call) else None


def _call(value: Any) -> ToolCall:
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        raise ValueError('a tool call must be an object {"name": ..., "arguments": {...}}')
    arguments = value.get("arguments", value.get("parameters")) or {}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except json.JSONDecodeError as error:
            raise ValueError(f"the arguments of {value['name']} are not JSON: {error}") from error
    if not isinstance(arguments, dict):
        raise ValueError(f"the arguments of {value['name']} must be an object")
    return ToolCall(value["name"], arguments)


@dataclass(frozen=True)
class Answered:
    """What became of a turn's calls: one message each, and why none of them was carried out (None: some was)."""

    messages: tuple[Message, ...]
    mistake: str | None = None


@dataclass(frozen=True)
class Toolbox:
    """Functions by name, and their JSON schemas, {"type": "function", "function": {"name", "parameters", ...}}."""

    functions: Mapping[str, Callable[..., Any]]
    schemas: tuple[Mapping[str, Any], ...]

    @classmethod
    def of(cls, functions: Iterable[Callable[..., Any]]) -> Toolbox:
        """Schemas from type hints and docstrings (transformers' get_json_schema); UserError where they do not do."""
        from transformers.utils import get_json_schema
        from transformers.utils.chat_template_utils import DocstringParsingException, TypeHintParsingException

        found = {function.__name__: function for function in functions}
        try:
            schemas = tuple(get_json_schema(function) for function in found.values())
        except (DocstringParsingException, TypeHintParsingException) as error:
            raise UserError(
                f"a tool needs type hints, and a docstring with 'Args:' that has all of them: {error}"
            ) from (error)
        return cls(found, schemas)

    def answer(self, calls: Iterable[ToolCall]) -> Answered:
        """Carry the calls out, in order: none of them, where one names no tool or has arguments that do not fit.

        A function that raises is answered with {"error": ...}, as in TRL; the calls after it are carried out.
        """
        calls = [self.typed(call) for call in calls]
        mistake = next((found for call in calls if (found := self._mistake(call)) is not None), None)
        if mistake is not None:
            return Answered(tuple(_message(call.name, str({"error": mistake})) for call in calls), mistake)
        results = [_run(self.functions[call.name], call.arguments) for call in calls]
        messages = tuple(
            _message(call.name, str({"error": error}) if error is not None else result)
            for call, (result, error) in zip(calls, results, strict=True)
        )
        errors = [error for _, error in results]
        return Answered(messages, errors[0] if errors and all(error is not None for error in errors) else None)

    def typed(self, call: ToolCall) -> ToolCall:
        """The call with arguments of JSON's types."""
        return typed(call, self._parameters(call.name))

    def _mistake(self, call: ToolCall) -> str | None:
        from jsonschema import Draft202012Validator

        if call.name not in self.functions:
            return f"{call.name!r} is no tool; {did_you_mean(call.name, self.functions)}"
        schema = {"additionalProperties": False, **self._parameters(call.name)}
        wrong = next(Draft202012Validator(schema).iter_errors(dict(call.arguments)), None)
        return None if wrong is None else f"{call.name}: {wrong.message[:_BRIEF]}"

    def _parameters(self, name: str) -> Mapping[str, Any]:
        schema: Mapping[str, Any] = next(
            (one["function"] for one in self.schemas if one["function"]["name"] == name), {}
        )
        parameters: Mapping[str, Any] = schema.get("parameters") or {}
        return parameters


def typed(call: ToolCall, parameters: Mapping[str, Any]) -> ToolCall:
    """Arguments as JSON's types, where they were written as text; without nulls that may be left out.

    parameters: the schema of the tool's.
    """
    properties = parameters.get("properties") or {}
    values = dict(call.arguments)
    for key, value in call.arguments.items():
        wanted = properties.get(key, {})
        if value is None and wanted.get("nullable"):
            del values[key]
        elif not call.typed and isinstance(value, str) and wanted.get("type") != "string":
            values[key] = _value(value)
    return ToolCall(call.name, values)


def _message(name: str, content: str) -> Message:
    return {"role": "tool", "name": name, "content": content}


def _run(function: Callable[..., Any], arguments: Mapping[str, Any]) -> tuple[str, str | None]:
    """What a function returned, as text, or why it failed."""
    try:
        result = function(**arguments)
        if inspect.iscoroutine(result):
            result = asyncio.run(result)
    except Exception as error:  # the boundary of tools: what they raise is their answer
        return "", f"{type(error).__name__}: {error}" if not str(error) else str(error)
    return str(result), None


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
