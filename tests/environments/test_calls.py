"""Requests of programs that play with the policy: what they ask, what they are answered, what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from posttrain.environments.calls import (
    Call,
    CallError,
    CallLostError,
    Calls,
    Ended,
    chat_answer,
    chunks,
    generate_answer,
    read_chat,
    read_generate,
)
from posttrain.environments.tool_calls import ToolCall, write_call
from posttrain.trajectory import StopReason, Turn

ASK = [{"role": "user", "content": "Hello."}]
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}, "text": {"type": "string"}}}
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": SCHEMA}}]


def turn(text: str, reason: StopReason = StopReason.STOP) -> Turn:
    return Turn((1, 2), (3, 4, 5), (-0.1, -0.2, -0.3), reason, 0, text)


def answered(calls: Calls, call: Call, text: str) -> dict[str, Any]:
    return chat_answer(call, turn(text), calls.message(call, turn(text)))


def test_messages_as_templates_take_them() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    used = {"id": "x1", "type": "function", "function": {"name": "look", "arguments": '{"n": 2}'}}
    call = read_chat(
        {
            "messages": [
                {"role": "developer", "content": "Be brief."},
                {"role": "user", "content": parts, "name": None},
                {"role": "assistant", "content": None, "tool_calls": [used]},
                {"role": "tool", "tool_call_id": "x1", "content": "seen"},
            ],
            "tools": TOOLS,
            "temperature": 0.3,
            "max_tokens": 5,
        }
    )
    system, user, assistant, tool = call.messages
    assert system == {"role": "system", "content": "Be brief."} and user == {"role": "user", "content": "ab"}
    assert assistant["content"] == "" and assistant["tool_calls"][0]["function"]["arguments"] == {"n": 2}
    assert tool == {"role": "tool", "tool_call_id": "x1", "content": "seen", "name": "look"}
    assert list(call.tools) == TOOLS and call.token_ids is None
    assert read_chat({"messages": ASK, "tools": TOOLS, "tool_choice": "none"}).tools == ()


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"n": 2}, "n is 2; allowed: 1"),
        ({"stop": ["\n"]}, "stop is"),
        ({"tool_choice": "required"}, "tool_choice is 'required'; allowed: 'auto'"),
        ({"response_format": {"type": "json_object"}}, "response_format is"),
        ({"messages": []}, "messages: missing"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "content: not text"),
        ({"messages": [{"role": "assistant", "tool_calls": ["look"]}]}, "tool_calls: a call must be"),
    ],
)
def test_what_a_chat_cannot_have_is_named(more: dict[str, Any], why: str) -> None:
    with pytest.raises(CallError, match=why):
        read_chat({"messages": ASK, **more})


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ([], "no JSON object"),
        ({}, "token_ids: missing"),
        ({"token_ids": [1, -1]}, "token_ids: missing"),
        ({"token_ids": [True]}, "token_ids: missing"),
        ({"token_ids": [1], "features": {"mm_hashes": {}}}, "features: not covered"),
        ({"token_ids": [1], "stream": True}, "stream: not covered"),
        ({"token_ids": [1], "sampling_params": {"n": 4}}, "n is 4"),
    ],
)
def test_what_a_generation_cannot_have_is_named(body: Any, why: str) -> None:
    with pytest.raises(CallError, match=why):
        read_generate(body)


def test_an_answer_in_text() -> None:
    call = read_chat({"messages": ASK, "logprobs": True, "return_token_ids": True})
    answer = answered(Calls(), call, " as it is \n")
    (choice,) = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": " as it is \n"} and choice["finish_reason"] == "stop"
    assert [(one["token"], one["logprob"]) for one in choice["logprobs"]["content"]] == [
        ("token_id:3", -0.1), ("token_id:4", -0.2), ("token_id:5", -0.3)
    ]  # fmt: skip
    assert choice["token_ids"] == [3, 4, 5] and answer["prompt_token_ids"] == [1, 2]
    assert answer["usage"] == {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}
    plain = answered(Calls(), read_chat({"messages": ASK}), "x")
    assert "logprobs" not in plain["choices"][0] and "token_ids" not in plain["choices"][0]
    cut = chat_answer(call, turn("x", StopReason.LENGTH), {"content": "x"})
    assert cut["choices"][0]["finish_reason"] == "length"


def test_calls_and_thoughts_stand_apart() -> None:
    call, calls = read_chat({"messages": ASK, "tools": TOOLS}), Calls()
    said = f"<think>\nwhat?\n</think>\nI look.{write_call(ToolCall('look', {'n': 1}))}"
    (choice,) = answered(calls, call, said)["choices"]
    assert choice["finish_reason"] == "tool_calls"
    used = choice["message"].pop("tool_calls")
    assert choice["message"] == {"role": "assistant", "content": "I look.", "reasoning_content": "what?"}
    assert used == [{"id": "call00001", "type": "function", "function": {"name": "look", "arguments": '{"n": 1}'}}]
    coder = "<tool_call><function=look><parameter=n>7</parameter><parameter=text>7</parameter></function></tool_call>"
    (choice,) = answered(calls, call, coder)["choices"]
    (used,) = choice["message"]["tool_calls"]
    assert (used["id"], used["function"]["arguments"]) == ("call00002", '{"n": 7, "text": "7"}')
    broken = "<tool_call>{</tool_call>"
    assert answered(calls, call, broken)["choices"][0]["message"] == {"role": "assistant", "content": broken}


def test_the_policy_reads_its_own_words_again() -> None:
    """A message that came back as it was answered stands there as it was said; one that was changed stays changed."""
    calls, first = Calls(), read_chat({"messages": ASK, "tools": TOOLS})
    raw = f"<think>hm</think>Well.\n{write_call(ToolCall('look', {'n': 1}))}"
    message = calls.message(first, turn(raw))
    back = {key: value for key, value in message.items() if key != "reasoning_content"}
    seen = {"role": "tool", "tool_call_id": "call00001", "content": "a wall"}
    again = calls.observation(read_chat({"messages": [*ASK, back, seen], "tools": TOOLS}))
    assert again.messages[1] == {"role": "assistant", "content": raw} and again.tools == tuple(TOOLS)
    for messages in ([*ASK, {**back, "content": "Changed."}, seen], [*ASK, *ASK, back, seen]):
        other = calls.observation(read_chat({"messages": messages, "tools": TOOLS}))
        assert raw not in [one["content"] for one in other.messages]  # type: ignore[index]


def test_a_stream_says_the_same() -> None:
    call = read_chat({"messages": ASK, "tools": TOOLS, "stream": True, "stream_options": {"include_usage": True}})
    answer = answered(Calls(), call, f"Go.{write_call(ToolCall('look', {'n': 1}))}")
    first, last, usage = chunks(call, answer)
    (choice,) = first["choices"]
    assert first["object"] == "chat.completion.chunk" and choice["finish_reason"] is None
    assert choice["delta"]["content"] == "Go." and choice["delta"]["tool_calls"][0]["index"] == 0
    assert last["choices"] == [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]
    assert usage["choices"] == [] and usage["usage"] == answer["usage"]
    assert len(chunks(read_chat({"messages": ASK, "stream": True}), answer)) == 2


def test_tokens_in_and_tokens_out() -> None:
    call = read_generate({"token_ids": [1], "sampling_params": {"logprobs": 1}})
    assert Calls().observation(call).prompt_ids == (1,)
    (choice,) = generate_answer(call, turn("x", StopReason.LENGTH))["choices"]
    assert choice["token_ids"] == [2, 3, 4, 5], "what the policy was given beyond the prompt stands before its own"
    assert [one["logprob"] for one in choice["logprobs"]["content"]] == [0.0, -0.1, -0.2, -0.3]
    assert choice["finish_reason"] == "length"


def test_calls_come_in_order_whoever_waits() -> None:
    calls, one, two = Calls(), Call(), Call()
    waiting = calls.next()
    assert not waiting.done()
    for event in (one, two, Ended(reward=1.0)):
        calls.put(event)
    assert waiting.result(0) is one and calls.next().result(0) is two
    assert calls.next().result(0) == Ended(reward=1.0)
    given_up = calls.next()
    given_up.cancel()
    calls.put(Ended())
    assert calls.next().result(0) == Ended(), "what nobody waits for any more is kept for who asks next"


def test_after_the_end_no_call_is_answered() -> None:
    calls, waits, gone = Calls(), Call(), Call()
    calls.put(waits)
    calls.put(gone)
    gone.answer.cancel()
    calls.close()
    with pytest.raises(CallLostError, match="the episode is over"):
        waits.answer.result(0)
    with pytest.raises(CallLostError):
        calls.put(Call())
    assert gone.abandoned and not waits.abandoned
