"""Tool calls in a policy's text, and the functions that answer them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from posttrain.environments.tool_calls import Toolbox, ToolCall, parse_tool_calls, write_call
from posttrain.errors import UserError

ADD = ToolCall("add", {"a": 1, "b": 2})


def add(a: int, b: int = 0) -> int:
    """Add two numbers.

    Args:
        a: The first.
        b: The second.
    """
    return a + b


async def find(name: str, city: str | None = None) -> str:
    """Find a person.

    Args:
        name: Whom to find.
        city: Where, if it is known.
    """
    if name == "nobody":
        raise LookupError(name)
    return f"{name} of {city}"


BOX = Toolbox.of([add, find])


@pytest.mark.parametrize(
    ("said", "text", "calls"),
    [
        ("No need.", "No need.", ()),
        (f"I add.\n{write_call(ADD)}", "I add.", (ADD,)),
        (write_call(ADD) + write_call(ADD), "", (ADD, ADD)),
        ('<tool_call>{"name": "add", "parameters": {"a": 1, "b": 2}}</tool_call>', "", (ADD,)),
        ('<tool_call>{"name": "add", "arguments": "{\\"a\\": 1, \\"b\\": 2}"}</tool_call>', "", (ADD,)),
        ('<tool_call>{"name": "add"}</tool_call>', "", (ToolCall("add", {}),)),
        (f"<think>{write_call(ADD)}</think>Done.", "Done.", ()),
        ('{"name": "add", "parameters": {"a": 1, "b": 2}}', "", (ADD,)),
        ('[{"name": "add", "arguments": {"a": 1, "b": 2}}]', "", (ADD,)),
        ('{"name": "Ann"}', '{"name": "Ann"}', ()),
        (
            "<tool_call>\n<function=find>\n<parameter=name>\nAnn\n</parameter>\n</function>\n</tool_call>",
            "",
            (ToolCall("find", {"name": "Ann"}, typed=False),),
        ),
    ],
)
def test_calls_are_read(said: str, text: str, calls: tuple[ToolCall, ...]) -> None:
    parsed = parse_tool_calls(said)
    assert (parsed.text, parsed.calls, parsed.mistake) == (text, calls, None)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("<tool_call>{</tool_call>", "not JSON"),
        ("<tool_call>[]</tool_call>", "must be an object"),
        ('<tool_call>{"name": 3}</tool_call>', "must be an object"),
        ('<tool_call>{"name": "add", "arguments": [1]}</tool_call>', "arguments of add"),
        ('<tool_call>{"name": "add", "arguments": "1,"}</tool_call>', "arguments of add are not JSON"),
        ('<tool_call>{"name": "add", "arguments": {}}', "not closed"),
        (f"<tool_call>{'[' * 100_000}</tool_call>", "not JSON"),
    ],
)
def test_what_cannot_be_read_is_a_mistake(said: str, why: str) -> None:
    parsed = parse_tool_calls(said)
    assert parsed.calls == () and parsed.mistake is not None and why in parsed.mistake


def test_functions_answer() -> None:
    answered = BOX.answer([ADD, ToolCall("find", {"name": "Ann", "city": None})])
    assert answered.mistake is None
    assert [message["content"] for message in answered.messages] == ["3", "Ann of None"]
    assert all(message["role"] == "tool" for message in answered.messages)
    assert answered.messages[0]["name"] == "add"


def test_text_becomes_the_schemas_types() -> None:
    calls = [ToolCall("add", {"a": "40", "b": "2"}, typed=False), ToolCall("find", {"name": "7"}, typed=False)]
    assert [message["content"] for message in BOX.answer(calls).messages] == ["42", "7 of None"]


@pytest.mark.parametrize(
    ("call", "why"),
    [
        (ToolCall("ad", {"a": 1}), "did you mean 'add'?"),
        (ToolCall("add", {"b": 1}), "'a' is a required property"),
        (ToolCall("add", {"a": "one"}), "'one' is not of type 'integer'"),
        (ToolCall("add", {"a": 1, "c": 1}), "'c' was unexpected"),
    ],
)
def test_where_one_call_does_not_fit_none_is_carried_out(call: ToolCall, why: str) -> None:
    done: list[Any] = []
    box = Toolbox({**BOX.functions, "note": done.append}, BOX.schemas)
    answered = box.answer([ToolCall("find", {"name": "Ann"}), call])
    assert answered.mistake is not None and why in answered.mistake
    assert len(answered.messages) == 2 and done == []


def test_a_tool_that_raises_is_answered() -> None:
    failed = BOX.answer([ToolCall("find", {"name": "nobody"})])
    assert failed.mistake == "nobody" and failed.messages[0]["content"] == "{'error': 'nobody'}"
    some = BOX.answer([ToolCall("find", {"name": "nobody"}), ADD])
    assert some.mistake is None and some.messages[1]["content"] == "3"


def test_a_function_without_a_description_is_a_users_mistake() -> None:
    def bare(a):  # type: ignore[no-untyped-def]
        return a

    with pytest.raises(UserError, match="type hints"):
        Toolbox.of([bare])


def test_a_written_call_is_what_the_templates_write() -> None:
    """As the template of Qwen 2.5 and 3 does, with its own filter."""
    from transformers.utils.chat_template_utils import render_jinja_template

    template = (
        "{% for c in messages[0].tool_calls %}<tool_call>\n"
        '{"name": "{{ c.name }}", "arguments": {{ c.arguments | tojson }}}\n</tool_call>{% endfor %}'
    )
    message = {"role": "assistant", "tool_calls": [{"name": "add", "arguments": {"a": 1, "b": "ü"}}]}
    (rendered,), _ = render_jinja_template([[message]], chat_template=template)
    assert parse_tool_calls(rendered).calls == (ToolCall("add", {"a": 1, "b": "ü"}),)
    assert json.loads(write_call(ADD).split("\n")[1]) == {"name": "add", "arguments": {"a": 1, "b": 2}}
