"""Adapters: what trains, what leaves the trainer, and what the frozen weights still say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen3Config

from posttrain.batch import Source, TokenSequence
from posttrain.config.schema import LoraSettings, ModelSettings, TokenizerSettings
from posttrain.data.collate import collate
from posttrain.errors import RecipeError
from posttrain.models.export import save_model
from posttrain.models.lora import WithoutAdapter, add_lora, has_lora
from posttrain.models.policy import Policy
from posttrain.models.reference import reference_of
from posttrain.models.tokenizer import load_tokenizer
from posttrain.models.weights import named_weights

IDS = torch.tensor([[1, 5, 9, 3, 7, 2]])
ROWS = collate([TokenSequence((1, 5, 9, 3, 7, 2), (False, False, True, True, True, True), Source.ROLLOUTS, group=0)])
TRICKS = pytest.mark.parametrize(
    "tricks", [{}, {"dora": True}, {"rank_stabilised": True}, {"target_modules": ["q_proj", "down_proj"]}], ids=str
)


def _model(**changes: Any) -> Any:
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "vocab_size": 97, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 16, "tie_word_embeddings": True,
    }  # fmt: skip
    return AutoModelForCausalLM.from_config(Qwen3Config(**(shape | changes))).eval()


def _moved(model: Any) -> Any:
    """As after some training: B is no longer 0."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@TRICKS
def test_only_the_adapter_trains_and_at_first_it_changes_nothing(tricks: dict[str, Any]) -> None:
    model = _model()
    before = model(IDS).logits
    add_lora(model, LoraSettings(rank=4, **tricks), seed=1)
    assert has_lora(model)
    torch.testing.assert_close(model(IDS).logits, before, rtol=0, atol=1e-5)
    assert all(("lora_" in name) == p.requires_grad for name, p in model.named_parameters())


@TRICKS
def test_merged_weights_compute_what_the_model_computes(tricks: dict[str, Any]) -> None:
    model, plain = _model(), _model()
    add_lora(model, LoraSettings(rank=4, **tricks), seed=1)
    _moved(model)
    given = dict(named_weights(model))
    assert list(given) == [name for name, _ in named_weights(plain)]
    plain.load_state_dict(given, strict=False)
    torch.testing.assert_close(plain(IDS).logits, model(IDS).logits, rtol=0, atol=1e-5)


def test_the_frozen_weights_are_the_reference_bit_for_bit() -> None:
    model = _model()
    copied = reference_of(model)
    add_lora(model, LoraSettings(rank=4), seed=1)
    policy = Policy(_moved(model))
    reference = WithoutAdapter(policy)
    with torch.no_grad():
        expected = copied(ROWS).logprobs
        torch.testing.assert_close(reference(ROWS).logprobs, expected, rtol=0, atol=0)
        assert not torch.allclose(policy(ROWS).logprobs, expected, atol=1e-4)
    policy(ROWS).logprobs.sum().backward()
    assert all((p.grad is not None) == ("lora_" in name) for name, p in model.named_parameters())


def test_the_seed_alone_decides_the_adapter() -> None:
    found = []
    for number in (3, 3, 4):
        model = _model()
        torch.rand(number)
        add_lora(model, LoraSettings(rank=4), seed=number)
        found.append({name: p for name, p in model.named_parameters() if "lora_A" in name})
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert not any(torch.equal(found[0][name], found[2][name]) for name in found[0])


@TRICKS
def test_export_is_a_plain_model_and_an_adapter_for_peft(tricks: dict[str, Any], tmp_path: Path) -> None:
    tokenizer: PreTrainedTokenizerFast = load_tokenizer(TokenizerSettings(path="characters"), ModelSettings())
    model, base = _model(vocab_size=len(tokenizer)), _model(vocab_size=len(tokenizer))
    add_lora(model, LoraSettings(rank=4, **tricks), seed=1)
    save_model(_moved(model), tokenizer, tmp_path / "final")
    expected = model(IDS).logits
    merged, info = AutoModelForCausalLM.from_pretrained(tmp_path / "final", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    torch.testing.assert_close(merged(IDS).logits, expected, rtol=0, atol=1e-5)
    adapted = PeftModel.from_pretrained(base, str(tmp_path / "final" / "adapter"))
    torch.testing.assert_close(adapted(IDS).logits, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("targets", "message"),
    [(["q_prj"], "q_proj"), (["q_proj", "lm_head"], "output head"), (["embed_tokens"], "embeddings")],
)
def test_targets_that_cannot_be_adapted(targets: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=rf"lora\.target_modules.*{message}"):
        add_lora(_model(), LoraSettings(target_modules=targets), seed=0)


def test_gradient_checkpointing_changes_no_gradient_of_the_adapter() -> None:
    gradients = []
    for checkpointed in (False, True):
        model = _model()
        if checkpointed:
            model.gradient_checkpointing_enable()
        add_lora(model, LoraSettings(rank=4), seed=1)
        Policy(_moved(model).train())(ROWS).logprobs.sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert gradient is not None and gradient.any()
        torch.testing.assert_close(gradients[1][name], gradient)
