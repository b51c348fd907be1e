"""The policy as a server: asked by OpenAI's client, and by one that speaks vLLM's token API."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import aiohttp
import openai
import pytest

from posttrain.environments.calls import Call, Calls
from posttrain.environments.policy_server import PolicyServer
from posttrain.environments.tool_calls import ToolCall, write_call
from posttrain.trajectory import StopReason, Turn

ASK: list[Any] = [{"role": "user", "content": "Hello."}]
LOOK = {"name": "look", "strict": True, "parameters": {"type": "object"}}
TOOLS: list[Any] = [{"type": "function", "function": LOOK}]


@pytest.fixture
def server() -> Iterator[PolicyServer]:
    found = PolicyServer()
    yield found
    found.close()


def client(url: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


async def say(calls: Calls, *texts: str) -> list[Call]:
    """Answer as many calls, one after another."""
    taken = []
    for text in texts:
        event = await asyncio.wait_for(asyncio.wrap_future(calls.next()), 10)
        assert isinstance(event, Call)
        calls.answer(event, Turn((1, 2), (3, 4), (-0.5, -0.25), StopReason.STOP, 0, text))
        taken.append(event)
    return taken


def test_openai_reads_the_answer(server: PolicyServer) -> None:
    async def run() -> None:
        url, calls = server.open()
        async with client(url) as one:
            assert [model.id for model in (await one.models.list()).data] == ["policy"]
            asked = one.chat.completions.create(model="policy", messages=ASK, logprobs=True)
            answer, (call,) = await asyncio.gather(asked, say(calls, "Hi."))
        assert call.messages == tuple(ASK)
        assert answer.choices[0].message.content == "Hi." and answer.choices[0].finish_reason == "stop"
        assert answer.choices[0].logprobs is not None and answer.choices[0].logprobs.content is not None
        assert [one.logprob for one in answer.choices[0].logprobs.content] == [-0.5, -0.25]
        assert answer.usage is not None and answer.usage.total_tokens == 4

    asyncio.run(run())


def test_openai_reads_the_stream(server: PolicyServer) -> None:
    async def run() -> None:
        url, calls = server.open()
        said = f"I look.{write_call(ToolCall('look', {}))}"
        async with client(url) as one:

            async def read() -> Any:
                options: Any = {"include_usage": True}
                asked = one.chat.completions.stream(model="policy", messages=ASK, tools=TOOLS, stream_options=options)
                async with asked as stream:
                    return await stream.get_final_completion()

            answer, _ = await asyncio.gather(read(), say(calls, said))
        message = answer.choices[0].message
        assert message.content == "I look." and answer.choices[0].finish_reason == "tool_calls"
        assert [(call.id, call.function.name) for call in message.tool_calls] == [("call00001", "look")]
        assert answer.usage.completion_tokens == 2

    asyncio.run(run())


def test_tokens(server: PolicyServer) -> None:
    async def run() -> None:
        url, calls = server.open()
        body = {"model": "policy", "token_ids": [1, 2], "sampling_params": {"logprobs": 1, "stop_token_ids": [9]}}
        async with aiohttp.ClientSession() as session:

            async def post() -> Any:
                headers = {"X-Session-ID": "a"}
                async with session.post(f"{url}/inference/v1/generate", json=body, headers=headers) as response:
                    return await response.json()

            answer, (call,) = await asyncio.gather(post(), say(calls, ""))
        assert call.token_ids == (1, 2) and call.speaker == "a"
        assert answer["choices"][0]["token_ids"] == [3, 4] and answer["choices"][0]["finish_reason"] == "stop"

    asyncio.run(run())


def test_episodes_are_told_apart(server: PolicyServer) -> None:
    async def run() -> None:
        opened = [server.open() for _ in range(3)]
        assert len({url for url, _ in opened}) == 3
        clients = [client(url) for url, _ in opened]
        asked = (one.chat.completions.create(model="policy", messages=ASK) for one in clients)
        told = (say(calls, f"episode {number}") for number, (_, calls) in enumerate(opened))
        answers = await asyncio.gather(*asked, *told)
        assert [one.choices[0].message.content for one in answers[:3]] == ["episode 0", "episode 1", "episode 2"]
        for one in clients:
            await one.close()

    asyncio.run(run())


def test_refusals(server: PolicyServer) -> None:
    async def run() -> None:
        url, calls = server.open()
        async with client(url) as one:
            with pytest.raises(openai.BadRequestError, match="n is 2; allowed: 1"):
                await one.chat.completions.create(model="policy", messages=ASK, n=2)
            waiting = asyncio.create_task(one.chat.completions.create(model="policy", messages=ASK))
            await asyncio.wait_for(asyncio.wrap_future(calls.next()), 10)
            server.forget(calls)
            with pytest.raises(openai.APIStatusError, match="the episode is over") as over:
                await waiting
            assert over.value.status_code == 410
            with pytest.raises(openai.NotFoundError, match="no such episode"):
                await one.chat.completions.create(model="policy", messages=ASK)
        async with client(url.rpartition("/")[0] + "/guessed") as other:
            with pytest.raises(openai.NotFoundError, match="no such episode"):
                await other.models.list()

    asyncio.run(run())


def test_a_call_that_nobody_waits_for_is_abandoned(server: PolicyServer) -> None:
    async def run() -> None:
        url, calls = server.open()
        async with client(url) as one:
            asked = asyncio.create_task(one.chat.completions.create(model="policy", messages=ASK))
            call = await asyncio.wait_for(asyncio.wrap_future(calls.next()), 10)
            assert isinstance(call, Call) and not call.abandoned
            asked.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asked
        for _ in range(200):
            if call.abandoned:
                break
            await asyncio.sleep(0.05)
        assert call.abandoned
        calls.answer(call, Turn((), (), (), StopReason.STOP, 0, "to nobody"))

    asyncio.run(run())


def test_nothing_is_left_after_close() -> None:
    before = {*threading.enumerate()}
    server = PolicyServer()
    url, _ = server.open()
    assert len({*threading.enumerate()} - before) == 1
    server.close()
    assert {*threading.enumerate()} <= before

    async def run() -> None:
        async with client(url) as one:
            with pytest.raises(openai.APIConnectionError):
                await one.models.list()

    asyncio.run(run())
    PolicyServer().close()
