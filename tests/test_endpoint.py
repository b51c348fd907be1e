"""The client of OpenAI-compatible servers against one that samples for real and fails as it is told to."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from posttrain.endpoint import KEY as VARIABLE
from posttrain.endpoint import Answer, Endpoint, EndpointError, find_endpoint
from posttrain.errors import UserError
from posttrain.trajectory import StopReason
from tests.openai_server import KEY, NAME, OpenAIServer
from tests.tiny import tiny_model

QUESTION = ({"role": "user", "content": "7?"},)
FIELDS = {"max_tokens": 5, "temperature": 0, "seed": 1}
ASKED = (QUESTION, FIELDS)


@pytest.fixture(scope="module")
def serving() -> Iterator[OpenAIServer]:
    server = OpenAIServer(*tiny_model())
    yield server
    server.close()


@pytest.fixture
def server(serving: OpenAIServer, monkeypatch: pytest.MonkeyPatch) -> OpenAIServer:
    monkeypatch.setenv(VARIABLE, KEY)
    serving.faults, serving.seen, serving.most_at_once = [], [], 0
    return serving


def endpoint(server: OpenAIServer, **changes: Any) -> Endpoint:
    return replace(find_endpoint(server.url, None), pause_seconds=0.01, **changes)


def ask(to: Endpoint, *requests: Any) -> list[Answer | EndpointError]:
    return asyncio.run(to.ask(requests or [ASKED]))


def test_conversations_and_plain_text_are_answered_in_order(server: OpenAIServer) -> None:
    texts = [f"{number}+{number}" for number in range(20)]
    found = ask(endpoint(server, concurrency=4), *((text, {"max_tokens": 3, "seed": 0}) for text in texts), ASKED)
    assert all(isinstance(one, Answer) and one.num_tokens in (1, 2, 3) for one in found[:-1])
    assert isinstance(found[-1], Answer)
    assert found[-1].num_prompt_tokens > 2
    assert server.most_at_once == 4
    alone = [ask(endpoint(server), (text, {"max_tokens": 3, "seed": 0}))[0] for text in texts]
    assert found[:-1] == alone


def test_a_cut_answer_says_so(server: OpenAIServer) -> None:
    (found,) = ask(endpoint(server), (QUESTION, FIELDS | {"max_tokens": 1}))
    assert isinstance(found, Answer)
    assert (found.stop_reason, found.num_tokens) == (StopReason.LENGTH, 1)


@pytest.mark.parametrize("faults", [[429], [500, 503], ["hang"], [429, "hang", 502]])
def test_what_passes_is_tried_again(server: OpenAIServer, faults: list[int | str]) -> None:
    server.faults = [*faults]
    (found,) = ask(endpoint(server, request_seconds=0.5))
    assert isinstance(found, Answer)
    assert len(server.seen) == len(faults) + 1
    assert found == ask(endpoint(server))[0]


def test_what_does_not_pass_is_an_error_of_that_request(server: OpenAIServer) -> None:
    server.faults = [400]
    refused, answered = ask(endpoint(server, concurrency=1), ASKED, ASKED)
    assert isinstance(answered, Answer)
    assert str(refused) == "status 400: as told: 400"
    server.faults = [500, 500]
    (given_up,) = ask(endpoint(server, attempts=2))
    assert str(given_up) == "status 500: as told: 500"
    server.faults = ["hang"]
    (late,) = ask(endpoint(server, attempts=1, request_seconds=0.2))
    assert str(late) == "no answer within 0.2 s"


def test_an_unusable_server_is_a_mistake(server: OpenAIServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.faults = [404]
    with pytest.raises(UserError, match="as told: 404; --model-name"):
        ask(endpoint(server))
    with pytest.raises(UserError, match=f"not a model.*did you mean '{NAME}'"):
        find_endpoint(server.url, "tyny")
    assert find_endpoint(server.url + "/", None).model == NAME
    assert find_endpoint(server.url + "/nothing/here", "any").model == "any"
    with pytest.raises(UserError, match="--model-name: missing"):
        find_endpoint(server.url + "/nothing/here", None)
    with pytest.raises(UserError, match="allowed: the address of an OpenAI-compatible server"):
        find_endpoint("http://127.0.0.1:9/v1", None)
    monkeypatch.delenv(VARIABLE)
    with pytest.raises(UserError, match=f"Incorrect API key; the key is read from {VARIABLE}"):
        find_endpoint(server.url, None)
