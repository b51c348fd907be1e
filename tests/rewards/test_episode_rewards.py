"""Rewards of what environments say, and shaping by a potential: by hand, and by enumeration of every policy."""

from __future__ import annotations

from itertools import product

import pytest

from posttrain.catalog import find
from posttrain.errors import DataError, RecipeError
from posttrain.reward import Grader, RewardSpec
from posttrain.reward.shaping import potential_based
from posttrain.trajectory import StopReason, Trajectory, Turn

episode_success, episode_return, potential = (
    find("rewards", name) for name in ("episode_success", "episode_return", "potential")
)


def test_success_is_the_environment_s_verdict() -> None:
    assert [episode_success(one) for one in (True, False, None)] == [1.0, 0.0, None]


def test_return_over_turns() -> None:
    value = episode_return([1.0, None, 2.0], [False, True, False], None, discount=0.5, invalid_penalty=0.25)
    assert value == 1.0 - 0.25 + 0.5
    assert value.turns == (1.0, -0.25, 0.5)
    assert episode_return([None, None], [False, False], None) is None
    assert episode_return([], [], None) is None
    for wrong in ({"discount": 1.5}, {"invalid_penalty": -1.0}):
        with pytest.raises(RecipeError, match="episode_return"):
            episode_return([1.0], [False], None, **wrong)


@pytest.mark.parametrize(("outcome", "solved"), [(True, True), (False, False), (None, True)])
def test_the_environment_says_whether_a_return_is_a_success(outcome: bool | None, solved: bool) -> None:
    turn = Turn((1,), (2,), (-0.5,), StopReason.STOP, 0, "go", 0, reward=1.5)
    played = Trajectory("0", 0, "go", {}, (turn,), outcome=outcome)
    with Grader([RewardSpec("episode_return")], workers=1) as grader:
        grader.grade([played])
    assert (played.reward, played.solved) == (1.5, solved)


def test_potential_over_turns() -> None:
    value = potential(["hall", "kitchen", "?"], {"hall": 0.25, "kitchen": 1.0}, discount=0.5)
    assert value.turns == (0.5 * 1.0 - 0.25, 0.5 * 0.0 - 1.0, 0.0)
    with pytest.raises(DataError, match="potentials"):
        potential(["hall"], {"hall": "near"})
    with pytest.raises(RecipeError, match="discount is 2"):
        potential(["hall"], {}, discount=2)


NEXT = {"a": ("b", "c"), "b": ("a", "end"), "c": ("c", "end")}
REWARD = {("a", 0): 0.0, ("a", 1): 0.3, ("b", 0): -0.1, ("b", 1): 1.0, ("c", 0): 0.2, ("c", 1): 0.1}


def play(policy: dict[str, int], start: str, horizon: int) -> tuple[list[str], list[float]]:
    """The states and rewards of one episode, which ends in "end" or is cut off."""
    states: list[str] = []
    rewards = []
    state = start
    while state != "end" and len(states) < horizon:
        states.append(state)
        rewards.append(REWARD[state, policy[state]])
        state = NEXT[state][policy[state]]
    return states, rewards


@pytest.mark.parametrize("discount", [1.0, 0.9, 0.5])
@pytest.mark.parametrize("phi", [{"a": 3.0, "b": -2.0, "c": 0.7}, {"a": 0.0, "b": 10.0, "c": -10.0}])
def test_shaping_changes_every_policy_s_return_by_the_same(discount: float, phi: dict[str, float]) -> None:
    """All policies from all starts: the shaped return is the plain one minus Phi(start), so their order stays."""
    for start in NEXT:
        for actions in product((0, 1), repeat=3):
            states, rewards = play(dict(zip(NEXT, actions, strict=True)), start, horizon=5)
            shaping = potential_based([phi[state] for state in states], discount)
            plain = sum(discount**t * one for t, one in enumerate(rewards))
            shaped = sum(discount**t * (one + f) for t, (one, f) in enumerate(zip(rewards, shaping, strict=True)))
            assert shaped == pytest.approx(plain - phi[start])
    assert potential_based([], discount) == []


def test_shaping_that_is_no_potential_s_changes_the_best_policy() -> None:
    """The same figures with a bonus for a state in place of a difference: going round in circles becomes best."""

    def best(bonus: dict[str, float]) -> tuple[int, ...]:
        def value(actions: tuple[int, ...]) -> float:
            states, rewards = play(dict(zip(NEXT, actions, strict=True)), "a", horizon=5)
            return sum(rewards) + sum(bonus[state] for state in states)

        return max(product((0, 1), repeat=3), key=value)

    assert best({"a": 0.0, "b": 0.0, "c": 0.0}) != best({"a": 0.0, "b": 2.0, "c": 0.0})
