"""`posttrain watch`: a tiny model learns from demonstrations what led from one observation to the next, and labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from posttrain.__main__ import app
from posttrain.data.chat import encode_demonstration
from posttrain.errors import DataError
from tests.tiny import tiny_model


def message(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


SHOWN = {
    "prompt": [message("system", "count"), message("user", "0")],
    "completion": [
        message("assistant", "add"), message("user", "1"), message("assistant", "dup"), message("user", "11"),
        message("assistant", "end"),
    ],
}  # fmt: skip


def run(*words: str) -> str:
    return CliRunner().invoke(app, ["watch", *words], catch_exceptions=False).output


def write(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_demonstrations_teach_and_recordings_are_labelled(tmp_path: Path) -> None:
    taught = tmp_path / "taught.jsonl"
    assert "2 rows" in run(write(tmp_path / "shown.jsonl", SHOWN), str(taught))  # nothing follows the last action
    rows = read(taught)
    assert [one["completion"] for one in rows] == [[message("assistant", "add")], [message("assistant", "dup")]]
    assert [one["prompt"][0]["content"] for one in rows] == [
        "Before:\n0\n\nAfter:\n1\n\nWhich action was taken?",
        "Before:\n1\n\nAfter:\n11\n\nWhich action was taken?",
    ]

    directory = tmp_path / "model"
    learner, tokenizer = tiny_model(
        hidden_size=64, intermediate_size=128, num_key_value_heads=2, head_dim=32, max_position_embeddings=128
    )
    optimizer = torch.optim.AdamW(learner.parameters(), lr=3e-3)
    sequences = [one for row in rows for one in encode_demonstration(row["prompt"], row["completion"], tokenizer)]
    for _ in range(60):
        for one in sequences:
            ids = torch.tensor([one.token_ids])
            learner(input_ids=ids, labels=ids.where(torch.tensor([one.action_mask]), -100)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    learner.save_pretrained(directory)
    tokenizer.save_pretrained(directory)

    recorded = write(tmp_path / "recorded.jsonl", {"observations": ["0", "1", "11"], "video": 7})
    found = tmp_path / "found.jsonl"
    assert "1 recordings, 1 labelled" in run(recorded, str(found), "--model", str(directory), "--max-tokens", "8")
    assert read(found) == [
        {"video": 7, "prompt": [message("user", "0")], "completion": SHOWN["completion"][:3]},
    ]


def test_what_is_no_recording_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "recorded.jsonl", {"observations": ["0", "1"]}, {"observations": ["0"]})
    with pytest.raises(DataError, match=r"jsonl:2: observations is \['0'\]; allowed: a list of two texts or more"):
        run(path, str(tmp_path / "found.jsonl"), "--model", "unread")


def test_a_demonstration_of_one_action_teaches_nothing(tmp_path: Path) -> None:
    alone = write(tmp_path / "shown.jsonl", SHOWN | {"completion": SHOWN["completion"][:1]})
    with pytest.raises(DataError, match="no action has an observation before and after it"):
        run(alone, str(tmp_path / "found.jsonl"))
