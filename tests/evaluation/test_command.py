"""`posttrain eval` on a model directory: table, JSON, and mistakes that are found before the weights are loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from posttrain.errors import UserError
from posttrain.evaluation.command import run_evaluations
from posttrain.evaluation.model import NamedModel

CHAIN_SUM = ("dataset=chain_sum", "size=6", "config.min_terms=2", "config.max_terms=2", "max_tokens=4")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Completions are kept under the working directory."""
    monkeypatch.chdir(tmp_path)


def test_table_and_json(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "results.json"
    (result,) = run_evaluations(["reasoning_gym"], CHAIN_SUM, model=NamedModel(model), limit=5, json_file=file)
    head, row = capsys.readouterr().out.splitlines()
    assert head.split()[:4] == ["benchmark", "n", "pass", "rate"]
    assert row.split()[:3] == ["reasoning_gym/chain_sum", "5", f"{result.pass_rate:.1%}"]
    content = json.loads(file.read_text())
    assert content["model"] == model
    (stored,) = content["evaluations"]
    assert stored == json.loads(json.dumps(result.to_json()))
    assert stored["n"] == len(stored["completions"]) == 5
    assert stored["completions"][0]["id"].startswith("reasoning_gym/chain_sum")


def test_several_benchmarks_and_samples(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    results = run_evaluations(
        ["reasoning_gym", " reasoning_gym"],
        [*CHAIN_SUM, "temperature=1.0"],
        model=NamedModel(model),
        limit=2,
        samples=4,
    )
    assert [(result.n, result.samples, len(result.completions)) for result in results] == [(2, 4, 8)] * 2
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert "pass@4" in lines[0]


def test_a_local_file(model: str, tmp_path: Path) -> None:
    data = tmp_path / "items.jsonl"
    data.write_text('{"question": "Two and two?", "answer": "#### 4"}\n')
    (result,) = run_evaluations(["gsm8k"], ["max_tokens=4"], model=NamedModel(model), data=data)
    assert (result.benchmark, result.n) == ("gsm8k", 1)


@pytest.mark.parametrize(
    ("names", "settings", "options", "message"),
    [
        (["gsm9k"], (), {}, "did you mean 'gsm8k'"),
        (["gsm8k"], ["temprature=1"], {}, "did you mean 'temperature'"),
        (["gsm8k"], ["temperature=hot"], {}, "'hot' is not allowed"),
        (["gsm8k"], ["temperature"], {}, "allowed: key=value"),
        (["reasoning_gym"], (), {}, "dataset: missing"),
        (["reasoning_gym"], ["dataset=chain_sun"], {}, "did you mean 'chain_sum'"),
        (["gsm8k"], (), {"data": Path("nowhere.jsonl")}, "nowhere.jsonl"),
        (["gsm8k", "math500"], (), {"data": Path("nowhere.jsonl")}, "one benchmark, and 2 are named"),
        (["reasoning_gym"], ["dataset=chain_sum"], {"samples": 2}, "temperature"),
        (["reasoning_gym"], ["dataset=chain_sum"], {"model": NamedModel("unread", "vlm")}, "not an engine"),
        (["gsm8k"], (), {"model": NamedModel("unread", name="a")}, "it is for an endpoint"),
        (["gsm8k"], (), {"model": NamedModel("http://127.0.0.1:9/v1", "vllm")}, "samples by itself"),
        (["reasoning_gym"], ["dataset=chain_sum"], {"json_file": Path("no/such/directory/x.json")}, "no directory"),
        (
            ["reasoning_gym"],
            ["dataset=chain_sum"],
            {"model": NamedModel("no/such/directory/model")},
            "no/such/directory/model",
        ),
    ],
)
def test_mistakes(names: list[str], settings: list[str], options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run_evaluations(names, settings, **({"model": NamedModel("unread")} | options))  # type: ignore[arg-type]
