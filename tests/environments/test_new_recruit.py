"""New Recruit: the script decides by the game's own table, points are rewards, a partner may take its place."""

from __future__ import annotations

import asyncio
from contextlib import closing, nullcontext
from typing import Any, ClassVar

import pytest

from posttrain.environments import Guided
from posttrain.environments.new_recruit import MOST_POINTS, Concerned, NewRecruitRules, game, new_recruit, written
from posttrain.environments.speaker import TwoSided
from posttrain.environments.textarena_game import TextArenaGame

LOGROLL = [2, 2, 0, 0, 4, 4, 0, 4]
"""Middle of the tug of war, and in each other issue what matters to the side that cares more: 7,400 points each."""


def play(seed: int, lines: list[str], **settings: Any) -> tuple[TextArenaGame, list[Any]]:
    one = game(**{"role": "recruiter", "goal": 6000, "max_lines": 6, "brief": True, "scripted": True} | settings)
    one.reset({"seed": seed}, 0)
    return one, [one.step(line) for line in lines]


def test_points_of_an_agreement_are_the_reward() -> None:
    _, (offered, accepted) = play(0, [written(LOGROLL), "[Accept]"], scripted=False)
    assert offered.observation.info["speaks"] == "partner" and offered.reward == 0.0 and not offered.terminated
    assert accepted.terminated and accepted.solved and accepted.reward == 7400 / MOST_POINTS
    _, (_, low) = play(0, [written([2] * 8), "[Accept]"], scripted=False, goal=5000)
    recruiter = -3000 + 2000 - 1200 + 600 + 800 + 2000 + 400 + 1600
    assert low.reward == recruiter / MOST_POINTS and low.solved is False


def test_no_agreement_earns_nothing() -> None:
    _, steps = play(0, [written([4, 4, 0, 0, 0, 4, 4, 4])] * 3, max_lines=4)
    assert [step.terminated for step in steps] == [False, False, True]
    assert steps[-1].reward == 0.0 and steps[-1].solved is False


def test_an_invalid_line_is_told_and_the_fourth_in_a_row_ends_the_game() -> None:
    _, steps = play(0, ["hello"] * 4)
    assert [step.invalid is not None for step in steps] == [True, True, True, False]
    assert "Propose" in steps[0].invalid and steps[3].terminated and steps[3].reward == 0.0


@pytest.mark.parametrize("seed", range(6))
def test_the_partner_accepts_by_the_games_table_and_its_concern(seed: int) -> None:
    partner = NewRecruitRules(6000, 6, True).partner(1, seed)
    assert isinstance(partner, Concerned)
    one = play(seed, [])[0]
    table = list(one._game.point_value_dict.values())
    for proposal in (LOGROLL, [2] * 8, [3, 3, 0, 0, 4, 2, 0, 2]):
        for named, sways in (("", 0), (f"Your {one._game.issues[partner.concern]}. ", 1500)):
            worth = sum(
                (2 if issue == partner.concern else 1) * list(choices.values())[choice][1]
                for issue, (choices, choice) in enumerate(zip(table, proposal, strict=True))
            )
            (step,) = play(seed, [f"{named}{written(proposal)}"])[1]
            assert step.terminated == (worth >= partner.demand - sways)
            if not step.terminated:
                assert one._game.issues[partner.concern] in step.observation.messages[0]["content"]


def test_the_same_seed_plays_the_same_and_seeds_differ() -> None:
    said = [play(seed, [written([4, 4, 0, 0, 0, 4, 4, 4])])[1][0] for seed in (3, 3, 4, 5, 6)]
    assert said[0] == said[1] and len({str(step) for step in said}) > 2


def test_either_role_and_the_whole_rules() -> None:
    one = game(role="candidate", goal=6000, max_lines=6, brief=False, scripted=True)
    opening = one.reset({}, 1).messages[0]["content"]
    assert opening.startswith("You are the Candidate") and "[Propose]" in opening.splitlines()[-1]
    assert "points" in opening and one.step("[Accept]").terminated


def test_in_processes_with_the_script_and_with_a_partner() -> None:
    class Agreeable:
        """Accepts whatever it hears."""

        heard: ClassVar[list[Any]] = []

        def turn(self) -> Any:
            return nullcontext()

        async def say(self, messages: Any, seed: int) -> str:
            self.heard.append(messages)
            return "[Accept]"

    async def once(environment: Any) -> None:
        opening, episode = await environment.reset("", {"seed": 1}, 1)
        assert isinstance(episode, Guided) and "[Propose]" in str(await episode.expert())
        steps = [await episode.step(written(LOGROLL))]
        assert opening.messages == ({"role": "user", "content": "You are the recruiter."},)
        if environment is not script:
            assert steps[0].terminated and steps[0].reward == 7400 / MOST_POINTS
        await episode.close()

    with closing(new_recruit(brief=True)) as script:
        assert isinstance(script, TwoSided)
        asyncio.run(once(script))
        with closing(script.with_partner(Agreeable())) as spoken:
            asyncio.run(once(spoken))
    (heard,) = Agreeable.heard
    assert heard == ({"role": "user", "content": f"You are the candidate.\n\n{written(LOGROLL)}"},)
