"""Responses in place of a model: how rows find their items, samples, votes, and two results side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from posttrain.errors import PosttrainError
from posttrain.evaluation.command import run_comparison, run_evaluations

QUESTIONS = ["1 + 1?", "2 + 2?", "3 + 3?", "4 + 4?"]


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four problems in GSM8K's format."""
    monkeypatch.chdir(tmp_path)
    rows = [{"id": f"p{n}", "question": text, "answer": f"#### {2 * n}"} for n, text in enumerate(QUESTIONS, start=1)]
    return _write(tmp_path / "data.jsonl", rows)


def _write(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_responses_find_their_items_by_id_or_question(data: Path, tmp_path: Path) -> None:
    rows = [
        {"id": "p2", "response": "It is 4."},
        {"question": "1 + 1?", "response": "3"},
        {"question": " 3 + 3? ", "response": "who knows"},
    ]
    (result,) = run_evaluations(["gsm8k"], data=data, responses=_write(tmp_path / "r.jsonl", rows))
    assert [one.solved for one in result.completions] == [False, True, False]
    assert (result.n, result.num_solved, result.num_unanswered, result.num_unextracted) == (3, 1, 1, 1)


def test_several_responses_are_samples_that_vote(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = {"p1": ["2", "2", "5"], "p2": ["5", "4", "5"], "p3": ["none", "6", "none"], "p4": ["x", "y", "z"]}
    rows = [{"id": name, "response": text} for name, texts in answers.items() for text in texts]
    file = tmp_path / "out.json"
    (result,) = run_evaluations(["gsm8k"], data=data, responses=_write(tmp_path / "r.jsonl", rows), json_file=file)
    assert result.majority == 0.5  # p1 by two votes, p3 by the only one
    assert result.pass_rate == pytest.approx((2 / 3 + 1 / 3 + 1 / 3) / 4)
    assert json.loads(file.read_text())["evaluations"][0]["maj@3"] == 0.5
    head, row = capsys.readouterr().out.splitlines()
    assert "maj@3" in head
    assert "4 x 3" in row


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": "p9", "response": "1"}, "'p9' is none of the benchmark's items"),
        ({"text": "1"}, "has neither 'id' nor 'question'; columns: text"),
        ({"id": "p1"}, "'response' is None; allowed: the completion's text"),
        ({"id": "p1", "response": 3}, "'response' is 3"),
    ],
)
def test_a_row_that_fits_nothing_is_named(data: Path, tmp_path: Path, row: dict[str, Any], message: str) -> None:
    file = _write(tmp_path / "r.jsonl", [{"id": "p1", "response": "2"}, row])
    with pytest.raises(PosttrainError, match=message) as caught:
        run_evaluations(["gsm8k"], data=data, responses=file)
    assert "r.jsonl:2" in str(caught.value)


def test_a_question_of_several_items_needs_an_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = _write(tmp_path / "data.jsonl", [{"question": "same?", "answer": "1"}, {"question": "same?", "answer": "2"}])
    file = _write(tmp_path / "r.jsonl", [{"question": "same?", "response": "1"}])
    with pytest.raises(PosttrainError, match="several items: give their 'id'"):
        run_evaluations(["gsm8k"], data=data, responses=file)


def test_options_that_do_not_fit_together(data: Path, tmp_path: Path) -> None:
    file = _write(tmp_path / "r.jsonl", [{"id": "p1", "response": "2"}])
    with pytest.raises(PosttrainError, match="--model DIR_OR_HUB_ID_OR_URL, or --responses FILE, and not both"):
        run_evaluations(["gsm8k"], data=data)
    with pytest.raises(PosttrainError, match="it is of one benchmark, and 2 are named"):
        run_evaluations(["gsm8k", "math500"], responses=file)
    with pytest.raises(PosttrainError, match="no such file"):
        run_evaluations(["gsm8k"], data=data, responses=tmp_path / "missing.jsonl")
    with pytest.raises(PosttrainError, match=r"two files .*; 1 given"):
        run_comparison([file])
    with pytest.raises(PosttrainError, match="not results of"):
        run_comparison([file, file])


def test_two_results_are_compared_item_by_item(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = {"old": ["2", "4", "0", "<script>0"], "new": ["2", "0", "6", "8"]}
    files = []
    for name, answers in texts.items():
        rows = [{"id": f"p{n}", "response": text} for n, text in enumerate(answers, start=1)]
        files.append(tmp_path / f"{name}.json")
        responses = _write(tmp_path / f"{name}.jsonl", rows)
        run_evaluations(["gsm8k"], data=data, responses=responses, json_file=files[-1])
    capsys.readouterr()
    page = tmp_path / "page.html"
    run_comparison(files, page)
    head, row, _ = capsys.readouterr().out.splitlines()
    assert head.split()[:4] == ["benchmark", "n", "old", "new"]
    assert row.split()[1:5] == ["4", "50.0%", "75.0%", "+25.0%"]
    assert row.split()[-2:] == ["1", "2"]
    text = page.read_text()
    assert text.count("<details") == 3  # the item that both solve is not shown
    assert "<h3>1 items go better with old</h3>" in text
    assert "not solved, answer 0" in text
    assert "<script>" not in text
    assert "&lt;script&gt;0" in text
