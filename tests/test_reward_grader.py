"""What a grade is: values, the weighted sum, solved, inputs by name, and what counts as a failure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from posttrain.errors import DataError, RecipeError, RunError, UserError
from posttrain.reward import Grader, RewardSpec
from posttrain.trajectory import StopReason, Trajectory, Turn

Write = Callable[[str, str], None]

LENGTH = '''
def length(completion, *, full: float = 4.0):
    """Share of `full` characters."""
    return len(completion) / full
'''
SAYS = '''
def says(completion, answer, hint="none"):
    """1 where the completion is the answer."""
    return float(completion == answer and hint in ("none", "given"))
'''


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes a reward file into a plug-in folder."""
    (tmp_path / "rewards").mkdir()
    monkeypatch.setenv("POSTTRAIN_PATH", str(tmp_path))

    def write_file(name: str, source: str) -> None:
        (tmp_path / "rewards" / f"{name}.py").write_text(source)

    return write_file


@pytest.fixture
def two(write: Write) -> Iterator[Grader]:
    """A grader with an outcome reward and a weighted helper."""
    write("says", SAYS)
    write("length", LENGTH)
    specs = [RewardSpec("length", 0.5, settings={"full": 2}), RewardSpec("says", 2.0, outcome=True)]
    with Grader(specs, workers=2) as grader:
        yield grader


def played(text: str, **columns: Any) -> Trajectory:
    turn = Turn((1, 2), (3, 4, 5), (-0.1, -0.2, -0.3), StopReason.STOP, 0, text)
    return Trajectory("p", 0, "question", columns, (turn,))


def test_reward_is_the_weighted_sum_and_the_outcome_decides_solved(two: Grader) -> None:
    right, wrong = played("ab", answer="ab"), played("abc", answer="ab", hint="given")
    two.grade([right, wrong])
    assert (right.rewards, right.reward, right.solved) == ({"length": 1.0, "says": 1.0}, 2.5, True)
    assert (wrong.rewards, wrong.reward, wrong.solved) == ({"length": 1.5, "says": 0.0}, 0.75, False)
    assert right.error is None
    assert not two.failures


def test_results_keep_their_order(two: Grader) -> None:
    trajectories = [played("x" * (i % 37), answer="x" * (i % 5)) for i in range(500)]
    two.grade(trajectories)
    assert [t.rewards["length"] for t in trajectories] == [(i % 37) / 2 for i in range(500)]
    assert [t.solved for t in trajectories] == [i % 37 == i % 5 for i in range(500)]


def test_a_trajectory_that_failed_before_is_not_sent(two: Grader) -> None:
    failed = Trajectory("p", 0, "q", {"answer": "a"}, error="engine: prompt of 900 tokens, window of 512")
    two.grade([failed])
    assert (failed.rewards, failed.reward, failed.solved) == ({"length": None, "says": None}, None, None)
    assert failed.error == "engine: prompt of 900 tokens, window of 512"
    assert not two.failures


def test_check_columns_names_reward_column_and_what_is_there(two: Grader) -> None:
    two.check_columns(["question", "answer"])
    with pytest.raises(DataError, match=r"'says' reads the column 'answer'.*present: anwser, question.*'anwser'"):
        two.check_columns(["question", "anwser"])


def test_a_row_without_the_column_is_ungraded(two: Grader) -> None:
    trajectory = played("ab")
    two.grade([trajectory])
    assert trajectory.rewards == {"length": 1.0, "says": None}
    assert trajectory.reward is None
    assert two.failures == {"says: missing column answer": 1}


def test_a_reward_reads_the_trajectory_by_name(write: Write) -> None:
    write(
        "reads",
        "def reads(completion, completion_messages, prompt, stop_reason, num_tokens):\n"
        '    """1 where all is as it should be."""\n'
        "    assert completion_messages == [{'role': 'assistant', 'content': completion}]\n"
        "    return float((completion, prompt, stop_reason, num_tokens) == ('hello', 'question', 'stop', 3))\n",
    )
    with Grader([RewardSpec("reads")], workers=1) as grader:
        grader.check_columns([])
        trajectory = played("hello", prompt="a column of that name does not count")
        grader.grade([trajectory])
    assert trajectory.solved is True


@pytest.mark.parametrize(
    ("returned", "cause"),
    [
        ("None", "returned None"),
        ("'1.0'", "not a number"),
        ("[1.0]", "not a number"),
        ("float('nan')", "not finite"),
        ("float('-inf')", "not finite"),
        ("undefined", "NameError"),
        ("[][1]", "IndexError"),
    ],
)
def test_what_is_no_finite_number_is_ungraded(write: Write, returned: str, cause: str) -> None:
    write("odd", f'def odd(completion):\n    """Odd."""\n    return {returned}\n')
    with Grader([RewardSpec("odd")], workers=1) as grader:
        trajectory = played("x")
        grader.grade([trajectory])
    assert (trajectory.rewards, trajectory.reward, trajectory.solved) == ({"odd": None}, None, None)
    assert grader.failures == {f"odd: {cause}": 1}
    assert trajectory.error is not None
    assert trajectory.error.startswith(f"reward odd: {cause}")
    assert "\n" not in trajectory.error


