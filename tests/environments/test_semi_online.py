"""Semi-online rollouts on hand-made recordings: rewards, patches, ends, and the returns that follow from them."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from posttrain.batch import TokenBatch
from posttrain.environments import Environment, Guided, Step
from posttrain.environments.semi_online import semi_online
from posttrain.errors import DataError, RecipeError
from posttrain.estimator.turn_credit import TurnReturn
from posttrain.rollout.conversation import Conversation
from posttrain.rollout.episode import messages_of
from posttrain.rollout.sequences import rollout_sequences
from posttrain.trajectory import StopReason, Trajectory, Turn

ROW = {
    "goal": "open the settings",
    "steps": [
        {
            "action_content": {"action": "click", "coordinate": [100, 200]},
            "check_options": {"action": "click", "coordinate": [100, 200], "candidate_bbox": [[50, 150, 150, 250]]},
            "step_instruction": "tap the icon",
            "thought": "the icon is there",
        },
        {
            "action_content": {"action": "type", "text": "Sound"},
            "check_options": {"action": "type", "text": "Sound"},
            "step_instruction": "search",
            "thought": "it must be found",
        },
        {
            "action_content": {"action": "wait", "time": 2},
            "check_options": {"action": "wait", "time": 2},
            "step_instruction": "wait",
            "thought": "it loads",
        },
    ],
}
TALK = {
    "completion": [
        {"role": "assistant", "content": "go east"},
        {"role": "user", "content": "A kitchen."},
        {"role": "assistant", "content": "take coin"},
    ]
}
CLICK, TYPE, WAIT = (
    f"<think>t</think><action>{json.dumps(step['action_content'])}</action>"
    for step in ROW["steps"]  # type: ignore[index]
)
WRONG = '<think>t</think><action>{"action": "click", "coordinate": [900, 2000]}</action>'


def play(environment: Environment, row: dict[str, Any], said: list[str]) -> tuple[list[Step], list[str]]:
    """The answers, and the conversation that the policy reads at the end."""

    async def run() -> tuple[list[Step], list[str]]:
        observation, episode = await environment.reset(({"role": "user", "content": "look"},), row, 0)
        assert isinstance(episode, Guided)
        talk, steps = Conversation(()), []
        talk.start(observation)
        for text in said:
            step = await episode.step(text)
            steps.append(step)
            if step.aside:
                talk.aside = step.aside
            else:
                talk.add(text if step.said is None else step.said, messages_of(step))
        return steps, [message["content"] for message in talk.messages if not isinstance(message, str)]

    return asyncio.run(run())


def test_the_experts_actions_solve_it() -> None:
    async def run() -> None:
        observation, episode = await semi_online().reset("", ROW, 0)
        assert [one["role"] for one in observation.messages if not isinstance(one, str)] == ["system", "user"]
        for number in range(3):
            step = await episode.step(await episode.expert())
            assert step.terminated == (number == 2)
            assert step.reward == pytest.approx(1.0)
        assert step.solved

    asyncio.run(run())


def test_rewards_by_equation_8() -> None:
    own = semi_online(patches=-1)
    steps, _ = play(own, ROW, [CLICK, WRONG, WAIT])
    assert [step.reward for step in steps] == pytest.approx([1.0, 0.1, 1.0])
    near = '<think>t</think><action>{"action": "type", "text": "light"}</action>'
    assert play(own, ROW, [CLICK, near])[0][1].reward == pytest.approx(0.5)
    bare = json.dumps({"action": "click", "coordinate": [100, 200]})
    assert play(own, ROW, [bare])[0][0].reward == 0.0
    code = semi_online(patches=-1, reward="code")
    assert [step.reward for step in play(code, ROW, [bare, near, "?"])[0]] == pytest.approx([0.9, 0.1 + 0.45, 0.0])


@pytest.mark.parametrize(("patches", "ends"), [(0, 1), (1, 2), (2, 3), (-1, 3)])
def test_an_episode_ends_when_its_patches_are_used_up(patches: int, ends: int) -> None:
    environment = semi_online(patches=patches)

    async def run() -> int:
        _, episode = await environment.reset("", ROW, 0)
        for number in range(1, 4):
            step = await episode.step(WRONG)
            assert step.off_path
            if step.terminated:
                assert step.solved is False
                return number
        raise AssertionError

    assert asyncio.run(run()) == ends


def test_thought_free_patches() -> None:
    steps, heard = play(semi_online(), ROW, [WRONG, TYPE])
    patched = '<think></think><action>{"action": "click", "coordinate": [100, 200]}</action>'
    assert heard[1:] == ["open the settings\nStep 1: tap the icon", patched, "Step 2: search", TYPE, "Step 3: wait"]
    assert [step.off_path for step in steps] == [True, False]


def test_off_policy_thoughts() -> None:
    _, heard = play(semi_online(patch="off_policy_thought"), ROW, [WRONG])
    assert heard[2] == '<think>the icon is there</think><action>{"action": "click", "coordinate": [100, 200]}</action>'
    bare = {**ROW, "steps": [{**step, "thought": ""} for step in ROW["steps"]]}  # type: ignore[dict-item]
    with pytest.raises(DataError, match="no 'thought'"):
        play(semi_online(patch="off_policy_thought"), bare, [])


def test_on_policy_thoughts_are_asked_for_and_not_trained() -> None:
    environment = semi_online(patch="on_policy_thought")
    steps, heard = play(environment, ROW, [WRONG])
    assert "The right action is" in heard[-1] and "click" in heard[-1] and not steps[0].masked
    steps, heard = play(environment, ROW, [WRONG, "because</think> it is", TYPE])
    assert steps[1].masked and steps[1].reward is None
    thought = '<think>because it is</think><action>{"action": "click", "coordinate": [100, 200]}</action>'
    assert heard[2:4] == [thought, "Step 2: search"] and not any("right action" in text for text in heard)


def test_recorded_conversations() -> None:
    environment = semi_online(match="text")
    steps, heard = play(environment, TALK, ["GO  east", "take coin"])
    assert [step.reward for step in steps] == pytest.approx([1.0, 1.0]) and steps[-1].solved
    steps, heard = play(environment, TALK, ["go west", "take coin"])
    assert [step.reward for step in steps] == pytest.approx([0.5, 1.0]) and steps[-1].solved is False
    assert heard == ["look", "go east", "A kitchen.", "take coin"]


@pytest.mark.parametrize(
    ("through", "returns"),
    [
        (True, [1 + 0.5 * (0.5 + 0.5 * 0.1), 0.5 + 0.5 * 0.1, 0.1, 1 + 0.5 * 1, 1.0]),
        (False, [1.25, 0.5, 0.1, 1.5, 1.0]),
    ],
)
def test_returns_end_where_the_recording_takes_over(through: bool, returns: list[float]) -> None:
    """R_t, gamma 1/2, of rewards 1, 0.5, 0.1 (mistaken, patched), 1, 1: by hand from Eq. 9, and as the code has it."""
    rewards = [1.0, 0.5, 0.1, 1.0, 1.0]
    turns = tuple(
        Turn((1,) * (2 * i + 1), (2,), (-0.5,), StopReason.STOP, 0, "", off_path=i == 2, state=f"step {i}")
        for i in range(5)
    )
    played = Trajectory("p", 0, "", {}, turns, reward=sum(rewards), turn_rewards=tuple(rewards))
    batch = TokenBatch.from_sequences(rollout_sequences(played, 0, 0))
    part = TurnReturn(0.5, "none", through_mistakes=through)
    assert part(batch).tolist() == pytest.approx(returns)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"patch": "all"}, "patch is 'all'"), ({"patches": -2}, "patches is -2")],
)
def test_mistakes(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        semi_online(**settings)
    with pytest.raises(DataError, match="holds no recording"):
        play(semi_online(), {"answer": ""}, [])
    with pytest.raises(DataError, match="not a recording of AndroidControl"):
        play(semi_online(), {"steps": [{"action": 1}]}, [])
