"""An endpoint as an engine: conversations arrive as they are, texts and counts come back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from posttrain.data.chat import encode_prompt
from posttrain.endpoint import KEY as VARIABLE
from posttrain.endpoint import find_endpoint
from posttrain.errors import UserError
from posttrain.rollout.endpoint_engine import EndpointEngine
from posttrain.rollout.engine import Request, Sampling
from posttrain.trajectory import StopReason
from tests.openai_server import KEY, OpenAIServer
from tests.tiny import tiny_model

CONVERSATION = (
    {"role": "system", "content": "Add."},
    {"role": "user", "content": "1+1"},
    {"role": "assistant", "content": "2 \u00bf"},
    {"role": "user", "content": "2+3"},
)
SAMPLING = Sampling(max_tokens=6, stop_token_ids=frozenset(), temperature=0.7, top_p=0.9)


@pytest.fixture(scope="module")
def server() -> Iterator[OpenAIServer]:
    found = OpenAIServer(*tiny_model())
    yield found
    found.close()


@pytest.fixture
def engine(server: OpenAIServer, monkeypatch: pytest.MonkeyPatch) -> EndpointEngine:
    monkeypatch.setenv(VARIABLE, KEY)
    server.seen.clear()
    return EndpointEngine(find_endpoint(server.url, None))


def test_what_is_asked_arrives_and_what_is_said_comes_back(server: OpenAIServer, engine: EndpointEngine) -> None:
    prompts = CONVERSATION, CONVERSATION[:2], "plain"
    requests = [Request(encode_prompt(one, engine.tokenizer), seed=2**100 + 5) for one in prompts]
    completions = engine.generate(requests, SAMPLING)
    asked = {len(body.get("messages", ())): body for body in server.seen}
    assert asked[4]["messages"] == list(CONVERSATION)
    assert asked[2]["messages"] == list(CONVERSATION[:2])
    assert asked[0]["prompt"] == "plain"
    fields = {"max_tokens": 6, "temperature": 0.7, "top_p": 0.9, "seed": 5}
    assert all(fields.items() <= body.items() and "top_k" not in body for body in server.seen)
    texts = engine.tokenizer.batch_decode([one.token_ids for one in completions], skip_special_tokens=True)
    assert all(texts)
    assert all(0 < len(one.token_ids) <= 6 for one in completions)
    assert all(one.stop_reason in (StopReason.STOP, StopReason.LENGTH) for one in completions)
    assert engine.generate(requests, SAMPLING) == completions  # the seed decides the draws


def test_tools_are_shown_to_the_server(engine: EndpointEngine) -> None:
    tool = {"type": "function", "function": {"name": "add"}}
    text = engine.tokenizer.apply_chat_template(CONVERSATION[:2], tools=[tool], tokenize=False)
    assert engine.tokenizer.request(engine.tokenizer(text).input_ids) == (CONVERSATION[:2], {"tools": [tool]})


def test_it_is_no_engine_to_train_with(engine: EndpointEngine) -> None:
    with pytest.raises(UserError, match="does not score"):
        engine.score([1, 2])
    with pytest.raises(UserError, match="does not take weights"):
        engine.sync([], 1)
