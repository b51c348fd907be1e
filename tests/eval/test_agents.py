"""Contract of every benchmark that plays in an environment: its expert solves it, and who babbles does not."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from posttrain import catalog
from posttrain.data.examples import Example
from posttrain.environments import Environment, Guided
from posttrain.evaluation.benchmark import Benchmark
from posttrain.evaluation.runner import evaluate, load_items, make_grader
from posttrain.rollout.engine import Completion, Request
from posttrain.rollout.episode import RunningEpisode, Slot
from posttrain.rollout.transformers_engine import TransformersEngine
from posttrain.trajectory import StopReason, Trajectory
from tests.tiny import tiny_model

CLICK = {"action": "click", "coordinate": [100, 200]}
RECORDING = {
    "goal": "open the settings",
    "steps": [
        {
            "action_content": action,
            "check_options": action | ({"candidate_bbox": [[50, 150, 150, 250]]} if "coordinate" in action else {}),
            "step_instruction": "do it",
        }
        for action in (CLICK, {"action": "type", "text": "Sound"}, {"action": "wait", "time": 2})
    ],
}

AGENTS: dict[str, dict[str, Any]] = {
    "tau2": {"domain": "airline", "first": 2, "size": 1},
    "dialogue_goal": {"settings": {"brief": True, "goal": 1}, "size": 1},
    "android_control": {"data": [RECORDING]},
    "miniwob": {"tasks": ["click-test", "enter-text"], "seeds_per_task": 1, "max_turns": 3, "processes": 1},
    "textworld": {"family": "coin_collector", "game": {"level": 2}, "size": 2, "max_turns": 4, "processes": 1},
}
"""The settings with which each is tried; `data`: rows of a file."""


@pytest.fixture(params=sorted(AGENTS))
def benchmark(request: pytest.FixtureRequest, tmp_path: Path) -> Benchmark:
    settings = dict(AGENTS[request.param])
    if "data" in settings:
        path = tmp_path / "items.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in settings["data"]))
        settings["data"] = str(path)
    made: Benchmark = catalog.build("eval", request.param, settings)
    return made


@pytest.fixture
def environment(benchmark: Benchmark) -> Iterator[Environment]:
    with closing(catalog.build("environments", benchmark.environment.name, benchmark.environment.settings)) as made:
        yield made


def play(environment: Environment, item: Example, benchmark: Benchmark, said: str | None) -> Trajectory:
    """An episode in which the policy always says `said`, or what the expert would."""

    async def run() -> Trajectory:
        episode = RunningEpisode(Slot(item, 0, 0), 0, 0, 1.0, benchmark.episode)
        await episode.start(environment)
        while not episode.ended:
            text = said
            if text is None:
                assert isinstance(episode._episode, Guided)
                text = await episode._episode.expert()
            assert text is not None
            await episode.take(Request((1,), 0), Completion((2,), (-0.5,), StopReason.STOP, 0), text)
        await episode.close()
        return episode.trajectory

    return asyncio.run(run())


def test_every_agent_benchmark_is_tried() -> None:
    built = {
        member.name: catalog.build("eval", member.name, {}).environment.name
        for member in catalog.members("eval")
        if member.name not in AGENTS and not _needs_settings(member.name)
    }
    assert [name for name, environment in built.items() if environment != "single_turn"] == []


def _needs_settings(name: str) -> bool:
    parameters = inspect.signature(catalog.find("eval", name)).parameters.values()
    return any(one.default is one.empty and one.kind is one.KEYWORD_ONLY for one in parameters)


def test_the_expert_solves_it_and_babble_does_not(benchmark: Benchmark, environment: Environment) -> None:
    items = load_items(benchmark)
    expert = [play(environment, item, benchmark, None) for item in items]
    babble = [play(environment, item, benchmark, "la la") for item in items]
    with make_grader(benchmark, workers=1) as grader:
        grader.check_columns(items[0].columns)
        grader.grade([*expert, *babble])
    assert all(one.solved for one in expert), [(one.error, one.reward, one.end) for one in expert]
    assert [one.solved for one in babble] == [False] * len(babble), [(one.error, one.reward) for one in babble]
    assert not any(one.error for one in (*expert, *babble))


@pytest.mark.parametrize("name", sorted(AGENTS))
def test_sampling_settings(name: str) -> None:
    settings = {"temperature": 0.6, "top_p": 0.95, "max_tokens": 77}
    others = AGENTS[name] | ({"data": "file.jsonl"} if "data" in AGENTS[name] else {})
    made = catalog.build("eval", name, others | settings)
    assert {key: getattr(made, key) for key in settings} == settings


def test_textworld_plays_games_that_training_does_not() -> None:
    benchmark = catalog.build("eval", "textworld", AGENTS["textworld"])
    assert [item.columns["seed"] for item in load_items(benchmark)] == [1_000_000, 1_000_001]


def test_textworld_among_listed_actions() -> None:
    """A model from scratch, which says nothing that a game understands, does only what can be done."""
    benchmark = catalog.build("eval", "textworld", AGENTS["textworld"] | {"listed_actions": True, "temperature": 1.0})
    model, tokenizer = tiny_model(max_position_embeddings=2048)
    with make_grader(benchmark, workers=1) as grader:
        found = evaluate(benchmark, TransformersEngine(model, dtype="float32"), tokenizer, grader)
    verbs = {"go", "take", "drop", "look", "inventory", "examine"}
    assert len(found.completions) == 2
    assert all(one.error is None and one.completion.split()[0] in verbs for one in found.completions)
