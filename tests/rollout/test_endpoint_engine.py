"""An endpoint as an engine: conversations arrive as they are, texts and counts come back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from posttrain.config.schema import EpisodeSettings
from posttrain.data.chat import encode_prompt
from posttrain.data.examples import Example
from posttrain.endpoint import KEY as VARIABLE
from posttrain.endpoint import find_endpoint, text_of
from posttrain.environments import Observation, Step, told
from posttrain.errors import UserError
from posttrain.picture import images_of
from posttrain.rollout.collector import Collector
from posttrain.rollout.endpoint_engine import EndpointEngine
from posttrain.rollout.engine import Request, Sampling
from posttrain.trajectory import Prompt, StopReason
from tests.openai_server import KEY, OpenAIServer
from tests.tiny import tiny_model
from tests.vision import Slides, tiny_vision

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


def test_it_cannot_be_kept_to_choices(engine: EndpointEngine) -> None:
    asked = Request(encode_prompt("plain", engine.tokenizer), seed=1, choices=((1, 2),))
    with pytest.raises(UserError, match="an endpoint cannot be kept to listed actions"):
        engine.generate([asked], SAMPLING)


def test_images_arrive_with_their_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, KEY)
    server = OpenAIServer(*tiny_vision())
    try:
        engine = EndpointEngine(find_endpoint(server.url, None))
        collector = Collector(engine, Slides(), None, engine.tokenizer, SAMPLING, limits=EpisodeSettings(max_turns=2))
        ((played, *_),) = (group.trajectories for group in collector.collect([Example("a", told("go"))], 1, seed=3))
    finally:
        server.close()
    assert played.error is None and len(played.turns) == 2
    asked = sorted((body["messages"] for body in server.seen), key=len)
    parts = [part for message in asked[-1] for part in message["content"] if isinstance(part, dict)]
    images = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    assert len(images) == 2 and images[0] != images[1] and images == images_of(asked[-1])


class Asking:
    """Says a number after each of two actions, and ends with the third."""

    capacity = None

    async def reset(self, prompt: Prompt, columns: Mapping[str, Any], seed: int) -> tuple[Observation, Asked]:
        return Observation(prompt), Asked()

    def close(self) -> None:
        pass


class Asked:
    def __init__(self) -> None:
        self.num_actions = 0

    async def step(self, action: str) -> Step:
        self.num_actions += 1
        return Step(Observation(told(f"{self.num_actions}?")), terminated=self.num_actions == 3)

    async def close(self) -> None:
        pass


def test_episodes_of_several_turns_send_all_that_was_said(server: OpenAIServer, engine: EndpointEngine) -> None:
    example = Example("a", CONVERSATION[:2])
    play = Collector(engine, Asking(), None, engine.tokenizer, SAMPLING)
    (group,) = play.collect([example], 4, seed=3)
    assert [len(one.turns) for one in group.trajectories] == [3] * 4
    sent = [body["messages"] for body in server.seen]
    assert sorted(map(len, sent)) == [2] * 4 + [4] * 4 + [6] * 4
    for one in group.trajectories:
        texts = [turn.text for turn in one.turns]
        first, second = ({"role": "assistant", "content": text} for text in texts[:2])
        assert [*CONVERSATION[:2], first, *told("1?"), second, *told("2?")] in sent
        assert one.num_completion_tokens == sum(len(turn.completion_ids) for turn in one.turns) > 0


def test_calls_of_tools_stand_in_the_text() -> None:
    call = {"function": {"name": "add", "arguments": '{"a": 1}'}}
    text = text_of({"content": None, "tool_calls": [call]})
    assert text == '\n<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
    assert text_of({"content": "No.", "tool_calls": None}) == "No."


def test_tools_are_shown_to_the_server(engine: EndpointEngine) -> None:
    tool = {"type": "function", "function": {"name": "add"}}
    text = engine.tokenizer.apply_chat_template(CONVERSATION[:2], tools=[tool], tokenize=False)
    assert engine.tokenizer.request(engine.tokenizer(text).input_ids) == (CONVERSATION[:2], {"tools": [tool]})


def test_it_is_no_engine_to_train_with(engine: EndpointEngine) -> None:
    with pytest.raises(UserError, match="does not score"):
        engine.score([1, 2])
    with pytest.raises(UserError, match="does not take weights"):
        engine.sync([], 1)
