"""A partner with an engine: lines of one turn in one call, whatever is slow; failures are the episode's own."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from posttrain.data.chat import stop_token_ids
from posttrain.environments import Observation, Step, told
from posttrain.environments.speaker import SpeakerError
from posttrain.environments.two_sided import Dialogues
from posttrain.rollout.engine import Completion, Request, Sampling
from posttrain.rollout.speaker import EngineSpeaker
from posttrain.rollout.transformers_engine import TransformersEngine
from posttrain.trajectory import Prompt
from tests.tiny import tiny_model

MODEL, TOKENIZER = tiny_model(max_position_embeddings=96)


@dataclass
class Counting(TransformersEngine):
    """The engine, and how many requests each call had."""

    def __init__(self) -> None:
        super().__init__(MODEL, dtype="float32", batch_tokens=4096)
        self.calls: list[int] = []

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        self.calls.append(len(requests))
        return super().generate(requests, sampling)


@dataclass
class Talk:
    """Both sides speak `rounds` times; the partner opens where `seed` is odd. Steps take as long as the seed says."""

    rounds: int = 2
    capacity: int | None = None

    async def reset(self, prompt: Prompt, columns: Mapping[str, Any], seed: int) -> tuple[Observation, Game]:
        speaks = "partner" if seed % 2 else "policy"
        return Observation(told("policy:"), info={"speaks": speaks, "partner": told("partner:")}), Game(
            speaks, self.rounds, seed
        )

    def close(self) -> None:
        pass


@dataclass
class Game:
    speaks: str
    rounds: int
    seed: int
    said: list[tuple[str, str]] = field(default_factory=list)

    async def step(self, action: str) -> Step:
        await asyncio.sleep(0.01 * (self.seed % 3))
        self.said.append((self.speaks, action))
        self.speaks = "policy" if self.speaks == "partner" else "partner"
        over = len(self.said) >= 2 * self.rounds
        return Step(Observation(told(action), info={"speaks": self.speaks}), 1.0, terminated=over, solved=over or None)

    async def close(self) -> None:
        pass


def speaker(engine: Any = None, max_tokens: int = 4) -> EngineSpeaker:
    sampling = Sampling(max_tokens, stop_token_ids(TOKENIZER))
    return EngineSpeaker(Counting() if engine is None else engine, TOKENIZER, sampling)


async def dialogues(partner: EngineSpeaker, seeds: Sequence[int], say: str = "a") -> list[list[Any]]:
    """What each of some dialogues has heard, played in lockstep as the collector does."""
    environment = Dialogues(Talk(), partner)
    started = await asyncio.gather(*(environment.reset("", {}, seed) for seed in seeds))
    heard: list[list[Any]] = [[opening.messages] for opening, _ in started]
    running = list(range(len(seeds)))
    while running:
        steps = await asyncio.gather(*(started[index][1].step(say) for index in running))
        for index, step in zip(running, steps, strict=True):
            heard[index].append(step)
        running = [index for index, step in zip(running, steps, strict=True) if not step.terminated]
    return heard


def test_the_lines_of_a_turn_are_one_call() -> None:
    partner = speaker()
    heard = asyncio.run(dialogues(partner, range(6)))
    assert partner.engine.calls == [3, 6, 3]  # openings; answers of all; those whose partner speaks last are over
    assert [len(one) for one in heard] == [3, 3, 3, 3, 3, 3]
    for opening, *steps in heard[1::2]:
        assert opening[0]["content"].startswith("policy:\n\n") and [step.reward for step in steps] == [2.0, 1.0]
    assert all([step.reward for step in one[1:]] == [2.0, 2.0] for one in heard[::2])


def test_what_is_said_does_not_depend_on_the_company() -> None:
    together = asyncio.run(dialogues(speaker(), range(6)))
    assert together == asyncio.run(dialogues(speaker(), range(6)))  # and a further event loop with another speaker
    partner = speaker()
    assert [asyncio.run(dialogues(partner, [seed]))[0] for seed in range(6)] == together


def test_a_line_beyond_the_window_fails_its_own_episode() -> None:
    async def play() -> list[Any]:
        environment = Dialogues(Talk(), speaker())
        started = [(await environment.reset("", {}, seed))[1] for seed in (0, 2)]
        return await asyncio.gather(started[0].step("a" * 100), started[1].step("a"), return_exceptions=True)

    failed, answered = asyncio.run(play())
    assert isinstance(failed, SpeakerError) and "allowed: 95" in str(failed)
    assert isinstance(answered, Step) and answered.reward == 2.0


def test_an_engine_that_raises_raises_in_every_dialogue() -> None:
    class Broken(Counting):
        def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
            raise MemoryError("no room")

    async def play() -> list[Any]:
        environment = Dialogues(Talk(), speaker(Broken()))
        started = [(await environment.reset("", {}, seed))[1] for seed in (0, 2)]
        return await asyncio.gather(*(one.step("a") for one in started), return_exceptions=True)

    assert [str(one) for one in asyncio.run(play())] == ["no room", "no room"]


@pytest.mark.parametrize("abandoned", [0, 1])
def test_a_dialogue_that_is_cancelled_does_not_hold_up_the_others(abandoned: int) -> None:
    async def play() -> Step:
        environment = Dialogues(Talk(), speaker())
        started = [(await environment.reset("", {}, seed))[1] for seed in (2, 1)]
        tasks = [asyncio.ensure_future(one.step("a")) for one in started]
        await asyncio.sleep(0)
        tasks[abandoned].cancel()
        return await tasks[1 - abandoned]

    assert asyncio.run(play()).reward is not None