@pytest.mark.parametrize(
    ("returned", "value"), [("True", 1.0), ("__import__('numpy').float32(0.5)", 0.5), ("-3", -3.0)]
)
def test_numbers_of_all_kinds_are_taken(write: Write, returned: str, value: float) -> None:
    write("number", f'def number(completion):\n    """A number."""\n    return {returned}\n')
    with Grader([RewardSpec("number")], workers=1) as grader:
        trajectory = played("x")
        grader.grade([trajectory])
    assert trajectory.reward == value


def test_a_mistake_of_the_user_stops_the_run(write: Write) -> None:
    write(
        "picky",
        "from posttrain.errors import RecipeError\ndef picky(completion):\n"
        '    """Refuses."""\n    raise RecipeError("picky: this data set cannot be graded")\n',
    )
    with Grader([RewardSpec("picky")], workers=2) as grader:
        for _ in range(2):  # the grader still works after it
            with pytest.raises(UserError, match="this data set cannot be graded"):
                grader.grade([played("x") for _ in range(50)])


def test_a_file_that_fails_in_the_worker_stops_the_run(write: Write) -> None:
    write(
        "heavy",
        "def warm_up():\n    raise ImportError('no room for libheavy')\n"
        'def heavy(completion):\n    """Heavy."""\n    return 1.0\n',
    )
    with (
        Grader([RewardSpec("heavy")], workers=2) as grader,
        pytest.raises(RunError, match=r"cannot start.*no room for libheavy"),
    ):
        grader.grade([played("x")])


def test_specs_are_checked(write: Write) -> None:
    write("says", SAYS)
    write("length", LENGTH)
    write("star", 'def star(*texts):\n    """Star."""\n    return 1.0\n')
    with pytest.raises(RecipeError, match="at least one reward"):
        Grader([])
    with pytest.raises(RecipeError, match="listed 2 times"):
        Grader([RewardSpec("says"), RewardSpec("says")])
    with pytest.raises(RecipeError, match="at most one"):
        Grader([RewardSpec("says", outcome=True), RewardSpec("length", outcome=True)])
    with pytest.raises(RecipeError, match=r"\*texts"):
        Grader([RewardSpec("star")])
    with pytest.raises(RecipeError, match="full"):
        Grader([RewardSpec("length", settings={"ful": 1})])


def test_a_closed_grader_says_so(two: Grader) -> None:
    two.close()
    two.close()
    with pytest.raises(RunError, match="closed"):
        two.grade([played("ab", answer="ab")])


TRL_STYLE = '''
def trl_style(completions, prompts, solution, log_extra=None, *, bonus: float = 0.0, **kwargs):
    """As GRPOTrainer calls it: lists, and every column of the row."""
    assert len(completions) == len(prompts) == len(solution) == len(kwargs["level"]) == 1
    texts = [one if isinstance(one, str) else one[-1]["content"] for one in completions]
    return [float(text == gold) + bonus * len(kwargs["completion_ids"][0]) for text, gold in zip(texts, solution)]
'''


def test_rewards_with_trl_s_signature_are_taken(write: Write) -> None:
    write("trl_style", TRL_STYLE)
    with Grader([RewardSpec("trl_style", settings={"bonus": 0.25})], workers=1) as grader:
        right, wrong = played("4", solution="4", level=1), played("5", solution="4", level=2)
        right.prompt = ({"role": "user", "content": "2 + 2?"},)
        grader.grade([right, wrong])
        assert (right.rewards, wrong.rewards) == ({"trl_style": 1.75}, {"trl_style": 0.75})
        with pytest.raises(DataError, match="reads the column 'solution'"):
            grader.check_columns(["level"])
    with pytest.raises(RecipeError, match="level: unknown key"):
        Grader([RewardSpec("trl_style", settings={"level": 1})])


def test_rewards_of_trl_are_found_by_name() -> None:
    specs = [RewardSpec("trl.accuracy_reward"), RewardSpec("trl.think_format_reward", 0.5)]
    with Grader(specs, workers=1) as grader:
        trajectory = played("<think>half</think>It is \\boxed{\\frac{1}{2}}.", solution="\\boxed{0.5}", other=3)
        trajectory.prompt = ({"role": "user", "content": "?"},)
        grader.grade([trajectory])
        assert (trajectory.reward, trajectory.error) == (1.5, None)
    with pytest.raises(UserError, match=r"'trl.acuracy_reward' is not a known reward; did you mean 'trl.accuracy"):
        Grader([RewardSpec("trl.acuracy_reward")])
