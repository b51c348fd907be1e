"""Environments of verifiers' v1 API, the package itself: played, sampled with an engine, trained on."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from posttrain.config import load_recipe
from posttrain.config.schema import EpisodeSettings
from posttrain.data.chat import stop_token_ids
from posttrain.data.examples import Example
from posttrain.environments import Environment, Observation, Step, TakesTurns
from posttrain.environments.processes import EpisodeLostError
from posttrain.environments.tool_calls import ToolCall, write_call
from posttrain.environments.verifiers import verifiers
from posttrain.environments.verifiers_worker import Setup, _load
from posttrain.errors import RecipeError, TooManyFailuresError
from posttrain.rollout.collector import Collector, check_failure_rate, rollout_counts
from posttrain.rollout.engine import Sampling
from posttrain.rollout.sequences import rollout_sequences
from posttrain.rollout.transformers_engine import TransformersEngine
from posttrain.trainer import train
from posttrain.trajectory import EpisodeEnd, StopReason, Turn
from tests.living import descendants, left
from tests.tiny import tiny_model

TEMPLATE = (
    "{% if tools %}<|system|>{% for tool in tools %}{{ tool.function.name }} {% endfor %}<|end|>{% endif %}"
    "{% for message in messages %}"
    "{% if message.role == 'tool' %}<|user|>{{ message.name }}={{ message.content }}<|end|>"
    "{% else %}{{ '<|' + message.role + '|>' + message.content + '<|end|>' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@pytest.fixture(autouse=True, scope="module")
def _importable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        patch.syspath_prepend(str(Path(__file__).parent))
        yield
        sys.modules.pop("verifiers_words", None)
    torch.set_num_threads(threads)


PLAIN, THREE, TOOLS, FIVE, NO_SETUP, NO_SCORE, DIES = range(7)  # the tasks


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Words]:
    """One environment for what needs no other settings, and the file that its program keeps of what it heard."""
    log = tmp_path_factory.mktemp("words") / "log.jsonl"
    with opened(args={"agent": role(log=str(log))}) as environment:
        yield Words(environment, log)


@dataclass(frozen=True)
class Words:
    environment: Environment
    log: Path


def role(**settings: Any) -> dict[str, Any]:
    """Of an agent: the settings of its program, and max_turns."""
    max_turns = settings.pop("max_turns", None)
    more = {} if max_turns is None else {"max_turns": max_turns}
    return {"harness": {"id": "verifiers_words", **settings}, **more}


@contextmanager
def opened(**settings: Any) -> Iterator[Environment]:
    environment = verifiers(**{"env": "verifiers_words", "deadline_seconds": 60.0, **settings})
    try:
        yield environment
    finally:
        environment.close()


def sampled(text: str) -> Turn:
    return Turn((1,), (2, 3), (-0.5, -0.5), StopReason.STOP, 0, text)


async def begin(environment: Environment, task: int = 0) -> tuple[Observation, Any]:
    observation, episode = await environment.reset("", {"seed": task}, 5)
    assert isinstance(episode, TakesTurns)
    return observation, episode


def collector(environment: Environment, max_tokens: int = 6, template: str | None = None, **limits: Any) -> Collector:
    model, tokenizer = tiny_model()
    tokenizer.chat_template = template or tokenizer.chat_template
    engine = TransformersEngine(model, dtype="float32", batch_tokens=8192)
    sampling = Sampling(max_tokens, stop_token_ids(tokenizer))
    return Collector(engine, environment, None, tokenizer, sampling, limits=EpisodeSettings(**limits))


def tasks(*numbers: int) -> list[Example]:
    return [Example(f"task {number}", "", columns={"seed": number}) for number in numbers]


def logprobs(turn: Turn) -> list[float]:
    """Of a turn's tokens, by a forward pass of the model itself."""
    model, _ = tiny_model()
    ids = torch.tensor([[*turn.prompt_ids, *turn.completion_ids]])
    with torch.no_grad():
        found = torch.log_softmax(model.eval()(ids).logits[0, :-1].float(), -1).gather(-1, ids[0, 1:, None])[:, 0]
    return found[len(turn.prompt_ids) - 1 :].tolist()


def earned(text: str) -> float:
    return 2 * text.count("e") / max(len(text.strip()), 1)


