"""A trained reward model in use: scores in any batch, steps, calibration by command, a reward in its worker."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from posttrain import catalog
from posttrain.__main__ import main
from posttrain.config import load_recipe
from posttrain.config.schema import SourceSettings
from posttrain.data.labels import steps_of
from posttrain.errors import DataError, RecipeError, UserError
from posttrain.evaluation.calibrate import calibrate
from posttrain.evaluation.goal import filtered, goal_state, progress
from posttrain.evaluation.reward_model import RewardModel
from posttrain.reward import Grader, RewardSpec
from posttrain.trainer import train
from posttrain.trajectory import StopReason, Trajectory, Turn


def written(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


PAIRS = [{"prompt": f"{n} :", "chosen": "a" * (1 + n % 4), "rejected": "b" * (1 + n % 3)} for n in range(24)]
STEPS = [
    {
        "prompt": f"{n} :",
        "completions": ["good", "bad" if n % 2 else "good", "end"],
        "labels": [1, 1 - n % 2, 1 - n % 2],
    }
    for n in range(24)
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Reward models that like a's, that know a bad step, and that find the letter c."""
    folder = tmp_path_factory.mktemp("reward_models")
    outcomes = [
        {"prompt": "which ?", "completion": "xy"[n // 2 % 2] * 2 + "cd"[n % 2] + "z", "reward": float(n % 2 == 0)}
        for n in range(8)
    ]
    data = {
        "bradley_terry": ("preferences", PAIRS, 24),
        "process_reward": ("trajectories", STEPS, 24),
        "outcome_reward": ("trajectories", outcomes, 1),
    }
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    found = {"data": str(folder)}
    for name, (kind, rows, prompts) in data.items():
        path = written(folder / f"{name}.jsonl", rows)
        overrides = [f"algorithm={name}", "preferences=null", "training.steps=50"]
        overrides += [
            f"training.prompts_per_step={prompts}",
            "training.learning_rate=0.004",
            f"{kind}={{path: {path}, chat: true}}",
        ]
        train(load_recipe("tiny/dpo", overrides), folder / name)
        found[name] = str(folder / name / "final")
    yield found
    torch.set_num_threads(before)


def test_scores_do_not_depend_on_the_batch(trained: dict[str, str]) -> None:
    model = RewardModel.load(trained["bradley_terry"])
    pairs = [((one["prompt"]), one[side]) for one in PAIRS[:5] for side in ("chosen", "rejected")]
    chats = [(({"role": "user", "content": p},), ({"role": "assistant", "content": c},)) for p, c in pairs]
    together = model(chats)
    for one, chat in zip(together, chats, strict=True):
        (alone,) = model([chat])
        torch.testing.assert_close(one.scores, alone.scores, rtol=1e-4, atol=1e-5)
    rewards = [model.reward(one, chat[1])[0] for one, chat in zip(together, chats, strict=True)]
    assert all(chosen > rejected for chosen, rejected in zip(rewards[::2], rewards[1::2], strict=True))


def test_steps_become_one_number(trained: dict[str, str]) -> None:
    model = RewardModel.load(trained["process_reward"])
    assert model.names == ["correct"]
    answer = ({"role": "assistant", "content": "good\nbad\nend"},)
    (scored,) = model([(({"role": "user", "content": "1 :"},), answer)])
    assert model.step_ends(scored, answer) == [4, 8, 12]
    good, bad, end = torch.sigmoid(scored.scores[0, [4, 8, 12]]).tolist()
    assert good > 0.9
    assert max(bad, end) < 0.2
    values = {how: model.reward(scored, answer, how)[0] for how in ("min", "last", "mean", "product")}  # type: ignore[arg-type]
    expected = {"min": min(good, bad, end), "last": end, "mean": (good + bad + end) / 3, "product": good * bad * end}
    assert values == pytest.approx(expected, rel=1e-5)


def test_steps_are_lines() -> None:
    assert steps_of("a\nb\n\nc") == ("a\n", "b\n\n", "c")
    assert steps_of("\na\n") == ("\na\n",)
    assert steps_of("") == ()
    assert steps_of("a. b. c", ". ") == ("a. ", "b. ", "c")
    assert "".join(steps_of(" \n\n x\ny \n z\n\n")) == " \n\n x\ny \n z\n\n"


def test_the_decisive_token_has_the_weight(trained: dict[str, str]) -> None:
    """OREAL's weights (eq. 10): the letter that decides has more than those that do not."""
    model = RewardModel.load(trained["outcome_reward"])
    for letter, sign in (("c", 1), ("d", -1)):
        answer = ({"role": "assistant", "content": f"xx{letter}z"},)
        (scored,) = model([(({"role": "user", "content": "which ?"},), answer)])
        weights = (sign * (2 * torch.sigmoid(scored.scores[0]) - 1)).clamp(min=0)
        assert weights[2] > 4 * weights[:2].max()
        assert sign * model.reward(scored, answer)[0] > 0


def test_calibrate_by_command(
    trained: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = trained["data"] + "/bradley_terry.jsonl"
    command = [
        "posttrain",
        "calibrate",
        trained["bradley_terry"],
        data,
        "chat=true",
        "--json",
        str(tmp_path / "r.json"),
    ]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as stopped:
        main()
    assert not stopped.value.code
    out = capsys.readouterr().out
    assert "on 24 pairs" in out
    assert "accuracy           100.0% [86.2%, 100.0%]" in out
    written = json.loads((tmp_path / "r.json").read_text())
    assert written["accuracy"] == 1.0
    assert sum(one["n"] for one in written["bins"]) == written["n"] == 24


def test_calibrate_on_steps_and_outcomes(trained: dict[str, str], tmp_path: Path) -> None:
    steps = SourceSettings(path=trained["data"] + "/process_reward.jsonl", chat=True)
    found = calibrate(trained["process_reward"], steps, "steps")
    assert (found.what, found.figures.n) == ("steps", 72)
    assert found.figures.accuracy == 1
    outcomes = SourceSettings(path=trained["data"] + "/outcome_reward.jsonl", chat=True)
    found = calibrate(trained["outcome_reward"], outcomes, "trajectories")
    assert (found.what, found.figures.n) == ("trajectories", 8)
    assert found.figures.accuracy == 1
    rows = [
        {"prompt": "1 :", "completion": text, "reward": reward} for text, reward in (("aa", 3), ("bb", 1), ("b", 1))
    ]
    graded = SourceSettings(path=written(tmp_path / "graded.jsonl", rows), chat=True)
    found = calibrate(trained["bradley_terry"], graded, "trajectories")
    assert (found.what, found.figures.n, found.figures.accuracy) == ("pairs", 2, 1)


def test_what_cannot_be_calibrated(trained: dict[str, str], tmp_path: Path) -> None:
    source = SourceSettings(path=trained["data"] + "/bradley_terry.jsonl", chat=True)
    with pytest.raises(RecipeError, match="allowed: one of reward"):
        calibrate(trained["bradley_terry"], source, "preferences", score="helpful")
    alike = SourceSettings(path=written(tmp_path / "a.jsonl", [{"prompt": "1", "completion": "a", "reward": 1}]))
    with pytest.raises(DataError, match="no two trajectories"):
        calibrate(trained["bradley_terry"], alike, "trajectories")
    with pytest.raises(UserError, match=r"cannot be loaded|lacks"):
        RewardModel.load(str(tmp_path))


def trajectory(content: str, turns: int = 1) -> Trajectory:
    each = tuple(
        Turn(prompt_ids=(1,), completion_ids=(1,), logprobs=(0.0,), text=content, policy_version=0,
             stop_reason=StopReason.STOP) for _ in range(turns)
    )  # fmt: skip
    return Trajectory(prompt_id="a", attempt=0, prompt=({"role": "user", "content": "1 :"},), columns={}, turns=each)


def test_a_reward_of_recipes(trained: dict[str, str]) -> None:
    """Graded in a worker process under its limits; several turns are ungraded, a missing path stops the run."""
    settings = {"path": trained["bradley_terry"], "squash": True}
    played = [trajectory("aaa"), trajectory("bbb"), trajectory("a", turns=2)]
    with Grader([RewardSpec("reward_model", 1.0, True, settings)], workers=1, memory_bytes=8 << 30) as grader:
        grader.grade(played)
    assert played[0].reward is not None
    assert played[1].reward is not None
    assert played[0].reward > 0.5 > played[1].reward
    assert played[2].reward is None
    reward = catalog.find("rewards", "reward_model")
    prompt = [{"role": "user", "content": "1 :"}]
    raw = reward("aaa", prompt, path=trained["bradley_terry"])
    assert played[0].reward == pytest.approx(1 / (1 + torch.tensor(-raw).exp().item()), rel=1e-4)
    assert reward("aaa", prompt, path=trained["bradley_terry"], shift=1.0, scale=2.0) == pytest.approx(2 * (raw - 1))
    with pytest.raises(RecipeError, match="path is missing"):
        reward("aaa", prompt)
    with pytest.raises(RecipeError, match="score is 'other'"):
        reward("aaa", prompt, path=trained["bradley_terry"], score="other")


def test_progress_towards_a_goal(trained: dict[str, str]) -> None:
    model = RewardModel.load(trained["bradley_terry"], hidden=True)
    prompt = ({"role": "user", "content": "1 :"},)
    rows = [(prompt, ({"role": "assistant", "content": text},)) for text in ("aaa", "aa", "bbb")]
    scored = model(rows)
    goal = goal_state(scored[:2])
    cosines = progress(scored, goal)
    states = torch.cat([one.hidden for one in scored[:2] if one.hidden is not None], -1)
    torch.testing.assert_close(goal, states.mean(-1))
    expected = torch.nn.functional.cosine_similarity(scored[2].hidden, goal[:, None], dim=0)
    torch.testing.assert_close(cosines[2], expected)
    between = float(cosines[2].median())
    kept = filtered(cosines, between)
    assert [one.kept for one in kept] == [float(one.min()) > between for one in cosines]
    assert kept[2].first_below == int((cosines[2] <= between).nonzero()[0])
    with pytest.raises(ValueError, match="hidden"):
        goal_state(RewardModel.load(trained["bradley_terry"])(rows))
