"""V and Q over the vocabulary: against whole logits, where gradients go, the target that follows, files."""

from __future__ import annotations

from pathlib import Path

import torch

from posttrain.batch import Source, TokenSequence
from posttrain.data.collate import collate
from posttrain.models.action_values import ActionValues, load_values, save_values
from posttrain.models.policy import Policy
from tests.tiny import tiny_model

MODEL = tiny_model()[0].double()
SEQUENCES = [
    TokenSequence((3, 40, 41, 42, 43), (False, False, True, True, True), Source.TRAJECTORIES, 0, reward=1.0),
    TokenSequence((3, 50, 51), (False, False, True), Source.TRAJECTORIES, 1, reward=0.0),
]


def values_of(rate: float = 0.25) -> ActionValues:
    values = ActionValues(MODEL, rate)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in (values.action.weight, values.action.bias, values.state.weight, values.target_weight):
            parameter.normal_(generator=generator)
    return values


def test_each_number_is_that_of_the_whole_vocabularys() -> None:
    values, rows = values_of(), collate(SEQUENCES)
    found = values(rows)
    expected = []
    for sequence in SEQUENCES:
        hidden = values.decoder(input_ids=torch.tensor([sequence.token_ids])).last_hidden_state[0]
        for place, token in enumerate(sequence.token_ids):
            if sequence.action_mask[place]:
                state = hidden[place - 1]
                q = values.action.weight @ state + values.action.bias
                target = values.target_weight @ state + values.target_bias
                v = values.state.weight[0] @ state + values.state.bias[0]
                expected.append(torch.stack([v, q[token], q.log_softmax(-1)[token], target[token]]))
    torch.testing.assert_close(found, torch.stack(expected, 1))
    torch.testing.assert_close(Policy(MODEL, critic=values)(rows).values, found)


def test_it_starts_at_zero_and_the_target_has_no_gradient() -> None:
    fresh = ActionValues(MODEL, 0.1)
    found = fresh(collate(SEQUENCES))
    assert not found[[0, 1, 3]].any() and torch.allclose(
        found[2], -torch.log(torch.tensor(len(fresh.action.bias) * 1.0)).double()
    )
    values = values_of()
    values(collate(SEQUENCES))[3].sum().backward()
    assert not any(parameter.grad is not None and parameter.grad.any() for parameter in values.parameters())


def test_the_target_follows() -> None:
    values = values_of(rate=0.25)
    before, online = values.target_weight.clone(), values.action.weight.detach().clone()
    values.follow()
    torch.testing.assert_close(values.target_weight, 0.75 * before + 0.25 * online)
    assert "target_weight" in values.state_dict() and "target_weight" not in dict(values.named_parameters())


def test_written_and_read(tmp_path: Path) -> None:
    values = values_of()
    save_values(values, tmp_path)
    again = load_values(MODEL, tmp_path)
    rows = collate(SEQUENCES)
    assert torch.equal(again(rows), values(rows))
    assert not any(parameter.requires_grad for parameter in again.parameters())
