"""The report: complete without a network, safe with hostile text, bounded, and made of whatever a run has left."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from posttrain.errors import DataError
from posttrain.evaluation import report_data
from posttrain.evaluation.report import write_report
from posttrain.evaluation.report_data import curves, downsample, read_jsonl, read_rollouts

HOSTILE = [
    "</script><script>alert(1)</script>",
    "<!--<script>",
    "<img src=x onerror=alert(2)>",
    "\x00\x1b[31m\x7f",
    "\u202egnp.exe",
    "\ud800",
    "\u2028 {{data}} &lt; &amp;",
    "]]>'\"`${1}\\u003c",
]


class Page(HTMLParser):
    """The elements of a page, and the text of its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self._in_script = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._in_script = tag == "script"
        if self._in_script:
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._in_script = False

    def handle_data(self, data: str) -> None:
        if self._in_script:
            self.scripts[-1] += data
        else:
            self.text += data

    @property
    def data(self) -> dict[str, Any]:
        """What is embedded for the script."""
        loaded: dict[str, Any] = json.loads(self.scripts[0])
        return loaded


def trajectory(**changes: Any) -> dict[str, Any]:
    row = {
        "step": 1,
        "group": 0,
        "prompt_id": "p:0",
        "attempt": 0,
        "prompt": [{"role": "user", "content": "1 + 1 ="}],
        "completion": "2",
        "tokens": ["2", "<|im_end|>"],
        "logprobs": [-0.5, -0.25],
        "advantage": [1.0, 0.5],
        "reward": 1.0,
        "rewards": {"gsm8k": 1.0},
        "solved": True,
        "stop_reason": "stop",
        "error": None,
        "policy_version": 0,
    }
    return row | changes


def write(run: Path, name: str, rows: list[dict[str, Any]], tail: str = "") -> None:
    path = run / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + tail)


