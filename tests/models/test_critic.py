"""The critic: values from the states before the actions or from the actions themselves, in rows of every kind."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
import torch
from torch import Tensor

from posttrain.batch import Source, TokenSequence
from posttrain.config.schema import CriticSettings, ModelSettings, TokenizerSettings
from posttrain.data.collate import collate
from posttrain.data.plan import microbatches
from posttrain.errors import UserError
from posttrain.models.critic import Critic, Reading
from posttrain.models.export import save_model
from posttrain.models.load import check_critic, load_critic, load_model
from posttrain.models.policy import Policy
from posttrain.models.tokenizer import load_tokenizer
from posttrain.models.weights import named_weights
from posttrain.rows import Layout

NARROW: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
SIZES = NARROW | {"head_dim": 8}
QWEN3 = SIZES | {"model_type": "qwen3", "tie_word_embeddings": True}
ARCHITECTURES: list[dict[str, Any]] = [
    QWEN3,
    SIZES | {"model_type": "llama"},
    SIZES | {"model_type": "gemma2", "sliding_window": 4, "final_logit_softcapping": 0.05},
    NARROW | {"model_type": "cohere"},
    {"model_type": "gpt2", "n_embd": 32, "n_head": 4, "n_layer": 2},
    {"model_type": "mamba", "hidden_size": 32, "num_hidden_layers": 2},
]
EACH = pytest.mark.parametrize("reading", ["state", "action"])

LAYOUTS: list[Layout] = ["padded", "packed", "shared"]


def tiny(config: dict[str, Any] = QWEN3, **settings: Any) -> Any:
    model_settings = ModelSettings(config=config, **settings)
    return load_model(model_settings, load_tokenizer(TokenizerSettings(path="characters"), model_settings), seed=3)


def critic_of(model: Any, reading: Reading) -> Critic:
    """With a head that says something."""
    critic = Critic(model, reading).eval()
    with torch.no_grad():
        critic.head.weight.copy_(torch.linspace(-1, 1, critic.head.weight.numel()).sin()[None])
        critic.head.bias.fill_(0.25)
    return critic


def episodes() -> list[TokenSequence]:
    """Two prompts with completions that part early or late, one twice, one in two turns, one without actions."""
    draw = random.Random(4)
    found = []
    for group, prompt in enumerate((13, 9)):
        start = [draw.randrange(6, 90) for _ in range(prompt)]
        begun = [draw.randrange(6, 90) for _ in range(2)]
        for own, joint in ((3, True), (5, True), (1, False), (4, False)):
            ids = start + begun * joint + [draw.randrange(6, 90) for _ in range(own)]
            mask = [position >= prompt for position in range(len(ids))]
            found.append(TokenSequence(tuple(ids), tuple(mask), Source.ROLLOUTS, group))
    turns = (*found[1].token_ids, *range(7, 12))
    found.append(TokenSequence(turns, (*found[1].action_mask, False, False, True, True, False), Source.ROLLOUTS, 0))
    return [*found, found[0], TokenSequence((5, 6, 7), (False,) * 3, Source.ROLLOUTS, 2)]


def alone(critic: Critic, sequence: TokenSequence) -> Tensor:
    """One row, no padding, by hand."""
    hidden = critic.decoder(input_ids=torch.tensor([sequence.token_ids]), use_cache=False).last_hidden_state[0]
    actions = torch.tensor(sequence.action_mask).nonzero().squeeze(1)
    return hidden[actions - int(critic.reading == "state")] @ critic.head.weight[0] + critic.head.bias


@EACH
@pytest.mark.parametrize("config", ARCHITECTURES, ids=lambda config: config["model_type"])
def test_the_values_of_each_sequence_alone(config: dict[str, Any], reading: Reading) -> None:
    critic = critic_of(tiny(config), reading)
    sequences = episodes()
    expected = torch.cat([alone(critic, sequence) for sequence in sequences])
    for layout in LAYOUTS:
        rows = collate(sequences, layout=layout, whole=True)
        torch.testing.assert_close(critic(rows), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(critic(rows.unpacked()), expected, atol=1e-5, rtol=1e-5)


@EACH
def test_shared_rows_have_the_same_gradient(reading: Reading) -> None:
    gradients = []
    for layout, checkpointing in (("shared", False), ("padded", False), ("packed", False), ("shared", True)):
        policy = Policy(tiny(), critic=critic_of(tiny(gradient_checkpointing=checkpointing), reading))
        policy.train()
        values = policy(collate(episodes(), layout=layout, whole=True)).values
        (values * torch.sin(torch.arange(len(values)) + 1.0)).sum().backward()
        assert all(parameter.grad is None for parameter in policy.model.parameters())
        assert all(parameter.grad is not None for parameter in policy.critic.parameters())
        gradients.append([parameter.grad for parameter in policy.critic.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradients[2], gradients[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradients[0], gradients[3])


def test_whole_rows_fit_into_the_budget() -> None:
    sequences = episodes()
    for budget in (20, 45, 80):
        for batch in microbatches(sequences, budget, whole=True):
            part = [sequences[index] for index in batch]
            assert collate(part, whole=True).input_ids.numel() <= budget or len(part) == 1


def test_rows_without_the_actions_are_refused() -> None:
    with pytest.raises(ValueError, match="whole"):
        Critic(tiny(), "action")(collate(episodes()))


@EACH
def test_it_starts_at_zero_with_weights_of_its_own(reading: Reading) -> None:
    model = tiny()
    policy = Policy(model, critic=Critic(model, reading))
    rows = collate(episodes(), whole=True)
    scored = policy(rows)
    assert scored.values is not None
    assert scored.values.dtype == torch.float32
    assert not scored.values.any()
    torch.testing.assert_close(scored[:2], Policy(model)(rows)[:2], rtol=0, atol=0)
    theirs = {parameter.data_ptr() for parameter in model.parameters()}
    assert all(parameter.data_ptr() not in theirs for parameter in policy.critic.parameters())
    before = copy.deepcopy(policy.critic.decoder.state_dict())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    torch.testing.assert_close(dict(policy.critic.decoder.state_dict()), dict(before), rtol=0, atol=0)


def test_autocast_rounds_the_states_only() -> None:
    model = tiny()
    critic = critic_of(model, "state")
    with torch.autocast("cpu", torch.bfloat16):
        values = Policy(model, critic=critic)(collate(episodes(), whole=True)).values
    assert values.dtype == torch.float32
    assert (values != values.bfloat16()).any()
    exact = critic(collate(episodes(), whole=True))
    assert 0 < (values - exact).abs().max() < 0.1


def test_samplers_and_exports_get_the_policy_alone(tmp_path: Any) -> None:
    model = tiny()
    policy = Policy(model, critic=Critic(model, "state"))
    assert any(name.startswith("critic.") for name in policy.state_dict())
    names = {name for name, _ in named_weights(policy.model)}
    assert names == {name for name, _ in named_weights(tiny())}
    settings = ModelSettings(config=QWEN3)
    save_model(policy.model, load_tokenizer(TokenizerSettings(path="characters"), settings), tmp_path / "final")
    tokenizer = load_tokenizer(TokenizerSettings(), ModelSettings(path=str(tmp_path / "final")))
    start = load_critic(settings, CriticSettings(path=str(tmp_path / "final")), tokenizer)
    torch.testing.assert_close(dict(start.state_dict()), dict(model.state_dict()), rtol=0, atol=0)
    with pytest.raises(UserError, match=r"^critic.path"):
        check_critic(settings, CriticSettings(path=str(tmp_path / "nowhere")))
