"""`posttrain judge-data`: preferences as demonstrations of a judge that answers in words.

A generative judge is a language model that learnt, by `sft`, to say which of two answers is the better one; `posttrain
prefer` and the rewards that ask a judge can then ask it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from posttrain.config.schema import SourceSettings
from posttrain.curation.prefer import text_of
from posttrain.curation.written import check_output, write_rows
from posttrain.data.examples import Example
from posttrain.data.questions import question
from posttrain.data.sources import load_source
from posttrain.errors import DataError
from posttrain.estimator.pairing import Judge


def judge_rows(examples: Sequence[Example], judge: Judge) -> list[dict[str, Any]]:
    """Demonstrations for a judge that answers in words (a generative judge is trained by `sft` on these).

    Each preference is asked in both orders, so that no place is right more often: {"prompt", "completion"}.
    """
    rows: list[dict[str, Any]] = []
    for example in examples:
        if example.chosen is None or example.rejected is None:
            raise DataError(f"{example.id} has one side; allowed: pairs of a chosen and a rejected one")
        chosen, rejected = (text_of(side) for side in (example.chosen, example.rejected))
        for sides, label in zip(((chosen, rejected), (rejected, chosen)), judge.labels, strict=True):
            asked = question(judge.template, example.prompt, *sides)
            text = asked if isinstance(asked, str) else text_of(asked)
            rows.append({"prompt": text, "completion": label})
    return rows


def write_judge_rows(source: SourceSettings, output: Path, judge: Judge) -> int:
    """Write `judge_rows` of a source of preferences; how many."""
    check_output(output)
    rows = judge_rows(list(load_source(source, "preferences")), judge)
    write_rows(output, rows)
    return len(rows)
