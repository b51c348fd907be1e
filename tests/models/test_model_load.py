"""Models from a config or a directory, and every way in which a recipe's model can be wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from posttrain.config.schema import ModelSettings
from posttrain.errors import RecipeError, UserError
from posttrain.models.export import save_model
from posttrain.models.load import check_model, load_model
from posttrain.models.tokenizer import character_tokenizer
from posttrain.models.weights import digest

CONFIG: dict[str, Any] = {
    "model_type": "qwen3",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return character_tokenizer()


def load(tokenizer: Any, seed: int = 0, **settings: Any) -> Any:
    return load_model(ModelSettings(**settings), tokenizer, seed)


def test_new_model_takes_vocabulary_and_special_tokens_from_the_tokenizer(tokenizer: Any) -> None:
    model = load(tokenizer, config=CONFIG)
    assert model.config.vocab_size == len(tokenizer)
    assert model.config.eos_token_id == tokenizer.eos_token_id
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id
    assert not model.training
    wider = load(tokenizer, config=CONFIG | {"vocab_size": 128})
    assert wider.get_input_embeddings().weight.shape[0] == 128


def test_new_model_depends_on_the_seed_alone(tokenizer: Any) -> None:
    torch.manual_seed(1)
    first = load(tokenizer, config=CONFIG)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    again = load(tokenizer, config=CONFIG)
    assert torch.equal(before, torch.get_rng_state())
    assert digest(first) == digest(again) != digest(load(tokenizer, seed=1, config=CONFIG))
    half = load(tokenizer, config=CONFIG, dtype="bfloat16")
    torch.testing.assert_close(half.lm_head.weight, first.lm_head.weight.bfloat16(), rtol=0, atol=0)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention_implementation(tokenizer: Any, attention: str) -> None:
    assert load(tokenizer, config=CONFIG, attention=attention).config._attn_implementation == attention


def test_directory_round_trip(tokenizer: Any, tmp_path: Path) -> None:
    model = load(tokenizer, config=CONFIG)
    save_model(model, tokenizer, tmp_path / "model")
    check_model(ModelSettings(path=str(tmp_path / "model")))
    again = load(tokenizer, path=str(tmp_path / "model"))
    assert digest(again) == digest(model)
    assert load(tokenizer, path=str(tmp_path / "model"), dtype="bfloat16").dtype == torch.bfloat16


def test_stop_tokens_of_the_directory_are_kept(tokenizer: Any, tmp_path: Path) -> None:
    model = load(tokenizer, config=CONFIG)
    model.generation_config.eos_token_id = [7, 8]
    save_model(model, tokenizer, tmp_path / "model")
    again = load(tokenizer, path=str(tmp_path / "model"))
    assert again.generation_config.eos_token_id == sorted([7, 8, tokenizer.eos_token_id])


def test_sampling_settings_without_do_sample_can_be_saved_again(tokenizer: Any, tmp_path: Path) -> None:
    save_model(load(tokenizer, config=CONFIG), tokenizer, tmp_path / "model")
    path = tmp_path / "model" / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"temperature": 0.6}))
    save_model(load(tokenizer, path=str(tmp_path / "model")), tokenizer, tmp_path / "again")
    assert json.loads((tmp_path / "again" / "generation_config.json").read_text())["temperature"] == 0.6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hiden_size": 64}, "model.config.hiden_size.*did you mean 'hidden_size'"),
        ({"hidden_size": "big"}, "'hidden_size' expected int, got str"),
        ({"hidden_size": 0}, "model.config.hidden_size is 0; allowed: at least 1"),
        ({"model_type": "qwen33"}, "model_type is 'qwen33'; did you mean 'qwen3'"),
        ({"model_type": "t5"}, "model_type is 't5'.*causal language model"),
        ({"dtype": "bfloat16"}, "write it as model.dtype"),
        ({"layer_types": ["ful_attention"]}, "layer_types"),
    ],
)
def test_bad_config(change: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        check_model(ModelSettings(config=CONFIG | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": 5}, "vocab_size is 5; allowed: at least the tokenizer's"),
        ({"hidden_act": "sillu"}, "cannot be built.*sillu"),
        ({"num_key_value_heads": 3}, "Qwen3ForCausalLM.*a forward pass fails"),
    ],
)
def test_config_that_cannot_be_built(tokenizer: Any, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(tokenizer, config=CONFIG | change)


def test_path_and_config() -> None:
    for settings in (ModelSettings(), ModelSettings(path="somewhere", config=CONFIG)):
        with pytest.raises(RecipeError, match="exactly one of path"):
            check_model(settings)


def test_unknown_attention() -> None:
    with pytest.raises(RecipeError, match=r"model.attention is 'spda'; did you mean 'sdpa'"):
        check_model(ModelSettings(config=CONFIG, attention="spda"))


def test_missing_directory(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such directory"):
        check_model(ModelSettings(path=str(tmp_path / "nothing")))


def test_directory_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no readable config.json"):
        check_model(ModelSettings(path=str(tmp_path)))
    (tmp_path / "config.json").write_text('{"model_type": "qwen3",')
    with pytest.raises(UserError, match=r"no readable config.json"):
        check_model(ModelSettings(path=str(tmp_path)))
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    with pytest.raises(UserError, match="model_type 't5'"):
        check_model(ModelSettings(path=str(tmp_path)))


def test_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("posttrain.models.load.hub_reachable", lambda: False)
    with pytest.raises(UserError, match=r"'nobody/nothing'.*cannot be reached.*hf download nobody/nothing"):
        check_model(ModelSettings(path="nobody/nothing"))


def test_weights_missing_or_broken(tokenizer: Any, tmp_path: Path) -> None:
    directory = save_model(load(tokenizer, config=CONFIG), tokenizer, tmp_path / "model")
    settings = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(settings | {"num_hidden_layers": 2, "layer_types": None}))
    with pytest.raises(UserError, match=r"weights are missing: model.layers.1"):
        load(tokenizer, path=str(directory))
    (directory / "config.json").write_text(json.dumps(settings))
    weights = directory / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(UserError, match="cannot be loaded"):
        load(tokenizer, path=str(directory))
    weights.unlink()
    with pytest.raises(UserError, match="cannot be loaded"):
        load(tokenizer, path=str(directory))


def test_tokenizer_larger_than_the_model(tokenizer: Any, tmp_path: Path) -> None:
    directory = save_model(load(tokenizer, config=CONFIG), tokenizer, tmp_path / "model")
    larger = character_tokenizer()
    larger.add_tokens(["<tool>"])
    with pytest.raises(UserError, match="embeddings for"):
        load(larger, path=str(directory))