def page(run: Path) -> Page:
    return Page(write_report(run).read_text(encoding="utf-8"))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A whole run, small."""
    run = tmp_path / "my run"
    metrics = [
        {"step": s, "time_seconds": 61.0 * s, "pass_rate": s / 4, "sft/nll": 1 / s, "num_ungraded": 1, "num_graded": 7}
        for s in (1, 2, 3)
    ]
    write(run, "metrics.jsonl", metrics)
    evaluation = {"benchmark": "gsm8k", "n": 200, "num_ungraded": 2, "num_truncated": 5, "samples": 1, "seconds": 3.25}
    rows = [{"step": 0, "num_solved": 50, "pass_rate": 0.25, "interval": [0.195, 0.314]}]
    rows += [{"step": 3, "num_solved": 100, "pass_rate": 0.5, "interval": [0.431, 0.569]}]
    write(run, "evaluations.jsonl", [evaluation | row for row in rows])
    write(run, "rollouts/step_1.jsonl", [trajectory(), trajectory(attempt=1, reward=None, solved=None, error="late")])
    write(run, "rollouts/step_3.jsonl", [trajectory(step=3, prompt="plain text")])
    (run / "objective.txt").write_text("grad = sum <weights> & terms")
    (run / "recipe.yaml").write_text("seed: 0  # default\n")
    return run


def test_a_whole_run(run: Path) -> None:
    shown = page(run)
    assert shown.data["curves"]["pass_rate"] == {"steps": [1, 2, 3], "values": [0.25, 0.5, 0.75]}
    assert [row["step"] for row in shown.data["rollouts"]] == [3, 1, 1]
    assert shown.data["prompts"] == [
        [{"role": "", "content": "plain text"}],
        [{"role": "user", "content": "1 + 1 ="}],
    ]
    assert {"table", "pre"} <= {tag for tag, _ in shown.tags}
    for text in (
        "my run",
        "43.1 – 56.9 %",
        "100 of 200",
        "3 min 03 s",
        "grad = sum <weights> & terms",
        "# default",
        "late",
    ):
        assert text in shown.text
    assert "ungraded trajectories3" in shown.text


def test_nothing_is_loaded_from_anywhere(run: Path) -> None:
    text = write_report(run).read_text()
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in text
    assert all(not {"src", "srcset", "data"} & set(attributes) for _, attributes in Page(text).tags)
    assert "default-src 'none'" in text


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_text(run: Path, text: str) -> None:
    write(
        run, "rollouts/step_2.jsonl", [trajectory(step=2, prompt=text, tokens=[text, "x"], error=text, prompt_id=text)]
    )
    write(run, "evaluations.jsonl", [{"step": 1, "benchmark": text, "n": 1, "pass_rate": 1.0, "interval": [0, 1]}])
    (run / "recipe.yaml").write_text(f"a: {text}", encoding="utf-8", errors="surrogatepass")
    calm = [tag for tag, _ in page(run).tags]
    shown = page(run)
    assert len(shown.scripts) == 2
    assert [tag for tag, _ in shown.tags] == calm
    assert not [tag for tag, attributes in shown.tags if tag == "img" or "onerror" in attributes]
    row = next(row for row in shown.data["rollouts"] if row["step"] == 2)
    assert row["tokens"] == [text, "x"]
    assert shown.data["prompts"][row["prompt"]][0]["content"] == text
    assert shown.data["evaluations"][0]["benchmark"] == text
    html = write_report(run).read_text(encoding="utf-8")
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202e]", html)
    assert html.count("<script") == 2


def test_metrics_alone_with_a_truncated_line_and_what_is_no_number(tmp_path: Path) -> None:
    rows = [{"step": 1, "a/nll": 2.5, "b": math.nan}, {"step": 2, "a/nll": math.inf, "b": -math.inf}]
    write(tmp_path, "metrics.jsonl", rows, tail='{"step": 3, "a/nll": 1e999}\n[1]\n{"step": 4, "a/n')
    shown = page(tmp_path)
    assert shown.data["curves"] == {"a/nll": {"steps": [1], "values": [2.5]}}
    assert "2 unreadable line(s) of metrics.jsonl left out." in shown.text
    assert "This run was not evaluated." in shown.text


def test_a_step_written_twice_counts_once(tmp_path: Path) -> None:
    write(tmp_path, "metrics.jsonl", [{"step": 1, "x": 1}, {"step": 2, "x": 2}, {"step": 2, "x": 3}])
    assert page(tmp_path).data["curves"]["x"] == {"steps": [1, 2], "values": [1.0, 3.0]}


@pytest.mark.parametrize("name", ["evaluations.jsonl", "rollouts/step_5.jsonl"])
def test_one_file_is_enough(tmp_path: Path, name: str) -> None:
    write(tmp_path, name, [trajectory(benchmark="b", pass_rate=None, interval=None)])
    shown = page(tmp_path)
    assert len(shown.scripts) == 2
    assert shown.data["curves"] == {}


def test_a_directory_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"not a run directory.*metrics\.jsonl"):
        write_report(tmp_path)
    assert not list(tmp_path.iterdir())


def test_long_curves_keep_their_spikes(tmp_path: Path) -> None:
    points = [(step, 1.0) for step in range(100_000)]
    points[54_321] = (54_321, 99.0)
    kept = downsample(points, 2000)
    assert len(kept) <= 2000
    assert (54_321, 99.0) in kept
    assert kept == sorted(kept)
    rows = [{"step": step, "x": value} for step, value in points[:5000]]
    assert len(curves(rows)["x"]["steps"]) <= 2000
    assert downsample(points[:10], 2000) == points[:10]


def test_rollouts_are_bounded_and_spread_over_the_run(tmp_path: Path) -> None:
    for step in range(10, 210, 10):
        write(tmp_path, f"rollouts/step_{step}.jsonl", [trajectory(step=step, attempt=i) for i in range(4)])
    whole = read_rollouts(tmp_path / "rollouts")
    assert len(whole.records) == 80
    assert whole.steps_left_out == []
    some = read_rollouts(tmp_path / "rollouts", limit=5000)
    kept = {row["step"] for row in some.records}
    assert {10, 100, 200} <= kept
    assert kept | set(some.steps_left_out) == set(range(10, 210, 10))
    assert len(json.dumps(some.records)) <= 5500


def test_what_was_left_out_is_said(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_data, "MAX_TOKENS", 100)
    monkeypatch.setattr(read_rollouts, "__defaults__", (4000,))
    tokens = {"tokens": ["x"] * 300, "logprobs": [-1.0] * 300, "advantage": [0.5] * 300}
    write(run, "rollouts/step_3.jsonl", [trajectory(step=3, **tokens)])
    write(run, "rollouts/step_2.jsonl", [trajectory(step=2, attempt=i) for i in range(50)])
    shown = page(run)
    record = shown.data["rollouts"][0]
    assert len(record["tokens"]) == len(record["logprobs"]) == 101
    assert record["advantage"] == 0.5
    assert "200 tokens left out" in record["tokens"][50]
    assert "those of steps 2 are not" in shown.text
    assert "cut in the middle (1)" in shown.text


@pytest.mark.parametrize(
    "changes",
    [
        {"tokens": [], "logprobs": [], "advantage": [], "completion": ""},
        {"tokens": None, "logprobs": None, "advantage": None},
        {"advantage": [1.0]},
        {"logprobs": [None, "x"]},
        {"prompt": None},
        {"prompt": [{"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}, "odd"]},
        {"rewards": None, "reward": None},
    ],
)
def test_incomplete_rollouts(run: Path, changes: dict[str, Any]) -> None:
    write(run, "rollouts/step_9.jsonl", [trajectory(step=9, **changes)])
    row = page(run).data["rollouts"][0]
    assert row["step"] == 9
    for name in ("logprobs", "advantage"):
        assert name not in row or not isinstance(row[name], list) or len(row[name]) == len(row["tokens"])


def test_reading_jsonl(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    assert read_jsonl(path) == ([], 0)
    path.write_bytes(b'{"a": "\xff"}\n\n"text"\n{"b": [NaN, {"c": Infinity}]}\n{')
    assert read_jsonl(path) == ([{"a": "\ufffd"}, {"b": [None, {"c": None}]}], 2)


def test_a_flag_of_the_run_is_no_main_curve() -> None:
    script = (Path(report_data.__file__).parent / "report.js").read_text()
    patterns = re.findall(r'^  \["[^"]+", "[^"]*", /(.+)/\]', script, re.MULTILINE)
    assert len(patterns) >= 5
    for flag in ("weights_changed", "canary_mismatch", "num_redrawn_groups"):
        assert not [pattern for pattern in patterns if re.search(pattern.replace("\\/", "/"), flag)]
