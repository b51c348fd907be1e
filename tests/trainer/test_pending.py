"""Steps and windows in a checkpoint: what comes back is what was written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from posttrain.batch import Source, TokenSequence
from posttrain.data.examples import Example, Outcome
from posttrain.picture import Picture
from posttrain.trainer.pending import load_pending, save_pending
from posttrain.trainer.step_data import Drawn, Played, StepData
from posttrain.trainer.window import Window
from posttrain.trajectory import Dropped, EpisodeEnd, Group, StopReason, Trajectory, Turn

OTHER = Outcome("3", None)
CHAT = ({"role": "user", "content": "1 + 1 =\u2028 \ud800"},)


def _trajectory(number: int) -> Trajectory:
    turn = Turn((1, 2), (3, 4 + number), (-0.1, -1 / 3), StopReason.STOP, number, "2", 1)
    rewards = {"right": 1.0, "other": None}
    return Trajectory(
        "row#1",
        0,
        CHAT,
        {"answer": "2"},
        (turn,),
        0.7,
        end=EpisodeEnd.TURNS,
        outcome=False,
        rewards=rewards,
        turn_rewards=(0.5,),
        error="gone",
        dropped=Dropped.STALE,
    )


def test_steps_and_windows_come_back(tmp_path: Path) -> None:
    sequence = TokenSequence((1, 2, 3), (False, True, True), Source.ROLLOUTS, 2, behavior_logprobs=(-0.1, -1 / 3))
    sequence = replace(sequence, pictures=(Picture(1, 1, 1, "data:image/png;base64,AA=="),))
    scored = TokenSequence((1, 2), (False, True), Source.PREFERENCES, 0, 1, 0.5, True, old_values=(0.1,), trajectory=3)
    steps = [
        StepData([]),
        StepData([sequence, scored], [Played(_trajectory(0), 2, [0]), Played(_trajectory(1), 3, [])]),
    ]
    example = Example("row#1", CHAT, "2", chosen=CHAT, outcomes=(Outcome(CHAT, 0.25, True, False), OTHER))
    drawn = Drawn([example], [], [example], [Example("row#2", "text")], [])
    groups = [Group("row#1", (_trajectory(0), _trajectory(1))), Group("row#2", ())]
    window = Window(3, [drawn, drawn], groups, groups[:1], [], 0.3, 1.5, 1e-7, {"num_retried": 2.0})
    save_pending(tmp_path, 1, steps, [window])
    assert load_pending(tmp_path, 1, 2) == (steps, [window])
    save_pending(tmp_path, 1, [], [])
    assert load_pending(tmp_path, 1, 0) == ([], [])
