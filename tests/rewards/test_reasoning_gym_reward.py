"""The scorers of reasoning-gym, and those of them that are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import reasoning_gym as library

from posttrain.catalog import find
from posttrain.errors import RecipeError, UserError
from posttrain.reward import Grader, RewardSpec
from posttrain.trajectory import StopReason, Trajectory, Turn

score = find("rewards", "reasoning_gym")


def item(name: str, index: int = 0, **settings: Any) -> dict[str, Any]:
    made: dict[str, Any] = library.create_dataset(name, size=index + 1, seed=1, **settings)[index]
    return made


@pytest.mark.parametrize("name", ["chain_sum", "letter_counting", "leg_counting", "maze", "word_sorting", "sudoku"])
def test_the_oracle_scores_one(name: str) -> None:
    entry = item(name)
    assert score(entry["answer"], entry) == 1.0
    assert score(f"Well. <answer>9</answer> No: <answer>\n{entry['answer']}\n</answer>!", entry) == 1.0
    assert score("no idea", entry) == 0.0


def test_partial_credit_only_where_asked_for() -> None:
    entry = item("chain_sum")
    listing = f"{entry['answer']} or another"
    assert score(listing, entry) == 0.0
    assert 0.0 < score(listing, entry, strict=False) < 1.0


@pytest.mark.parametrize(
    ("name", "answer"),
    [("prime_factorization", "two times three"), ("boxnet", "1"), ("boxnet", "[[]]"), ("game_of_life", "{}")],
)
def test_scorers_that_raise_on_a_wrong_answer_give_zero(name: str, answer: str) -> None:
    assert score(answer, item(name)) == 0.0


@pytest.mark.parametrize("name", ["game_of_life_halting", "complex_arithmetic", "coin_flip"])
def test_scorers_that_pay_wrong_answers_are_refused(name: str) -> None:
    with pytest.raises(RecipeError, match=f"'{name}' cannot be a reward: its scorer gives full marks to"):
        score("nan", item(name))


def test_scorers_that_run_the_answer_are_refused_unless_allowed(tmp_path: Path) -> None:
    entry = item("countdown")
    trace = tmp_path / "trace"
    attack = f"__import__('pathlib').Path({str(trace)!r}).touch()"
    with pytest.raises(RecipeError, match="allow_code_execution: true"):
        score(attack, entry)
    assert not trace.exists()
    assert score(entry["metadata"]["expression"], entry, allow_code_execution=True) == 1.0


def test_a_composite_is_scored_by_its_parts() -> None:
    from reasoning_gym.composite import DatasetSpec

    specs = [DatasetSpec("chain_sum", 1, {}), DatasetSpec("leg_counting", 1, {})]
    entries = [item("composite", i, datasets=specs) for i in range(6)]
    assert {entry["metadata"]["source_dataset"] for entry in entries} == {"chain_sum", "leg_counting"}
    assert [score(entry["answer"], entry) for entry in entries] == [1.0] * 6


def test_in_workers() -> None:
    entries = [item("chain_sum", i) for i in range(4)]
    trajectories = [
        Trajectory("p", 0, "q", {"entry": e}, (Turn((1,), (2,), (0.0,), StopReason.STOP, 0, text),))
        for e, text in zip(entries, [entries[0]["answer"], "x", entries[2]["answer"], ""], strict=True)
    ]
    with Grader([RewardSpec("reasoning_gym")], workers=2) as grader:
        grader.check_columns(["question", "answer", "entry"])
        grader.grade(trajectories)
        assert [t.reward for t in trajectories] == [1.0, 0.0, 1.0, 0.0]
        refused = Trajectory("p", 0, "q", {"entry": item("countdown")}, trajectories[0].turns)
        with pytest.raises(UserError, match="runs the model's answer as code"):
            grader.grade([refused])