def test_tools_are_called_and_answered() -> None:
    """What the program asks next holds the policy's own words, and its last words are rewarded."""

    async def play(environment: Environment) -> tuple[Observation, Step, Step]:
        first, episode = await begin(environment, TOOLS)
        step = await episode.take(sampled(f"I ask.\n{write_call(ToolCall('price', {'fruit': 'pear'}))}"))
        last = await episode.take(sampled("eeee"))
        await episode.close()
        return first, step, last

    with opened(args={"agent": role(stream=True)}) as environment:
        first, step, last = asyncio.run(play(environment))
        again, *_ = asyncio.run(play(environment))
    assert first.messages == ({"role": "system", "content": "Say."}, {"role": "user", "content": "Task 2: apple?"})
    assert [tool["function"]["name"] for tool in first.tools] == ["price"] and again == first
    assert step.anew and not step.masked and not step.terminated and step.reward is None
    asked, answer = step.observation.messages[2:]
    assert asked == {"role": "assistant", "content": f"I ask.\n{write_call(ToolCall('price', {'fruit': 'pear'}))}"}
    assert answer["content"] == "5" and answer["name"] == "price"  # type: ignore[index]
    assert (last.reward, last.terminated, last.truncated, last.solved) == (2.0, True, False, True)
    assert last.info == {"letters": 1.0, "turns": 2.0}


def test_what_is_sampled_is_what_is_trained_on(words: Words) -> None:
    words.log.write_text("")
    played = collector(words.environment)
    groups = played.collect(tasks(PLAIN, THREE), 2, seed=3)
    again = played.collect(tasks(PLAIN, THREE), 2, seed=3)
    assert [one.turns for group in groups for one in group.trajectories] == [
        one.turns for group in again for one in group.trajectories
    ], "the same seed plays the same"
    told = [json.loads(line) for line in words.log.read_text().splitlines()]
    special, num_whole = {*played.tokenizer.all_special_ids}, 0
    heard = {(*one["prompt_token_ids"], *one["choices"][0]["token_ids"]): one for one in told}
    for number, group in zip((1, 3), groups, strict=True):
        for one in group.trajectories:
            assert one.error is None and one.end is EpisodeEnd.TERMINATED and len(one.turns) == number
            sequences, last = rollout_sequences(one, 0, 0), one.turns[-1]
            if not any({*turn.completion_ids[:-1]} & special for turn in one.turns):  # which a text leaves out
                (sequence,) = sequences
                assert sequence.token_ids == last.prompt_ids + last.completion_ids
                num_whole += number == 3
            pairs = [pair for row in sequences for pair in zip(row.token_ids, row.action_mask, strict=True)]
            assert [token for token, own in pairs if own] == [id for turn in one.turns for id in turn.completion_ids]
            trained = [logprob for row in sequences for logprob in row.behavior_logprobs or ()]
            assert trained == [logprob for turn in one.turns for logprob in turn.logprobs]
            for turn in one.turns:
                (choice,) = heard[turn.prompt_ids + turn.completion_ids]["choices"]
                assert [entry["logprob"] for entry in choice["logprobs"]["content"]] == list(turn.logprobs)
                assert choice["message"]["content"] == turn.text
                assert logprobs(turn) == pytest.approx(turn.logprobs, abs=1e-4)
            assert last.reward == pytest.approx(earned(last.text))
            assert all(turn.reward is None for turn in one.turns[:-1])
    assert num_whole >= 1


def test_calls_of_tools_that_an_engine_samples_continue_the_sequence(words: Words) -> None:
    """Lines in place of samples, since a random model calls nothing; a third turn is sampled."""
    call = write_call(ToolCall("price", {"fruit": "apple"}))
    played = collector(words.environment, template=TEMPLATE)
    (group,) = played.collect(tasks(TOOLS), 1, seed=0, lines=[[call, f"Again. {call}"]])
    (one,) = group.trajectories
    assert one.error is None and len(one.turns) == 3
    (sequence,) = rollout_sequences(one, 0, 0)
    text = played.tokenizer.decode(list(sequence.token_ids))
    head = "<|system|>price <|end|><|system|>Say.<|end|><|user|>Task 2: apple?<|end|>"
    asked = f"{head}<|assistant|>{call}<|end|><|user|>price=3<|end|>"
    assert text.startswith(f"{asked}<|assistant|>Again. {call}<|end|><|user|>price=3<|end|><|assistant|>")


