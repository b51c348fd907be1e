"""Rewards together: gates, shaping apart from the outcome, rewards of whole groups, deadlines of their own."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from posttrain.errors import RecipeError
from posttrain.estimator.weights import SolvedGate
from posttrain.reward import Grader, RewardSpec
from posttrain.trainer.redraw import says_something
from posttrain.trajectory import Group, StopReason, Trajectory, Turn

FILES = {
    "right": '''
def right(completion, answer):
    """1 where the answer is in the completion."""
    return float(answer in completion)
''',
    "tagged": '''
def tagged(completion):
    """1 where the completion begins as it should; fails on "?"."""
    if completion == "?":
        raise ValueError("no tags to be seen")
    return float(completion.startswith("<a>"))
''',
    "short": '''
def short(completion):
    """Minus the length."""
    return -len(completion) / 10
''',
    "longest": '''
WHOLE_GROUPS = True
def longest(completions, answer, **kwargs):
    """1 for the longest completions of the group, None for an empty one."""
    assert len(set(answer)) == 1 and len(kwargs["prompts"]) == len(completions)
    if any(one == "too few" for one in completions):
        return []
    most = max(map(len, completions))
    return [float(len(one) == most) if one else None for one in completions]
''',
    "slow": '''
import time
DEADLINE_SECONDS = 5.0
def slow(completion):
    """1 after a while."""
    time.sleep(0.5)
    return 1.0
''',
}


@pytest.fixture(autouse=True)
def _files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rewards").mkdir()
    monkeypatch.setenv("POSTTRAIN_PATH", str(tmp_path))
    for name, text in FILES.items():
        (tmp_path / "rewards" / f"{name}.py").write_text(text)


def played(text: str, prompt: str = "p", error: str | None = None) -> Trajectory:
    turn = Turn((1, 2), (3, 4, 5), (-0.1, -0.2, -0.3), StopReason.STOP, 0, text)
    return Trajectory(prompt, 0, "question", {"answer": "4"}, (turn,), error=error)


def graded(specs: list[RewardSpec], *texts: str, **grader: Any) -> tuple[list[Trajectory], Grader]:
    trajectories = [played(text) for text in texts]
    with Grader(specs, workers=1, **grader) as made:
        made.grade(trajectories)
    return trajectories, made


def test_a_reward_counts_only_where_its_gate_has_the_full_mark() -> None:
    specs = [RewardSpec("right", 2.0, gate="tagged"), RewardSpec("tagged", 0.5)]
    found, grader = graded(specs, "<a>4", "4", "<a>5", "?")
    assert [one.rewards for one in found[:3]] == [
        {"right": 1.0, "tagged": 1.0},
        {"right": 0.0, "tagged": 0.0},
        {"right": 0.0, "tagged": 1.0},
    ]
    assert [one.reward for one in found] == [2.5, 0.0, 0.5, None]
    assert [one.solved for one in found] == [True, False, False, None]
    assert grader.failures == {"tagged: ValueError": 1, "right: gate": 1}
    assert found[3].error is not None
    assert "reward tagged: ValueError: no tags to be seen" in found[3].error


def test_a_gated_reward_is_not_called() -> None:
    """`slow` would run into the deadline."""
    specs = [RewardSpec("right"), RewardSpec("slow", gate="right", deadline_seconds=0.1)]
    found, grader = graded(specs, "5", "5", "4")
    assert [one.reward for one in found] == [0.0, 0.0, None]
    assert grader.failures == {"slow: deadline": 1}


def test_gates_one_after_another() -> None:
    specs = [
        RewardSpec("longest", gate="right", outcome=True),
        RewardSpec("right", gate="tagged"),
        RewardSpec("tagged"),
    ]
    found, _ = graded(specs, "<a>4 and more", "<a>4", "4 and much, much more", "<a>5 and much, much more")
    assert [one.rewards["longest"] for one in found] == [1.0, 0.0, 0.0, 0.0]  # the first two are compared
    assert [one.solved for one in found] == [True, False, False, False]


@pytest.mark.parametrize(
    ("specs", "said"),
    [
        (
            [RewardSpec("right", gate="taged"), RewardSpec("tagged")],
            "is 'taged'; did you mean 'tagged'",
        ),
        ([RewardSpec("right", gate="right")], "gates in a circle among right"),
        ([RewardSpec("right", gate="short"), RewardSpec("short", gate="right")], "circle among right, short"),
        ([RewardSpec("right", outcome=True, shaping=True)], "outcome: true and shaping: true"),
        ([RewardSpec("right", shaping=True), RewardSpec("short", shaping=True)], "all say shaping: true"),
    ],
)
def test_what_does_not_fit_together(specs: list[RewardSpec], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        Grader(specs)


def test_shaping_is_trained_on_and_is_no_outcome() -> None:
    """Filters and pass rates see the same with and without it."""
    specs = [RewardSpec("short", shaping=True), RewardSpec("right", 2.0)]
    found, _ = graded(specs, "4", "4 or so", "5", "5 or so")
    assert [one.reward for one in found] == pytest.approx([1.9, 1.3, -0.1, -0.7])
    assert [one.shaping for one in found] == pytest.approx([-0.1, -0.7, -0.1, -0.7])
    assert [one.solved for one in found] == [True, True, False, False]
    alike = Group("p", tuple(found[:2]))
    assert len({one.reward for one in alike.trajectories}) == 2
    assert not says_something(alike, "right")  # dynamic sampling draws again
    assert (alike.num_graded, alike.num_solved) == (2, 2)  # what curricula and gates count


def test_the_outcome_of_a_recipe_is_its_first_reward_that_is_no_shaping(
    tiny_recipe: dict[str, Any], write_recipe: Callable[..., Path]
) -> None:
    from posttrain.config import load_recipe
    from posttrain.reward_specs import outcome_of

    tiny_recipe["rewards"] = [{"name": "repetition", "shaping": True}, {"name": "reasoning_gym", "gate": "format_tags"}]
    tiny_recipe["rewards"].append({"name": "format_tags", "weight": 0.1})
    assert outcome_of(load_recipe(write_recipe(tiny_recipe)).recipe.rewards) == "reasoning_gym"
    tiny_recipe["rewards"][1]["gate"] = "format_tag"
    with pytest.raises(RecipeError, match="the gate of 'reasoning_gym' is 'format_tag'; did you mean 'format_tags'"):
        load_recipe(write_recipe(tiny_recipe))


def test_a_reward_of_groups_sees_all_of_one_prompt() -> None:
    texts = ["a", "aaa", "aa", "aaaa", "", "aaa"]
    trajectories = [played(text, prompt) for text, prompt in zip(texts, "ppqqrr", strict=True)]
    failed = played("a" * 9, "q", error="engine: gone")
    with Grader([RewardSpec("longest")], workers=2) as grader:
        grader.check_columns(["answer"])
        grader.grade([*trajectories[:4], failed, *trajectories[4:]])
        assert [one.reward for one in trajectories] == [0.0, 1.0, 0.0, 1.0, None, 1.0]
        assert failed.reward is None
        again = [played(text) for text in texts]  # one prompt, drawn three times
        grader.grade(again, group_size=2)
        assert [one.reward for one in again] == [0.0, 1.0, 0.0, 1.0, None, 1.0]
        few = [played("too few"), played("a")]
        grader.grade(few)
        assert [one.reward for one in few] == [None, None]
    assert grader.failures == {"longest: returned None": 2, "longest: ValueError": 2}
    assert few[0].error == "reward longest: ValueError: 0 values for 2 completions"


def test_deadlines_of_their_own() -> None:
    start = time.monotonic()
    found, _ = graded([RewardSpec("slow")], "a", deadline_seconds=0.1)
    assert found[0].reward == 1.0  # its file gives it 5 s
    found, grader = graded([RewardSpec("slow", deadline_seconds=0.2)], "a")
    assert grader.failures == {"slow: deadline": 1}
    assert found[0].error == "reward slow: deadline: no result after 0.2 s"
    assert time.monotonic() - start < 20


def test_the_gate_of_solved_prompts_reads_the_outcome() -> None:
    """`SolvedGate` weighs a group by its solved trajectories, whatever shaping adds."""
    import torch

    from posttrain.batch import Source, TokenBatch, TokenSequence

    def weights(shaping: float) -> torch.Tensor:
        sequences = [
            TokenSequence(
                (1, 2), (False, True), Source.ROLLOUTS, 0, reward=float(solved) + shaping * place, solved=solved
            )
            for place, solved in enumerate([True, False, False])
        ]
        return SolvedGate(0)(TokenBatch.from_sequences(sequences))

    assert torch.equal(weights(0.0), weights(5.0))
