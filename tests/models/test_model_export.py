"""What save_model writes, and the names and digest of weights."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrain.config.schema import ModelSettings
from posttrain.models.export import save_model
from posttrain.models.load import load_model
from posttrain.models.tokenizer import character_tokenizer
from posttrain.models.weights import digest, named_weights

CONFIG: dict[str, Any] = {
    "model_type": "qwen3",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "tie_word_embeddings": True,
}


def new(seed: int = 0, **fields: Any) -> Any:
    return load_model(ModelSettings(config=CONFIG | fields), character_tokenizer(), seed)


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_same_weights_same_bytes(tmp_path: Path) -> None:
    save_model(new(), character_tokenizer(), tmp_path / "a")
    save_model(new(), character_tokenizer(), tmp_path / "b")
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= set(
        files(tmp_path / "a")
    )
    (tmp_path / "usual").touch()
    usual = stat.S_IMODE((tmp_path / "usual").stat().st_mode)
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "a").iterdir()} == {usual}


def test_replaces_a_former_directory_whole(tmp_path: Path) -> None:
    save_model(new(), character_tokenizer(), tmp_path / "final")
    (tmp_path / "final" / "left_over").touch()
    save_model(new(seed=1), character_tokenizer(), tmp_path / "final")
    assert "left_over" not in files(tmp_path / "final")
    assert [path.name for path in tmp_path.iterdir()] == ["final"]


def test_a_failed_save_leaves_the_former_one(tmp_path: Path) -> None:
    save_model(new(), character_tokenizer(), tmp_path / "final")
    before = files(tmp_path / "final")
    broken = new(seed=1)
    broken.generation_config.temperature = 0.5  # refused by transformers without do_sample
    with pytest.raises(ValueError, match="temperature"):
        save_model(broken, character_tokenizer(), tmp_path / "final")
    assert files(tmp_path / "final") == before
    assert [path.name for path in tmp_path.iterdir()] == ["final"]


def test_plain_transformers_generates_the_same_and_stops(tmp_path: Path) -> None:
    model, tokenizer = new(), character_tokenizer()
    save_model(model, tokenizer, tmp_path / "final")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "final")
    again = AutoTokenizer.from_pretrained(tmp_path / "final")
    message = [{"role": "user", "content": "1 + 1 = ?"}]
    assert again.apply_chat_template(message, tokenize=False) == tokenizer.apply_chat_template(message, tokenize=False)
    prompt = again("1 + 1 =", return_tensors="pt")
    ours = model.generate(**prompt, do_sample=False, max_new_tokens=20)
    assert torch.equal(ours, loaded.generate(**prompt, do_sample=False, max_new_tokens=20))
    model.generation_config.eos_token_id = int(ours[0, -10])
    save_model(model, tokenizer, tmp_path / "final")
    stopping = AutoModelForCausalLM.from_pretrained(tmp_path / "final")
    stopped = stopping.generate(**prompt, do_sample=False, max_new_tokens=20)
    assert stopped[0, -1] == ours[0, -10]
    assert stopped.shape[1] < ours.shape[1]


@pytest.mark.parametrize("tied", [True, False])
def test_named_weights_cover_the_state_dict_once(tied: bool) -> None:
    model = new(tie_word_embeddings=tied)
    weights = dict(named_weights(model))
    assert set(model.state_dict()) - set(weights) == ({"lm_head.weight"} if tied else set())
    assert all(not tensor.requires_grad for tensor in weights.values())
    twin = new(seed=1, tie_word_embeddings=tied)
    twin.load_state_dict(weights, strict=False)
    assert digest(twin) == digest(model)


def test_digest_sees_one_bit() -> None:
    model = new()
    before = digest(model)
    weight = model.model.layers[0].mlp.up_proj.weight
    with torch.no_grad():
        weight.view(torch.int32)[3, 5] ^= 1
    assert digest(model) != before
    with torch.no_grad():
        weight.view(torch.int32)[3, 5] ^= 1
    assert digest(model) == before
    assert digest(model.bfloat16()) != before
