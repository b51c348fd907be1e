"""`posttrain prefer` and `judge-data`: what a judge says of recorded pairs, and demonstrations for one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from posttrain.__main__ import app
from posttrain.config.schema import SourceSettings
from posttrain.curation.prefer import ModelJudge, Question, both_orders, judge_of, prefer
from posttrain.data.sources import load_source
from posttrain.errors import DataError, RecipeError
from posttrain.evaluation.model import NamedModel
from tests.tiny import tiny_model


def written(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def recorded(tmp_path: Path) -> SourceSettings:
    """Three prompts with three, two equal, and two completions."""
    rows = [("one", "a"), ("one", "aaa"), ("one", "aa"), ("two", "b"), ("two", "b"), ("three", "c"), ("three", "?")]
    path = written(tmp_path / "t.jsonl", [{"prompt": p, "completion": c, "reward": None} for p, c in rows])
    return SourceSettings(path=str(path), chat=True)


def longer(questions: Sequence[Question]) -> list[float | None]:
    """A judge for whom more is better, which says nothing about a question mark."""
    return [None if "?" in first + second else float(len(first) > len(second)) for _, first, second in questions]


def test_what_the_judge_prefers_is_written(recorded: SourceSettings, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    found = prefer(recorded, output, longer, made_by="length")
    assert (found.pairs, found.preferences) == (4, 3)
    assert found.left_out == {"the judge did not say": 1}
    examples = load_source(SourceSettings(path=str(output)), "preferences")
    texts = {(one.chosen[0]["content"], one.rejected[0]["content"]) for one in examples}  # type: ignore[index]
    assert texts == {("aaa", "a"), ("aa", "a"), ("aaa", "aa")}
    assert examples[0].prompt == ({"role": "user", "content": "one"},)
    row = json.loads(output.read_text().splitlines()[0])
    assert (row["chance"], row["made_by"]) == (1.0, "length")


def test_a_preference_for_a_place_cancels(recorded: SourceSettings, tmp_path: Path) -> None:
    questions = [("p", "x", "y"), ("p", "y", "x")]
    assert both_orders(lambda asked: [1.0] * len(asked), questions) == [0.5, 0.5]
    assert both_orders(lambda asked: [0.7 if one[1] == "x" else 0.4 for one in asked], questions) == pytest.approx(
        [0.65, 0.35]
    )
    with pytest.raises(DataError, match="took sides with a place"):
        prefer(recorded, tmp_path / "out.jsonl", lambda asked: [1.0] * len(asked))


def test_few_pairs_of_each_prompt_and_mistakes(recorded: SourceSettings, tmp_path: Path) -> None:
    assert prefer(recorded, tmp_path / "one.jsonl", longer, pairs_per_prompt=1).preferences == 1
    with pytest.raises(RecipeError, match="exists already"):
        prefer(recorded, tmp_path / "one.jsonl", longer)
    with pytest.raises(RecipeError, match=r"confidence is 0\.5"):
        prefer(recorded, tmp_path / "two.jsonl", longer, confidence=0.5)
    with pytest.raises(RecipeError, match="no such file"):
        judge_of(tmp_path / "none.txt")
    (tmp_path / "bad.txt").write_text("{prompt} {first}")
    with pytest.raises(RecipeError, match=r"bad\.txt: judge_template"):
        judge_of(tmp_path / "bad.txt")


def test_answers_are_read() -> None:
    judge = ModelJudge(NamedModel("x"))
    assert judge.read("A") == judge.read("It is (A).") == judge.read("**A**, since") == 1.0
    assert judge.read("B.") == 0.0
    assert judge.read("") is judge.read("A or B") is judge.read("Both") is judge.read("An Apple") is None


def test_by_command_with_a_model(recorded: SourceSettings, tmp_path: Path) -> None:
    """A tiny random model answers no letter: nothing is preferred, and it is said."""
    model, tokenizer = tiny_model()
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    command = ["prefer", recorded.path, str(tmp_path / "out.jsonl"), "chat=true", "--model", str(tmp_path / "model")]
    result = CliRunner().invoke(app, command)
    assert isinstance(result.exception, DataError)
    assert "the judge preferred nothing" in str(result.exception)


def test_demonstrations_of_a_judge(tmp_path: Path) -> None:
    rows = [{"prompt": "p?", "chosen": "good", "rejected": "bad"}]
    source, output = written(tmp_path / "p.jsonl", rows), tmp_path / "judge.jsonl"
    (tmp_path / "q.txt").write_text("{prompt}|{first}|{second}")
    command = ["judge-data", str(source), str(output), "chat=true", "--template", str(tmp_path / "q.txt")]
    result = CliRunner().invoke(app, command)
    assert result.exception is None
    assert result.output.strip() == "2 demonstrations"
    found = [json.loads(line) for line in output.read_text().splitlines()]
    assert found == [
        {"prompt": "p?|good|bad", "completion": "A"},
        {"prompt": "p?|bad|good", "completion": "B"},
    ]
    assert load_source(SourceSettings(path=str(output), chat=True), "demonstrations")[1].completion is not None
