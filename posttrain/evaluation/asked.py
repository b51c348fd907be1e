"""Benchmarks of questions and answers: the settings that they share, and their common forms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, TypedDict

from posttrain.config.schema import SourceSettings
from posttrain.data.examples import Example
from posttrain.data.readers import READERS, read_rows
from posttrain.evaluation.benchmark import Benchmark
from posttrain.reward import RewardSpec
from posttrain.trajectory import Prompt

BOXED = "{problem}\nPlease reason step by step, and put your final answer within \\boxed{{}}."
CHOICE = (
    "{problem}\n\n{options:letters}\n\nPlease reason step by step, and put the letter of your answer within "
    "\\boxed{{}}."
)
COMPETITION: dict[str, Any] = {"temperature": 0.6, "top_p": 0.95, "max_tokens": 8192}
"""How HPT samples competitions (arXiv 2509.04419, section 4.1), there with 32 completions a problem."""


class Asked(TypedDict, total=False):
    """Settings of every benchmark of questions.

    data: a local file in place of the hub's copy. problem, answer: the columns of the question and of the gold answer.
    template: makes the prompt of the row's columns. chat: ask in the tokenizer's chat template; system: a system
    message. The rest is how it is sampled.
    """

    data: str
    problem: str
    answer: str
    template: str
    chat: bool
    system: str
    temperature: float
    top_p: float
    top_k: int
    max_tokens: int


def question_benchmark(
    name: str,
    path: str,
    rewards: tuple[RewardSpec, ...],
    asked: Asked,
    *,
    subset: str | None = None,
    split: str = "test",
    problem: str = "problem",
    answer: str = "answer",
    samples: int = 1,
    template: str = BOXED,
    columns: Mapping[str, str] | None = None,
    prepare: Callable[[Example], Example] | None = None,
    **sampling: Any,
) -> Benchmark:
    """The benchmark of the hub's dataset `path` (`subset`, `split`), or of a local file, as `asked` says.

    template and sampling: what holds where `asked` says nothing else. columns: further ones, ours -> the dataset's.
    Where the file lacks the columns `problem` and `answer`, and none are named, its own first of the usual names are
    taken. Rewards find the columns as "problem" and "answer".
    """
    data = asked.get("data")
    problem, answer = _columns(asked, problem, answer)
    sampling |= {key: value for key, value in asked.items() if key in ("temperature", "top_p", "top_k", "max_tokens")}
    source = SourceSettings(
        path=data or path,
        name=None if data else subset,
        split="train" if data else split,
        columns={"problem": problem, "answer": answer, **(columns or {})},
        template=asked.get("template", template),
        system=asked.get("system"),
        chat=asked.get("chat", True),
    )
    return Benchmark(name, source, rewards, samples=samples, prepare=prepare, **sampling)


def continued(prompt: Prompt, text: str) -> Prompt:
    """The prompt with `text` at the end of its last message."""
    if isinstance(prompt, str):
        return prompt + text
    return (*prompt[:-1], {**prompt[-1], "content": prompt[-1]["content"] + text})


def _columns(asked: Asked, problem: str, answer: str) -> tuple[str, str]:
    """The columns of question and answer."""
    usual = {"problem": (problem, "problem", "question", "prompt"), "answer": (answer, "answer", "final_answer")}
    given = dict(asked)
    file = Path(asked.get("data", ""))
    first = next(islice(read_rows(file), 1), None) if file.suffix in READERS and file.is_file() else None
    present = None if first is None else first.columns
    found = {
        name: given.get(name) or next((one for one in names if present is None or one in present), names[0])
        for name, names in usual.items()
    }
    return str(found["problem"]), str(found["answer"])
