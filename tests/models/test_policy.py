"""Policy against the model's own logits: ragged padded rows, temperatures, tied heads, low precision."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from posttrain.batch import Source, TokenSequence
from posttrain.config.schema import ModelSettings, TokenizerSettings
from posttrain.data.collate import collate
from posttrain.models.load import load_model
from posttrain.models.logits import LogitShape
from posttrain.models.policy import Policy, logit_shape
from posttrain.models.reference import reference_of
from posttrain.models.tokenizer import load_tokenizer

TINY: dict[str, Any] = {
    "model_type": "qwen3",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "tie_word_embeddings": True,
}
SIZES = {key: TINY[key] for key in TINY if key not in ("model_type", "tie_word_embeddings")}
NARROW = {key: SIZES[key] for key in SIZES if key != "head_dim"}
ARCHITECTURES: list[dict[str, Any]] = [
    TINY,
    TINY | {"tie_word_embeddings": False},
    SIZES | {"model_type": "llama"},
    SIZES | {"model_type": "gemma2", "sliding_window": 4, "final_logit_softcapping": 0.05},
    SIZES | {"model_type": "mistral", "sliding_window": 4},
    NARROW | {"model_type": "granite", "logits_scaling": 8.0},
    NARROW | {"model_type": "cohere"},
    {"model_type": "gpt2", "n_embd": 32, "n_head": 4, "n_layer": 2},
    {"model_type": "mamba", "hidden_size": 32, "num_hidden_layers": 2},
]


def tiny(config: dict[str, Any] = TINY, **settings: Any) -> Any:
    model_settings = ModelSettings(config=config, **settings)
    return load_model(model_settings, load_tokenizer(TokenizerSettings(path="characters"), model_settings), seed=3)


def ragged(seed: int = 0) -> list[TokenSequence]:
    generator = torch.Generator().manual_seed(seed)
    sequences = []
    for length, temperature in ((17, 1.0), (3, 0.7), (9, 1.0), (2, 1.5), (12, 0.3)):
        ids = torch.randint(6, 90, (length,), generator=generator).tolist()
        mask = [False, *(torch.rand(length - 1, generator=generator) < 0.6).tolist()]
        sequences.append(TokenSequence(tuple(ids), tuple(mask), Source.ROLLOUTS, 0, temperature=temperature))
    return sequences


def alone(model: Any, sequence: TokenSequence) -> Tensor:
    """Log-probabilities of all next tokens at the sequence's actions, one row, no padding."""
    logits = model(torch.tensor([sequence.token_ids])).logits[0].float() / sequence.temperature
    return torch.log_softmax(logits, -1)[:-1][torch.tensor(sequence.action_mask[1:])]


