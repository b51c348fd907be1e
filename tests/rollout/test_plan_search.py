"""A* over plans: costs against their formulas, solutions of a lock, what memory saves."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch

from posttrain.config.schema import EpisodeSettings
from posttrain.data.chat import stop_token_ids
from posttrain.data.examples import Example
from posttrain.environments import Observation, Step, told
from posttrain.rollout.collector import Collector
from posttrain.rollout.engine import Sampling
from posttrain.rollout.plan_costs import (
    MemoryAndFrequency,
    Nothing,
    OnePerStep,
    RelativePosition,
    longest_common,
)
from posttrain.rollout.plan_search import SearchSettings, search
from posttrain.rollout.transformers_engine import TransformersEngine
from posttrain.trajectory import Prompt
from tests.tiny import tiny_model

LETTERS = "abcd"


@dataclass
class Lock:
    """Opens to the word of its row; a letter that is not in the word breaks it, an unknown one is invalid."""

    capacity: ClassVar[int | None] = 4
    num_steps: int = 0

    async def reset(self, prompt: Prompt, columns: Mapping[str, Any], seed: int) -> tuple[Observation, Dial]:
        return Observation(told("turn")), Dial(self, columns["word"])

    def close(self) -> None:
        pass


@dataclass
class Dial:
    lock: Lock
    word: str
    turned: str = ""

    async def step(self, action: str) -> Step:
        self.lock.num_steps += 1
        if action not in LETTERS:
            return Step(invalid="no such letter")
        if action == "d" and self.word != "d":
            raise OSError("jammed")
        self.turned += action
        right = self.turned == self.word
        return Step(Observation(told(self.turned)), terminated=right or len(self.turned) > 4, solved=right)

    async def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def collector() -> Collector:
    model, tokenizer = tiny_model(max_position_embeddings=256)
    letters = [tokenizer.convert_tokens_to_ids(letter) for letter in LETTERS]
    model.lm_head = torch.nn.Linear(model.config.hidden_size, len(tokenizer))
    torch.nn.init.zeros_(model.lm_head.weight)
    torch.nn.init.zeros_(model.lm_head.bias)
    model.lm_head.bias.data[letters] = 6.0  # proposals are letters, each as often, and now and then another character
    engine = TransformersEngine(model, dtype="float32")
    sampling = Sampling(max_tokens=1, stop_token_ids=stop_token_ids(tokenizer), temperature=1.0)
    return Collector(engine, Lock(), None, tokenizer, sampling, limits=EpisodeSettings(max_turns=4))


def tasks(*words: str) -> list[Example]:
    return [Example(word, ({"role": "user", "content": word},), columns={"word": word}) for word in words]


def test_the_cheapest_plan_is_found(collector: Collector) -> None:
    settings = SearchSettings(32, 60, OnePerStep(), Nothing())
    found = search(collector, tasks("ab", "c", "ca"), settings, seed=0)
    assert ["".join(one.plan or ()) for one in found] == ["ab", "c", "ca"]
    contents = [message["content"] for message in found[0].messages]
    assert contents == ["a", "a", "b"]
    again = search(collector, tasks("ab", "c", "ca"), settings, seed=0)
    assert again == found


def test_memory_leads_to_what_solved_others(collector: Collector) -> None:
    settings = SearchSettings(32, 200)
    (without,) = search(collector, tasks("abc"), settings, seed=0)
    (knowing,) = search(collector, tasks("abc"), settings, seed=0, memory=[("a", "b", "c")])
    assert without.plan == knowing.plan == ("a", "b", "c")
    assert 4 <= knowing.tried < without.tried / 2


def test_a_task_without_solution_ends(collector: Collector) -> None:
    (found,) = search(collector, tasks("dd"), SearchSettings(8, 6), seed=0)
    assert found.plan is None and found.tried <= 6


def test_costs() -> None:
    memory = [("a", "b", "c"), ("b", "a")]
    cost = MemoryAndFrequency(alpha=0.25)
    assert cost(("a", "x"), 0.6, memory) == pytest.approx((1 - 1 / 2) ** 0.25 * 0.4**0.75)
    assert cost(("a",), 0.6, memory) == 0.0 and cost(("z",), 1.0, memory) == 0.0
    assert cost(("z",), 0.75, []) == pytest.approx(0.25**0.75)
    assert RelativePosition(2.0)(("x", "a"), memory) == pytest.approx(2 * (1 - (1 / 3 + 2 / 2) / 2))
    assert RelativePosition(2.0)(("z",), memory) == RelativePosition(2.0)((), memory) == 2.0


def test_longest_common_subsequence() -> None:
    draw = random.Random(0)
    for _ in range(50):
        first, second = ([draw.choice("abc") for _ in range(draw.randrange(7))] for _ in range(2))
        kept = {
            tuple(first[i] for i in chosen)
            for size in range(len(first) + 1)
            for chosen in itertools.combinations(range(len(first)), size)
        }
        other = {
            tuple(second[i] for i in chosen)
            for size in range(len(second) + 1)
            for chosen in itertools.combinations(range(len(second)), size)
        }
        assert longest_common(first, second) == max(len(one) for one in kept & other)
