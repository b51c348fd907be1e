"""`posttrain demonstrate` with a tiny model that learned to answer one document with a demonstration."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from posttrain.__main__ import app
from posttrain.curation.curate import source_settings
from posttrain.curation.demonstrate import TEMPLATE, Writer, demonstrate
from posttrain.data.chat import encode_demonstration
from posttrain.data.sources import load_source
from posttrain.errors import UserError
from tests.tiny import tiny_model

ANSWERS = {"tea": '{"task":"t","steps":[{"observation":"o","action":"pour()"}]}', "fog": "no"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A directory of a tiny model that knows both answers by heart."""
    directory = tmp_path_factory.mktemp("model")
    learner, tokenizer = tiny_model(
        hidden_size=64, intermediate_size=128, num_key_value_heads=2, head_dim=32, max_position_embeddings=128
    )
    optimizer = torch.optim.AdamW(learner.parameters(), lr=3e-3)
    sequences = []
    for document, answer in ANSWERS.items():
        messages = ({"role": "user", "content": f"<{document}>"},), ({"role": "assistant", "content": answer},)
        sequences += encode_demonstration(*messages, tokenizer)
    for _ in range(120):
        for one in sequences:
            ids = torch.tensor([one.token_ids])
            labels = ids.where(torch.tensor([one.action_mask]), -100)
            learner(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    learner.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return str(directory)


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    path = tmp_path / "documents.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("tea", "fog", "long" * 40)))
    return path


@pytest.fixture
def template(tmp_path: Path) -> Path:
    path = tmp_path / "template.txt"
    path.write_text("<{text}>")
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_documents_become_demonstrations_with_their_origin(
    model: str, documents: Path, template: Path, tmp_path: Path
) -> None:
    output = tmp_path / "made.jsonl"
    words = ["demonstrate", str(documents), str(output), "--model", model, "--template", str(template)]
    words += ["--temperature", "0", "--max-tokens", "100", "--action", r"\w+\(\)"]
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 0
    assert "3 documents, 1 of 3 answers are demonstrations" in result.output
    (line,) = read(output)
    assert line["messages"] == [
        {"role": "user", "content": "t\n\no"},
        {"role": "assistant", "content": "pour()"},
    ]
    assert (line["document"], line["sample"], line["made_by"]["model"]) == (f"{documents}#0", 0, model)
    assert line["made_by"]["temperature"] == 0
    rejected = read(tmp_path / "made.rejected.jsonl")
    assert [(one["document"], one["completion"]) for one in rejected] == [
        (f"{documents}#1", "no"),
        (f"{documents}#2", ""),
    ]
    assert rejected[0]["why"] == "no JSON object"
    assert "the model's window" in rejected[1]["why"]
    # A recipe reads what was written as demonstrations.
    (example,) = load_source(source_settings(str(output), []), "demonstrations")
    assert example.completion == ({"role": "assistant", "content": "pour()"},)


def test_what_is_drawn_depends_on_seed_document_and_sample(
    model: str, documents: Path, template: Path, tmp_path: Path
) -> None:
    def answers(name: str, **settings: Any) -> list[tuple[str, int, str]]:
        source = source_settings(str(documents), ["limit=2"])
        writer = Writer(model, template, samples=3, temperature=1.5, max_tokens=20, **settings)
        demonstrate(source, tmp_path / f"{name}.jsonl", writer)
        rejected = read(tmp_path / f"{name}.rejected.jsonl")
        return [(one["document"], one["sample"], one["completion"]) for one in rejected]

    first = answers("first")
    assert [sample for _, sample, _ in first] == [0, 1, 2] * 2
    assert answers("same") == first
    assert answers("other", seed=1) != first


def test_the_same_command_goes_on_after_a_kill(model: str, documents: Path, template: Path, tmp_path: Path) -> None:
    source, output, rejected = source_settings(str(documents), []), tmp_path / "o.jsonl", tmp_path / "o.rejected.jsonl"
    writer = Writer(model, template, samples=2, temperature=0.5, max_tokens=80)
    whole = demonstrate(source, output, writer)
    first, second = output.read_bytes(), rejected.read_bytes()
    rejected.write_bytes(second[: len(second) // 2])
    output.write_bytes(first[:-5])
    assert demonstrate(source, output, writer) == whole
    assert sorted(map(str, read(output))) == sorted(map(str, map(json.loads, first.splitlines())))
    assert sorted(map(str, read(rejected))) == sorted(map(str, map(json.loads, second.splitlines())))
    with pytest.raises(UserError, match="was made by"):
        demonstrate(source, output, replace(writer, seed=1))
    for mine in ("{}\n", "mine", "{}\nmine"):
        output.write_text(mine)
        with pytest.raises(UserError, match="not written by this command"):
            demonstrate(source, output, writer)
        assert output.read_text() == mine


def test_the_template_that_comes_along_is_one(documents: Path) -> None:
    prompts = load_source(
        source_settings(str(documents), []).model_copy(update={"template": TEMPLATE.read_text()}), "prompts"
    )
    assert str(prompts[0].prompt).rstrip().endswith("tea")
    assert '{"task": ' in str(prompts[0].prompt)


@pytest.mark.parametrize(
    ("settings", "writer", "message"),
    [
        (["template=x{text}"], {}, "--template FILE"),
        ([], {"template": Path("nowhere.txt")}, "nowhere.txt: no such file"),
        ([], {"action": "("}, "not a regular expression"),
        ([], {"engine": "vlm"}, "not an engine"),
        ([], {"samples": 2, "temperature": 0.0}, "all the same"),
        ([], {"model": "no/such/directory/model"}, "no/such/directory/model"),
        (["columns.text=body"], {}, "no column 'body'"),
    ],
)
def test_mistakes(documents: Path, tmp_path: Path, settings: list[str], writer: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        demonstrate(
            source_settings(str(documents), settings), tmp_path / "o.jsonl", Writer(**({"model": "x"} | writer))
        )
    assert not (tmp_path / "o.jsonl").exists()
