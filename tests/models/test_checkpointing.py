"""Gradient checkpointing and activation offload: the gradient stays, memory moves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from posttrain.batch import Source, TokenSequence
from posttrain.config.schema import LoraSettings, ModelSettings, TokenizerSettings
from posttrain.data.collate import collate
from posttrain.models import offload
from posttrain.models.critic import Critic
from posttrain.models.load import load_model
from posttrain.models.lora import add_lora
from posttrain.models.offload import offload_activations
from posttrain.models.policy import Policy
from posttrain.models.tokenizer import load_tokenizer


def _policy(
    recipe: dict[str, Any], *, checkpointing: bool, lora: bool = False, critic: bool = False
) -> tuple[Policy, list[int]]:
    """The policy in training mode, and a list that grows by one with every call of a layer's attention."""
    settings = ModelSettings(config=recipe["model"]["config"], dtype="float64", gradient_checkpointing=checkpointing)
    model = load_model(settings, load_tokenizer(TokenizerSettings(path="characters"), settings), seed=0)
    second = Critic(model, "state") if critic else None
    if lora:
        add_lora(model, LoraSettings(rank=2), seed=0)
        torch.manual_seed(0)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.1)
    policy = Policy(model, critic=second).train()
    calls: list[int] = []
    for module in policy.modules():
        if type(module).__name__ == "Qwen3Attention":
            module.register_forward_hook(lambda *_: calls.append(1))
    return policy, calls


def _sequences() -> list[TokenSequence]:
    """Four completions of one prompt, which they share in their rows."""
    return [
        TokenSequence((*range(5, 45), *range(10 + index, 30 + index)), (False,) * 40 + (True,) * 20, Source.ROLLOUTS, 0)
        for index in range(4)
    ]


def _gradients(policy: Policy) -> dict[str, Tensor]:
    scored = policy(collate(_sequences(), layout=policy.layout))
    spread = torch.linspace(-1, 2, scored.logprobs.numel(), dtype=torch.float64)
    loss = (spread * scored.logprobs).sum() + (spread.flip(0) * scored.entropy).sum()
    if scored.values is not None:
        loss = loss + ((scored.values - 1) ** 2).sum()
    torch.autograd.backward(loss)
    return {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("critic", [False, True])
def test_checkpointing_gives_the_same_gradient(lora: bool, critic: bool, tiny_recipe: dict[str, Any]) -> None:
    found = []
    for checkpointing in (False, True):
        policy, calls = _policy(tiny_recipe, checkpointing=checkpointing, lora=lora, critic=critic)
        gradients = _gradients(policy)
        assert len(calls) == 2 * (1 + critic) * (1 + checkpointing), "every layer is computed again, the critic's too"
        trained = {name for name, p in policy.named_parameters() if p.requires_grad}
        assert gradients.keys() == trained
        found.append(gradients)
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_offloading_gives_the_same_gradient_and_leaves_weights(
    checkpointing: bool, tiny_recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offload, "SMALLEST_BYTES", 1)
    policy, _ = _policy(tiny_recipe, checkpointing=checkpointing)
    weights = {parameter.untyped_storage().data_ptr() for parameter in policy.parameters()}
    moved: list[Tensor] = []

    def wanted(tensor: Tensor) -> bool:
        moved.append(tensor)
        return True

    expected = _gradients(policy)
    policy.zero_grad()
    offload_activations(policy, wanted)
    found = _gradients(policy)
    assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())
    sizes = [one.numel() for one in moved if one.untyped_storage().data_ptr() not in weights]
    width = tiny_recipe["model"]["config"]["hidden_size"]
    assert sum(size % width == 0 for size in sizes) >= 2, "at least the input of every layer"
    with torch.no_grad():
        moved.clear()
        policy(collate(_sequences(), layout=policy.layout))
    assert not moved, "scoring saves nothing"


def test_nothing_is_moved_where_there_is_no_gpu(tiny_recipe: dict[str, Any]) -> None:
    policy, _ = _policy(tiny_recipe, checkpointing=False)
    expected = _gradients(policy)
    policy.zero_grad()
    offload_activations(policy)
    assert all(torch.equal(gradient, expected[name]) for name, gradient in _gradients(policy).items())


def test_what_is_offloaded_comes_back_as_it_lay_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offload, "SMALLEST_BYTES", 0)
    seen: list[tuple[int, ...]] = []

    class Keep(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x.detach().transpose(0, 1).contiguous().transpose(0, 1))
            return x * 2

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            (kept,) = ctx.saved_tensors
            seen.append(kept.stride())
            return grad * 2

    class Module(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = Keep.apply(x)  # type: ignore[no-untyped-call]
            return found

    module = Module()
    offload_activations(module, lambda _: True)
    module(torch.ones(3, 5, requires_grad=True)).sum().backward()
    assert seen == [(1, 3)]
