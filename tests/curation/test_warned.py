"""A run says what of its data comes close to what it evaluates."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from posttrain import catalog
from posttrain.config.load import load_recipe
from posttrain.data.examples import Example
from posttrain.models.tokenizer import character_tokenizer
from posttrain.trainer.inputs import load_data

ASKED = "Tom reads 20 pages each evening and twice as many on Sundays; how many pages has he read after two weeks?"


def test_rows_that_share_words_with_the_evaluation_are_named(
    tiny_recipe: dict[str, Any], write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    data = tmp_path / "train.jsonl"
    texts = ["What is 2 + 2?", f"Solve: {ASKED}", ASKED, "How much does Tom read in a fortnight, at 20 pages a day?"]
    data.write_text("".join(json.dumps({"prompt": text, "completion": "1"}) + "\n" for text in texts))
    tiny_recipe |= {"demonstrations": {"path": str(data)}, "algorithm": {"name": "sft"}}
    for section in ("rewards", "rollout"):
        del tiny_recipe[section]
    recipe = load_recipe(str(write_recipe(tiny_recipe)), []).recipe
    algorithm = catalog.build("algorithms", "sft", {})
    item = Example("test#0", prompt=f"{ASKED} Put your answer in a box.", columns={"problem": ASKED})
    lines = load_data(recipe, algorithm, character_tokenizer(), [item]).lines
    assert lines[0].endswith("1 left out because the evaluation asks them")
    assert lines[1] == (
        "demonstrations: 1 of them share 13 words in a row with what the evaluation asks (the first: "
        f"{data}#1); `posttrain curate --against` leaves such rows out"
    )
    assert len(load_data(recipe, algorithm, character_tokenizer(), []).lines) == 1
