"""Who plays the other side: the environment's script, a frozen model, an endpoint, or the policy itself."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from posttrain.config.schema import EpisodeSettings, Named, PartnerSettings
from posttrain.data.chat import stop_token_ids
from posttrain.data.examples import Example
from posttrain.errors import RecipeError
from posttrain.evaluation.model import Opened
from posttrain.evaluation.partner import make_environment
from posttrain.rollout.collector import Collector
from posttrain.rollout.engine import Sampling
from posttrain.rollout.transformers_engine import TransformersEngine
from tests.openai_server import KEY, OpenAIServer
from tests.tiny import tiny_model

MODEL, TOKENIZER = tiny_model()
STOP = stop_token_ids(TOKENIZER)
GAME = Named(name="echo")
ECHO = """
from posttrain.environments import Observation, Step, told
from posttrain.environments.two_sided import Dialogues

class Game:
    speaks = "policy"
    async def step(self, action):
        self.speaks = "policy" if self.speaks == "partner" else "partner"
        info = {"speaks": self.speaks}
        return Step(Observation(told(action), info=info), terminated=self.speaks == "policy", info={"heard": action})
    async def close(self): pass

class Echo:
    capacity = None
    async def reset(self, prompt, columns, seed):
        info = {"speaks": "policy", "partner": told("You are the other.")}
        return Observation(told("You begin."), info=info), Game()
    def with_partner(self, partner): return Dialogues(self, partner)
    def close(self): pass

def echo(): return Echo()
"""


@pytest.fixture(autouse=True)
def game(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "environments").mkdir()
    (tmp_path / "environments" / "echo.py").write_text(ECHO)
    monkeypatch.setenv("POSTTRAIN_PATH", str(tmp_path))


@pytest.fixture(scope="module")
def server() -> Iterator[OpenAIServer]:
    with closing(OpenAIServer(MODEL, TOKENIZER)) as one:
        yield one


def policy() -> Opened:
    return Opened(TransformersEngine(MODEL, dtype="float32"), TOKENIZER, STOP)


def answers(partner: PartnerSettings, own: Opened | None, seeds: range = range(3)) -> list[str]:
    """What the partner says to "hello" in dialogues of some seeds."""
    environment = make_environment(GAME, partner, own)

    async def one(seed: int) -> str:
        _, episode = await environment.reset("", {}, seed)
        return str((await episode.step("hello")).info["heard"])

    async def all_of_them() -> list[str]:
        return await asyncio.gather(*map(one, seeds))

    return asyncio.run(all_of_them())


def test_the_policy_a_copy_of_it_and_an_endpoint_of_it_say_the_same(
    tmp_path: Path, server: OpenAIServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    MODEL.save_pretrained(tmp_path / "frozen")
    TOKENIZER.save_pretrained(tmp_path / "frozen")
    said = answers(PartnerSettings(self_play=True, max_tokens=6), policy())
    assert len(set(said)) == 3 and all(said)
    assert answers(PartnerSettings(path=str(tmp_path / "frozen"), max_tokens=6), None) == said
    greedy = {"max_tokens": 6, "temperature": 0.0}
    assert answers(PartnerSettings(path=server.url, **greedy), None) == answers(
        PartnerSettings(self_play=True, **greedy), policy()
    )
    asked = server.seen[-1]["messages"]
    assert [one["role"] for one in asked] == ["user"] and asked[0]["content"] == "You are the other.\n\nhello"


def test_episodes_with_a_partner_are_collected_and_repeat() -> None:
    own = policy()

    def played() -> list[Any]:
        environment = make_environment(GAME, PartnerSettings(self_play=True, max_tokens=3), own)
        sampling = Sampling(3, STOP)
        collector = Collector(own.engine, environment, None, TOKENIZER, sampling, limits=EpisodeSettings(max_turns=2))
        groups = collector.collect([Example(f"e{n}", "", columns={}) for n in range(3)], 2, seed=1)
        return [one.turns for group in groups for one in group.trajectories]

    first = played()
    assert first == played() and all(len(turns) == 1 and turns[0].completion_ids for turns in first)


@pytest.mark.parametrize(
    ("environment", "partner", "message"),
    [
        ("single_turn", {"self_play": True}, "environment 'single_turn' has no other side; allowed: leave `partner`"),
        ("echo", {"self_play": True}, "partner.self_play: no policy plays here; allowed: a `path`"),
    ],
)
def test_mistakes(environment: str, partner: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make_environment(Named(name=environment), PartnerSettings(**partner), None)
