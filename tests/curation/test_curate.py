"""`posttrain curate` from a source to a file and its report: what was planted is removed, and named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from posttrain.__main__ import app
from posttrain.curation.asked import Filters, parse_buckets
from posttrain.curation.curate import curate, source_settings
from posttrain.curation.report import Report
from posttrain.data.examples import Outcome
from posttrain.data.sources import load_source
from posttrain.errors import DataError, RecipeError, UserError
from posttrain.models.tokenizer import character_tokenizer
from posttrain.trainer.step_data import Played, StepData
from posttrain.trainer.store import TrajectoryStore
from posttrain.trajectory import StopReason, Trajectory, Turn

QUESTIONS = [
    "A baker makes 12 loaves of bread a day and sells each of them for 3 dollars. What does he earn in a week?",
    "Anna has three times as many marbles as her brother, and together they have 48. How many marbles has Anna got?",
    "A tank holds 200 litres and loses 4 litres an hour through a leak. After how many hours is it half empty?",
    "Tickets cost 8 dollars for adults and 5 for children. What does a family of two adults and three children pay?",
]
ASKED = "Tom reads 20 pages each evening and twice as many on Sundays; how many pages has he read after two weeks?"


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    rows = [
        *QUESTIONS,
        QUESTIONS[0].upper(),
        QUESTIONS[1].replace("Anna has", "Anne has"),
        f"Please solve this. {ASKED}",
        "In a fortnight, how much does Tom read who does 20 pages an evening, except for Sundays with double that?",
    ]
    return write(tmp_path / "train.jsonl", [{"question": text, "answer": "1", "rate": 0.1} for text in rows])


@pytest.fixture
def benchmark(tmp_path: Path) -> Path:
    return write(tmp_path / "test.jsonl", [{"question": ASKED, "answer": "#### 360"}])


def run(source: Path, output: Path, *settings: str, kind: str = "prompts", **asked: Any) -> Report:
    return curate(source_settings(str(source), settings), kind, output, Filters(**asked))


def test_the_command_removes_what_was_planted_and_says_so(questions: Path, benchmark: Path, tmp_path: Path) -> None:
    output = tmp_path / "curated.jsonl"
    words = ["curate", str(questions), str(output), "columns.prompt=question", "--against", f"gsm8k={benchmark}"]
    result = CliRunner().invoke(app, [*words, "--near", "0.7"], catch_exceptions=False)
    assert result.exit_code == 0
    assert [row["question"] for row in read(output)] == [*QUESTIONS, read(questions)[7]["question"]]
    assert read(output)[0] == read(questions)[0]
    report = json.loads((tmp_path / "curated.report.json").read_text())
    removed = {step["name"]: [one["id"] for one in step["examples"]] for step in report["steps"]}
    assert removed == {
        "duplicates": [f"{questions}#4"],
        "near duplicates": [f"{questions}#5"],
        "asked by gsm8k": [f"{questions}#6"],
    }
    assert (report["rows_read"], report["rows_written"], report["unchecked"]) == (8, 5, {})
    assert "tom reads 20 pages each evening" in report["steps"][2]["examples"][0]["why"]
    assert f"{questions}: 8 prompts read, 5 written" in result.output
    # What was written is read by a recipe with the same settings, and nothing is left to remove.
    again = run(
        output, tmp_path / "again.parquet", "columns.prompt=question", near=0.7, against=(f"gsm8k={benchmark}",)
    )
    assert [step.removed for step in again.steps] == [0, 0, 0]
    written = load_source(source_settings(str(tmp_path / "again.parquet"), ["columns.prompt=question"]), "prompts")
    assert [example.prompt for example in written] == [row["question"] for row in read(output)]


def test_benchmarks_that_cannot_be_read_are_named(
    questions: Path, benchmark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("posttrain.data.sources.hub_reachable", lambda: False)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "empty"))
    report = run(questions, tmp_path / "out.jsonl", "columns.prompt=question", against=("all", f"gsm8k={benchmark}"))
    assert [step.name for step in report.steps][2:] == ["asked by gsm8k"]
    assert {"aime24", "math500", "reasoning_gym"} < set(report.unchecked)
    assert "gsm8k" not in report.unchecked
    assert "cannot be reached" in report.unchecked["math500"]
    assert "not checked: math500: HuggingFaceH4/MATH-500" in report.text()
    with pytest.raises(DataError, match="cannot be reached"):
        run(questions, tmp_path / "other.jsonl", "columns.prompt=question", against=("math500",))


def test_pass_rates_make_buckets(tmp_path: Path) -> None:
    rates = [0.0, 0.2, 0.5, 1.0, None]
    texts = [*QUESTIONS, ASKED]
    source = write(tmp_path / "x.jsonl", [{"prompt": t, "rate": r} for t, r in zip(texts, rates, strict=True)])
    report = run(source, tmp_path / "out.jsonl", pass_rate_column="rate", max_pass_rate=0.9)
    found = [(row["pass_rate"], row["pass_rate_bucket"]) for row in read(tmp_path / "out.jsonl")]
    assert found == [(0.0, 0), (0.2, 1), (0.5, 2), (None, None)]
    assert report.steps[-1].figures == {"kept": {"bucket 0": 1, "bucket 1": 1, "bucket 2": 1, "unknown": 1}}
    assert [one.why for one in report.steps[-1].examples] == ["pass rate 1"]


def test_a_runs_rollouts_say_how_often_prompts_are_solved(
    tiny_recipe: dict[str, Any], write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    from posttrain.config.load import load_recipe
    from posttrain.trainer import train

    config = {"dataset": "chain_sum", "size": 8, "seed": 1, "min_terms": 2, "max_terms": 2, "max_digits": 1}
    del tiny_recipe["demonstrations"]
    tiny_recipe |= {"prompts": {"path": "reasoning_gym", "config": config}, "algorithm": {"name": "grpo"}}
    tiny_recipe["training"] |= {"steps": 2}
    train(load_recipe(str(write_recipe(tiny_recipe)), []), tmp_path / "run")
    settings = [f"config.{key}={value}" for key, value in config.items()]
    source = source_settings("reasoning_gym", settings)
    asked = Filters(pass_rate_run=str(tmp_path / "run"), near=0)
    report = curate(source, "prompts", tmp_path / "out.jsonl", asked)
    assert report.rows_written == 8
    assert all(0 <= row["pass_rate"] <= 1 for row in read(tmp_path / "out.jsonl"))
    # The same run's rollouts, drawn by return: a table of trajectories that a recipe reads.
    drawn = source_settings(str(tmp_path / "run"), [])
    report = curate(drawn, "trajectories", tmp_path / "drawn.jsonl", Filters(sample=10, beta=0.1))
    assert [step.name for step in report.steps] == ["more than one turn", "ungraded", "return-weighted sample"]
    assert (report.rows_read, report.rows_written) == (32, 10)
    again = load_source(source_settings(str(tmp_path / "drawn.jsonl"), []), "trajectories")
    assert sum(len(example.outcomes) for example in again) == 10


def test_recorded_trajectories_are_drawn_by_their_returns(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"p{i // 10}", "completion": f"c{i % 3}", "reward": float(i % 10 == 0) if i else None}
        for i in range(200)
    ]
    source = write(tmp_path / "t.jsonl", rows)
    report = run(source, tmp_path / "out.jsonl", kind="trajectories", sample=40, beta=0.2, seed=3)
    assert [(step.name, step.removed) for step in report.steps][1:] == [
        ("ungraded", 1),
        ("return-weighted sample", 159),
    ]
    written = read(tmp_path / "out.jsonl")
    assert sum(row["reward"] for row in written) >= 17  # of 19: their weights are 20, the others' 0.6
    assert {round(row["weight"], 2) for row in written if row["reward"]} == {20.0}
    assert set(written[0]) == {"prompt", "completion", "reward", "solved", "stop_reason", "weight"}
    run(source, tmp_path / "same.jsonl", kind="trajectories", sample=40, beta=0.2, seed=3)
    assert read(tmp_path / "same.jsonl") == written
    run(source, tmp_path / "other.jsonl", kind="trajectories", sample=40, beta=0.2, seed=4)
    assert read(tmp_path / "other.jsonl") != written


def test_stored_rollouts_of_one_turn_are_written_and_others_are_named(tmp_path: Path) -> None:
    turn = Turn((3, 20, 4), (30, 31, 2), (-0.1, -0.2, -0.3), StopReason.STOP, 4, "xy")
    cut = Turn((3, 20, 4), (30,), (-0.1,), StopReason.LENGTH, 4, "x")
    asked = ({"role": "user", "content": "1 + 1"},)
    played = [
        Trajectory("p#0", 0, asked, {}, (turn,), reward=1.0, solved=True),
        Trajectory("p#0", 0, asked, {}, (cut,), reward=0.0, solved=False),
        Trajectory("p#0", 0, asked, {}, (turn, turn), reward=1.0, solved=True),
        Trajectory("p#0", 0, asked, {}, (), error="engine: gone"),
    ]
    data = StepData([], [Played(one, 0, []) for one in played])
    TrajectoryStore(tmp_path, 0, character_tokenizer()).write(1, 0, [data], [], [[]])
    report = run(tmp_path, tmp_path / "out.jsonl", kind="trajectories")
    assert (report.rows_read, report.bad_rows) == (3, 1)
    assert [(step.name, step.removed) for step in report.steps] == [("more than one turn", 1)]
    assert report.steps[0].examples[0].why.startswith("2 turns; allowed: 1")
    (example,) = load_source(source_settings(str(tmp_path / "out.jsonl"), []), "trajectories")
    said = [({"role": "assistant", "content": text},) for text in ("xy", "x")]
    assert example.outcomes == (Outcome(said[0], 1.0, True, True), Outcome(said[1], 0.0, False, False))
    assert example.prompt == asked


def test_demonstrations_of_one_prompt_stay(tmp_path: Path) -> None:
    rows = [{"prompt": QUESTIONS[0], "completion": answer} for answer in ("252", "It is 252.", "252")]
    report = run(write(tmp_path / "d.jsonl", rows), tmp_path / "out.jsonl", kind="demonstrations")
    assert [(step.name, step.removed) for step in report.steps] == [("duplicates", 1)]


def test_characters_per_token_are_reported(questions: Path, tmp_path: Path) -> None:
    report = run(questions, tmp_path / "o.jsonl", "columns.prompt=question", tokenizer="characters", min_characters=0.9)
    assert report.steps[0].figures["quantiles"]["0.5"] == 1.0
    report = run(questions, tmp_path / "p.jsonl", "columns.prompt=question", tokenizer="characters", min_characters=1.1)
    assert report.steps[0].removed == 8


@pytest.mark.parametrize(
    ("settings", "asked", "message"),
    [
        (["colums.prompt=question"], {}, "did you mean 'columns'"),
        (["limit=0"], {}, "limit: 0 is not allowed"),
        (["weight=2"], {}, "no mixture"),
        (["path=x"], {}, "already"),
        ([], {"min_characters": 2.0}, "need --tokenizer"),
        ([], {"near": 2.0}, "--near 2"),
        ([], {"against": ("gsm9k=x",)}, "did you mean 'gsm8k'"),
        ([], {"against": ("gsm8k=nowhere.jsonl",)}, "nowhere.jsonl"),
        ([], {"against": ("gsm8k", "gsm8k=x")}, "each benchmark once"),
        ([], {"min_pass_rate": 0.5}, "need --pass-rate-run"),
        ([], {"pass_rate_column": "rat"}, "did you mean 'rate'"),
        ([], {"pass_rate_column": "rate", "buckets": (0.5, 0.2)}, "rising"),
        ([], {"sample": 3}, "of trajectories, and these are prompts"),
    ],
)
def test_mistakes(questions: Path, tmp_path: Path, settings: list[str], asked: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(questions, tmp_path / "out.jsonl", "columns.prompt=question", *settings, **asked)
    assert not (tmp_path / "out.jsonl").exists()


def test_mistakes_of_the_output(questions: Path, tmp_path: Path) -> None:
    for name, message in (
        ("out.txt", "allowed: .jsonl, .parquet"),
        ("train.jsonl", "exists already"),
        ("no/x.jsonl", "no directory"),
    ):
        with pytest.raises(RecipeError, match=message):
            run(questions, tmp_path / name, "columns.prompt=question")
    with pytest.raises(RecipeError, match="commas"):
        parse_buckets("a,b")
