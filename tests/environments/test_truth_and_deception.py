"""Truth and Deception: both roles, the script's characters, who wins."""

from __future__ import annotations

from typing import Any

import pytest

from posttrain.environments.truth_and_deception import (
    Deceiver,
    Guesser,
    TruthAndDeceptionRules,
    game,
    truth_and_deception,
)

RULES = TruthAndDeceptionRules(4)


def opened(role: str, seed: int) -> tuple[Any, str]:
    one = game(role=role, max_lines=4, scripted=True)
    opening = one.reset({"seed": seed}, 0)
    return one, opening.messages[0]["content"]


@pytest.mark.parametrize("seed", range(4))
def test_a_deceiver_wins_where_the_guesser_guesses_wrong(seed: int) -> None:
    guesser = RULES.partner(1, seed)
    assert isinstance(guesser, Guesser)
    for claimed in (1, 2):
        one, opening = opened("deceiver", seed)
        right = 1 if "(correct)" in opening.split("Fact 2")[0] else 2
        first = one.step(f"Fact {claimed} is correct.")
        assert ("suspicious" in first.observation.messages[0]["content"]) == guesser.suspicious
        last = one.step("Really.")
        guessed = 3 - claimed if guesser.suspicious else claimed
        assert last.terminated and last.solved == (guessed != right) and last.reward == float(last.solved)


@pytest.mark.parametrize("seed", range(4))
def test_a_guesser_hears_the_claim_first(seed: int) -> None:
    deceiver = RULES.partner(0, seed)
    assert isinstance(deceiver, Deceiver)
    one, opening = opened("guesser", seed)
    claimed = int(opening.rsplit("Fact ", 1)[1][0])
    asked = one.step("Which one?")
    assert "Now guess" in asked.observation.messages[0]["content"]
    assert one.step("no idea").invalid is not None
    assert one.step(f"[Fact {claimed}]").solved == deceiver.truthful


def test_both_characters_come_up() -> None:
    assert {RULES.partner(1, seed) == Guesser(True) for seed in range(20)} == {True, False}


def test_an_odd_number_of_lines_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="max_lines is 5; allowed: an even number"):
        truth_and_deception(max_lines=5)