def test_a_failed_episode_is_counted_and_the_others_go_on(words: Words) -> None:
    groups = collector(words.environment).collect(tasks(NO_SETUP, PLAIN, NO_SCORE, THREE), 2, seed=1)
    causes = {0: "TaskError: task setup: ValueError: no fruit today", 2: "ZeroDivisionError: nothing to divide"}
    for number, group in enumerate(groups):
        for one in group.trajectories:
            if number not in causes:
                assert one.error is None and one.end is EpisodeEnd.TERMINATED and one.attempt == 0
                continue
            assert one.end is EpisodeEnd.ERROR and one.attempt == 1 and one.reward is None
            assert one.error is not None and one.error.startswith("environment: EpisodeLostError: TaskError: ")
            assert causes[number] in one.error
    assert rollout_counts(groups).retried == 4
    with pytest.raises(TooManyFailuresError, match=r"4 of 8 trajectories failed.*no fruit today"):
        check_failure_rate(groups, 0.4, graded=False)


def test_where_we_cut_off_it_is_not_graded(words: Words) -> None:
    """The program's next call is refused, and the process goes on."""
    cut = collector(words.environment, max_turns=2).collect(tasks(FIVE), 2, seed=2)[0].trajectories
    whole = collector(words.environment).collect(tasks(FIVE), 2, seed=2)[0].trajectories
    for one, other in zip(cut, whole, strict=True):
        assert one.end is EpisodeEnd.TURNS and one.outcome is False and one.error is None
        assert [turn.reward for turn in one.turns] == [None, None]
        assert other.end is EpisodeEnd.TERMINATED and len(other.turns) == 5
        assert one.turns == other.turns[:2], "what was played of it is the same"


def test_where_verifiers_cuts_off_it_is_graded() -> None:
    with opened(args={"agent": role(max_turns=2)}, episodes=1) as environment:
        groups = collector(environment).collect(tasks(FIVE, PLAIN), 1, seed=2)
    one, other = (group.trajectories[0] for group in groups)
    assert one.end is EpisodeEnd.TRUNCATED and len(one.turns) == 2 and one.error is None
    assert one.turns[-1].reward == pytest.approx(earned(one.turns[-1].text))
    assert other.end is EpisodeEnd.TERMINATED, "with room for one at a time the next is played after it"


def test_what_was_said_too_late_is_not_trained_on() -> None:
    """verifiers has given up the call: nobody has heard the turn, and what was played before it is graded."""

    async def play(environment: Environment) -> tuple[Step, Step]:
        _, episode = await begin(environment, THREE)
        first = await episode.take(sampled("ee"))
        while not episode.asked.abandoned:
            await asyncio.sleep(0.1)
        late = await episode.take(sampled("to nobody"))
        await episode.close()
        return first, late

    with opened(args={"agent": {**role(), "timeout": {"rollout": 5.0}}}) as environment:
        first, late = asyncio.run(play(environment))
    assert not first.masked and late.masked and late.truncated and late.reward == 2.0


def test_a_process_that_dies_is_replaced() -> None:
    with opened(args={"agent": role()}) as environment:

        async def play() -> Step:
            _, episode = await begin(environment, DIES)
            with pytest.raises(EpisodeLostError, match="the process of verifiers ended"):
                await episode.take(sampled("e"))
            await episode.close()
            _, episode = await begin(environment, PLAIN)
            step: Step = await episode.take(sampled("e"))
            await episode.close()
            return step

        assert asyncio.run(play()).reward == 2.0


def test_of_two_agents_only_the_trainable_one_is_trained_on() -> None:
    """A simulated user's lines are the policy's too, but masked; the assistant's turns are one sequence."""
    args = {"id": "user-sim", "assistant": role(), "user": role(max_turns=2), "persona": "You ask: {scenario}"}
    with opened(args=args) as environment:
        (group,) = collector(environment, 4).collect(tasks(PLAIN), 4, seed=4)
    special, num_whole = {*tiny_model()[1].all_special_ids}, 0
    for one in group.trajectories:
        assert one.error is None and [turn.masked for turn in one.turns] == [True, False, True, False]
        mine = [turn for turn in one.turns if not turn.masked]
        sequences = rollout_sequences(one, 0, 0)
        assert sum(row.num_actions for row in sequences) == sum(len(turn.completion_ids) for turn in mine)
        if not any({*turn.completion_ids[:-1]} & special for turn in one.turns):
            (sequence,) = sequences
            assert sequence.token_ids == mine[-1].prompt_ids + mine[-1].completion_ids
            num_whole += 1
    assert num_whole >= 1