@pytest.mark.parametrize(
    "config", ARCHITECTURES, ids=lambda c: c["model_type"] + "_tied" * c.get("tie_word_embeddings", 0)
)
def test_equals_the_models_own_logits(config: dict[str, Any]) -> None:
    model = tiny(config)
    sequences = ragged()
    result = Policy(model)(collate(sequences))
    logs = [alone(model, sequence) for sequence in sequences]
    ids = [torch.tensor(s.token_ids)[torch.tensor(s.action_mask)] for s in sequences]
    expected = torch.cat([rows.gather(1, chosen[:, None]).squeeze(1) for rows, chosen in zip(logs, ids, strict=True)])
    entropy = torch.cat([-(rows.exp() * rows).sum(-1) for rows in logs])
    torch.testing.assert_close(result.logprobs, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(result.entropy, entropy, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("chunk_bytes", [1000, 1 << 28])
def test_gradient_equals_that_of_the_models_own_logits(tied: bool, chunk_bytes: int) -> None:
    model = tiny(TINY | {"tie_word_embeddings": tied}, dtype="float64")
    twin = copy.deepcopy(model)
    sequences = ragged()
    Policy(model, chunk_bytes=chunk_bytes)(collate(sequences)).logprobs.sum().backward()
    for sequence in sequences:
        ids = torch.tensor(sequence.token_ids)[torch.tensor(sequence.action_mask)]
        logits = twin(torch.tensor([sequence.token_ids])).logits[0] / sequence.temperature
        logs = torch.log_softmax(logits, -1)[:-1][torch.tensor(sequence.action_mask[1:])]
        logs.gather(1, ids[:, None]).sum().backward()
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-6, rtol=1e-6)  # temperatures are float32


def test_padding_changes_nothing() -> None:
    policy = Policy(tiny(dtype="float64"))
    sequences = ragged()
    together = policy(collate(sequences)).logprobs
    apart = torch.cat([policy(collate([sequence])).logprobs for sequence in sequences])
    torch.testing.assert_close(together, apart, atol=1e-12, rtol=0)


def test_gradient_checkpointing_changes_nothing() -> None:
    gradients = []
    for checkpointing in (False, True):
        policy = Policy(tiny(gradient_checkpointing=checkpointing))
        policy.train()
        policy(collate(ragged())).logprobs.sum().backward()
        gradients.append([parameter.grad for parameter in policy.parameters()])
    torch.testing.assert_close(*gradients)


def test_no_action_tokens() -> None:
    policy = Policy(tiny())
    result = policy(collate([TokenSequence((5, 6, 7), (False, False, False), Source.ROLLOUTS, 0)]))
    result.logprobs.sum().backward()
    assert result.logprobs.shape == (0,)
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in policy.parameters())


def test_bfloat16() -> None:
    model = tiny(dtype="bfloat16")
    sequences = ragged()
    result = Policy(model)(collate(sequences))
    assert result.logprobs.dtype == torch.float32
    ids = [torch.tensor(s.token_ids)[torch.tensor(s.action_mask)] for s in sequences]
    rows = zip([alone(model, sequence) for sequence in sequences], ids, strict=True)
    expected = torch.cat([row.gather(1, chosen[:, None]).squeeze(1) for row, chosen in rows])
    assert (result.logprobs - expected).abs().max() < 0.05


def test_bfloat16_autocast_gives_float32_logprobs_and_gradients() -> None:
    policy = Policy(tiny())
    exact = policy(collate(ragged())).logprobs
    with torch.autocast("cpu", torch.bfloat16):
        result = policy(collate(ragged()))
    result.logprobs.sum().backward()
    assert result.logprobs.dtype == torch.float32
    assert 0 < (result.logprobs - exact).abs().max() < 0.05
    assert all(
        parameter.grad is not None and parameter.grad.dtype == torch.float32 for parameter in policy.parameters()
    )


def test_data_parallel_wrapper_sees_every_gradient(tmp_path: Path) -> None:
    model = tiny()
    twin = copy.deepcopy(model)
    Policy(twin)(collate(ragged())).logprobs.sum().backward()
    ours_alone = not torch.distributed.is_initialized()  # a sampler in this process may have made one
    if ours_alone:
        torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = torch.nn.parallel.DistributedDataParallel(Policy(model))
        for _ in range(2):  # the second pass fails where a parameter's gradient was missed in the first
            model.zero_grad()
            wrapped(collate(ragged())).logprobs.sum().backward()
    finally:
        if ours_alone:
            torch.distributed.destroy_process_group()
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_reference_is_frozen() -> None:
    model = tiny()
    reference = reference_of(model)
    before = reference(collate(ragged())).logprobs
    assert not before.requires_grad
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    torch.testing.assert_close(reference(collate(ragged())).logprobs, before, atol=0, rtol=0)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not reference.training


def test_logit_shape_reads_the_config() -> None:
    shapes = {config["model_type"]: logit_shape(tiny(config).config) for config in ARCHITECTURES}
    assert shapes["gemma2"] == LogitShape(softcap=0.05)
    assert shapes["granite"] == LogitShape(scale=1 / 8)
    assert shapes["cohere"] == LogitShape(scale=0.0625)
    assert shapes["qwen3"] == shapes["gpt2"] == shapes["mamba"] == LogitShape()
