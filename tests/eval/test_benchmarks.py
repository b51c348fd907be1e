"""Contract of every benchmark of questions: it builds, its items load, gold answers are graded 1.0 and garbage 0.0.

Those that play in an environment are in test_agents.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from posttrain import catalog
from posttrain.data.examples import Example
from posttrain.evaluation.benchmark import Benchmark
from posttrain.evaluation.runner import load_items, make_grader
from posttrain.trajectory import StopReason, Trajectory, Turn
from tests.eval.test_agents import AGENTS


@dataclass(frozen=True)
class Case:
    """How one benchmark is tried without a network. rows: of a local file, given to its setting `data`."""

    gold: Callable[[Example], str]
    settings: dict[str, Any] = field(default_factory=dict)
    rows: tuple[dict[str, Any], ...] = ()


def _line_with(item: Example, option: str) -> str:
    """The letter whose line in the question holds the option."""
    lines = item.prompt[-1]["content"].splitlines()  # type: ignore[index]
    return next(line[0] for line in lines if line.endswith(f". {option}"))


CASES = {
    "gsm8k": Case(
        gold=lambda item: str(item.columns["answer"]),
        rows=(
            {"question": "Two and two?", "answer": "2 + 2 = <<2+2=4>>4\n#### 4"},
            {"question": "A thousand and one?", "answer": "#### 1,001"},
        ),
    ),
    "math500": Case(
        gold=lambda item: f"So the answer is $\\boxed{{{item.columns['answer']}}}$.",
        rows=(
            {"problem": "Half of one?", "answer": "\\frac{1}{2}"},
            {"problem": "Where is it?", "answer": "\\left( 3, \\frac{\\pi}{2} \\right)"},
            {"problem": "What is $x + x$?", "answer": "2x"},
        ),
    ),
    **{
        name: Case(
            gold=lambda item: f"Thus \\boxed{{{item.columns['answer']}}}.",
            rows=({question: "What is $x + x$?", "answer": "2x"}, {question: "How many?", "answer": "204"}),
        )
        for name, question in {
            "aime24": "problem",
            "aime25": "problem",
            "amc23": "question",
            "minerva_math": "question",
        }.items()
    },
    "arc_challenge": Case(
        gold=lambda item: f"So \\boxed{{{'ABCD'[list(item.columns['labels']).index(item.columns['answer'])]}}}",
        rows=(
            {"question": "Which?", "choices": {"text": ["tin", "oak"], "label": ["A", "B"]}, "answerKey": "B"},
            {"question": "How?", "choices": {"text": ["up", "in", "on"], "label": ["1", "2", "3"]}, "answerKey": "3"},
        ),
    ),
    "mmlu_pro": Case(
        gold=lambda item: f"The answer is ({item.columns['answer']}).",
        rows=({"question": "Which?", "options": list("abcdefghij"), "answer": "J", "answer_index": 9},),
    ),
    "gpqa_diamond": Case(
        gold=lambda item: _line_with(item, "right"),
        rows=tuple(
            {"Question": f"Which {n}?", "Correct Answer": "right\n"}
            | {f"Incorrect Answer {k}": f"wrong {k}" for k in (1, 2, 3)}
            for n in range(6)
        ),
    ),
    "humaneval": Case(
        gold=lambda item: f"```python\n{item.columns['given']}{item.columns['canonical_solution']}```",
        rows=(
            {
                "prompt": "def twice(x):\n",
                "canonical_solution": "    return 2 * x\n",
                "entry_point": "twice",
                "test": "def check(candidate):\n    assert candidate(2) == 4\n",
            },
        ),
    ),
    "ifeval": Case(
        gold=lambda item: str(item.columns["gold"]),
        rows=tuple(
            {
                "key": 1000 + number,
                "prompt": "Write about ducks as it says.",
                "instruction_id_list": [name for name, _ in asked],
                "kwargs": [
                    dict.fromkeys(("num_words", "relation", "num_highlights", "language")) | own for _, own in asked
                ],
                "gold": gold,
            }
            for number, (gold, asked) in enumerate(
                (
                    (
                        "*Ducks* swim and *ducks* dive all day long.",
                        (
                            ("punctuation:no_comma", {}),
                            ("detectable_format:number_highlighted_sections", {"num_highlights": 2}),
                            ("length_constraints:number_words", {"num_words": 8, "relation": "at least"}),
                        ),
                    ),
                    (
                        "Die Enten schwimmen gerne auf dem kleinen See hinter unserem Haus.",
                        (("language:response_language", {"language": "de"}),),
                    ),
                )
            )
        ),
    ),
    "mbpp": Case(
        gold=lambda item: f"```python\n{item.columns['code']}\n```",
        rows=(
            {
                "prompt": "Write a function to halve a number.",
                "code": "def halve(x):\n    return x / 2",
                "test_imports": ["import math"],
                "test_list": ["assert math.isclose(halve(3), 1.5)"],
            },
        ),
    ),
    "olympiad_bench": Case(
        gold=lambda item: f"Thus \\boxed{{{', '.join(item.columns['answer'])}}}.",
        rows=(
            {"question": "Which?", "final_answer": ["$\\frac{3}{4}$"]},
            {"question": "Roots?", "final_answer": ["1", "3"]},
        ),
    ),
    "reasoning_gym": Case(
        gold=lambda item: f"<answer>{item.columns['answer']}</answer>",
        settings={"dataset": "chain_sum", "size": 4, "config": {"min_terms": 2, "max_terms": 3}},
    ),
}
NAMES = [member.name for member in catalog.members("eval") if member.name not in AGENTS]


@pytest.fixture(params=NAMES)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Case, Benchmark]:
    name = request.param
    assert name in CASES, f"eval/{name}.py is new: add a case to {Path(__file__).name}"
    case, settings = CASES[name], dict(CASES[name].settings)
    if case.rows:
        data = tmp_path / "items.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in case.rows))
        settings["data"] = str(data)
    return case, catalog.build("eval", name, settings)


def _answered(item: Example, text: str) -> Trajectory:
    turn = Turn((), (), (), StopReason.STOP, policy_version=0, text=text)
    return Trajectory(item.id, 0, item.prompt, item.columns, turns=(turn,))


def test_gold_answers_are_graded_full_and_garbage_zero(case: tuple[Case, Benchmark]) -> None:
    how, benchmark = case
    items = load_items(benchmark)
    gold = [_answered(item, how.gold(item)) for item in items]
    garbage = [_answered(item, text) for item in items for text in ("", "no idea", "\\boxed{", "<answer>")]
    with make_grader(benchmark, workers=1) as grader:
        grader.check_columns(items[0].columns)
        grader.grade([*gold, *garbage])
    assert [one.reward for one in gold] == [1.0] * len(items), [one.error for one in gold]
    assert all(one.solved for one in gold)
    assert [one.reward for one in garbage] == [0.0] * len(garbage), [one.error for one in garbage]


def test_items_are_asked_and_limited(case: tuple[Case, Benchmark]) -> None:
    _, benchmark = case
    (item,) = load_items(benchmark, limit=1)
    assert not isinstance(item.prompt, str)
    assert item.prompt[-1]["role"] == "user"
    assert item.id == load_items(benchmark)[0].id


def test_every_benchmark_takes_the_sampling_settings() -> None:
    for name in NAMES:
        settings = {"temperature": 0.6, "top_p": 0.95, "max_tokens": 77}
        benchmark = catalog.build("eval", name, CASES[name].settings | settings)
        assert {key: getattr(benchmark, key) for key in settings} == settings


def test_math500_names_its_column(tmp_path: Path) -> None:
    data = tmp_path / "items.json"
    data.write_text(json.dumps([{"prompt": "Half of one?", "answer": "1/2"}]))
    for settings in ({"problem": "prompt"}, {}):  # found where it is not named
        (item,) = load_items(catalog.build("eval", "math500", {"data": str(data)} | settings))
        assert item.prompt[0]["content"].startswith("Half of one?\nPlease reason")


def test_competitions_are_sampled_as_hpt_does() -> None:
    for name in ("aime24", "aime25", "amc23"):
        benchmark = catalog.build("eval", name, {})
        assert (benchmark.samples, benchmark.temperature, benchmark.top_p, benchmark.max_tokens) == (
            32,
            0.6,
            0.95,
            8192,
        )


def test_reasoning_gym_problems_are_far_from_training_seeds() -> None:
    settings = catalog.check("eval", "reasoning_gym", {"dataset": "chain_sum"})
    assert settings["seed"] > 10**8


def test_options_are_lettered_and_gpqa_shuffles_them(tmp_path: Path) -> None:
    data = tmp_path / "items.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in CASES["gpqa_diamond"].rows))
    items = load_items(catalog.build("eval", "gpqa_diamond", {"data": str(data)}))
    assert items[0].prompt[-1]["content"].startswith("Which 0?\n\nA. ")
    assert len({item.columns["answer"] for item in items}) > 1
    assert items == load_items(catalog.build("eval", "gpqa_diamond", {"data": str(data)}))