def test_tokens_that_verifiers_renders(tmp_path: Path) -> None:
    """Its TrainClient: the prompt's tokens are those that it sent, and it reads our tokens as what was said."""
    _, tokenizer = tiny_model()
    tokenizer.save_pretrained(tmp_path)
    client = {"renderer_model_name": str(tmp_path), "renderer": {"name": "default"}}
    with opened(args={"agent": role()}, train_client=client) as environment:
        (group,) = collector(environment).collect(tasks(THREE), 1, seed=5)
    (one,) = group.trajectories
    assert one.error is None and len(one.turns) == 3
    head = "<|system|>Say.<|end|><|user|>Task 1: pear?<|end|><|assistant|>"
    assert tokenizer.decode(list(one.turns[0].prompt_ids)) == head
    assert one.prompt == "", "no messages are known, so the row's prompt stands"
    for before, turn in pairwise(one.turns):
        assert before.text in tokenizer.decode(list(turn.prompt_ids))
    for turn in one.turns:
        assert logprobs(turn) == pytest.approx(turn.logprobs, abs=1e-4)
    assert one.turns[-1].reward == pytest.approx(earned(one.turns[-1].text))


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({}, "the harness 'bash' of 'agent' runs what the policy writes; say where"),
        ({"agent": {**role(), "retries": {"max_retries": 1}}}, "agent.retries is set; allowed: 0"),
        ({"agent": role(), "retries": {"max_retries": 1}}, "retries is set; allowed: 0"),
    ],
)
def test_settings_that_are_refused(settings: Mapping[str, Any], why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import verifiers_words  # type: ignore[import-not-found]

    if not settings:
        monkeypatch.setattr(verifiers_words, "__all__", ["Words"])
    with pytest.raises(RecipeError, match=why):
        _load(Setup("verifiers_words", settings))


def test_mistakes_end_the_run(words: Words) -> None:
    with pytest.raises(RecipeError, match="environment verifiers: no_such_words: ModuleNotFoundError"):
        verifiers(env="no_such_words")
    with pytest.raises(RecipeError, match="episodes is 0; allowed: above 0"):
        verifiers(env="verifiers_words", episodes=0)
    for row, why in (({"seed": 7}, "has 7 tasks, and a row asks for that of seed 7"), ({}, "column seed is None")):
        with pytest.raises(RecipeError, match=why):
            asyncio.run(words.environment.reset("", row, 0))


def test_nothing_is_left_after_close() -> None:
    before = {*threading.enumerate()}
    processes = descendants()
    with opened(args={"agent": role()}) as environment:
        asyncio.run(begin(environment))  # and it is not closed
        assert len({*threading.enumerate()} - before) >= 2
    assert {*threading.enumerate()} <= before
    assert not left(one for one in descendants() if one not in processes)


def test_training(tmp_path: Path) -> None:
    recipe = tmp_path / "words.yaml"
    recipe.write_text(
        "# Words.\n#   posttrain train words.yaml\n# Cost: seconds.\n\n"
        "extends: tiny/base\nalgorithm: grpo\ndemonstrations: null\n"
        "prompts: {path: tasks, config: {size: 2, seed: 0}}\n"
        "environment:\n  name: verifiers\n  env: verifiers_words\n"
        "  args: {agent: {harness: {id: verifiers_words}}}\n"
        "rewards: episode_return\n"
        "rollout: {group_size: 4, max_tokens: 6, dtype: float32, reward_workers: 1}\n"
        "training: {steps: 2, prompts_per_step: 2, learning_rate: 1e-3}\n"
    )
    output = tmp_path / "run"
    assert train(load_recipe(recipe), output) is None
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    played = [json.loads(line) for path in (output / "rollouts").glob("*.jsonl") for line in path.open()]
    assert len(played) == 16 and all(one["reward"] is not None for one in played)
