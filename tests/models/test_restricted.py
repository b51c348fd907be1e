"""Where a token was one of a few, its log-probability and entropy are those of the masked and renormalised softmax."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from posttrain.models.divergence import Scores
from posttrain.models.head import TokenLogprobs
from posttrain.models.logits import LogitShape
from posttrain.models.restricted import restricted_logprobs
from tests.models.test_head import SHAPES, gradients, inputs

ALLOWED = [(3, 7, 11), (), (5,), (0, 22), (), tuple(range(23))]


def padded(rows: list[tuple[int, ...]]) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([[*row, *[-1] * (width - len(row))] for row in rows])


def by_hand(leaves: tuple[Tensor, Tensor, Tensor], ids: Tensor, temperatures: Tensor, shape: LogitShape):
    """A row at a time, from the definition."""
    hidden, weight, bias = leaves
    logprobs, entropies = [], []
    for row, allowed in enumerate(ALLOWED):
        logits = (weight @ hidden[row] + bias) * shape.scale
        if shape.softcap is not None:
            logits = shape.softcap * torch.tanh(logits / shape.softcap)
        kept = list(allowed or range(len(weight)))
        chances = torch.softmax(logits[kept] / temperatures[row], -1)
        logprobs.append(chances[kept.index(int(ids[row]))].log())
        entropies.append(-(chances * chances.log()).sum())
    return TokenLogprobs(torch.stack(logprobs), torch.stack(entropies))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("chunk_bytes", [1, 1 << 20])
def test_values_and_gradients_are_those_of_the_masked_softmax(shape: LogitShape, chunk_bytes: int) -> None:
    hidden, weight, bias, ids, temperatures = inputs(len(ALLOWED))
    ids = torch.tensor([row[-1] if row else int(own) for row, own in zip(ALLOWED, ids, strict=True)])
    leaves = [hidden, weight, bias]
    result = restricted_logprobs(
        Scores(hidden, weight, bias, shape), ids, temperatures, padded(ALLOWED), chunk_bytes=chunk_bytes
    )
    expected = by_hand((hidden, weight, bias), ids, temperatures, shape)
    torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)
    assert result.logprobs[2] == 0 and result.entropy[2] == 0, "there was nothing to choose"
    for ours, theirs in zip(gradients(result, leaves), gradients(expected, leaves), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("rows", [[(1, 2)], [()]])
def test_all_or_none_may_be_restricted(rows: list[tuple[int, ...]]) -> None:
    hidden, weight, _, _, temperatures = inputs(1)
    found = restricted_logprobs(
        Scores(hidden, weight), torch.tensor([2]), temperatures, padded(rows) if rows[0] else torch.tensor([[-1]])
    )
    kept = [1, 2] if rows[0] else list(range(len(weight)))
    chances = torch.softmax((weight @ hidden[0])[kept] / temperatures[0], -1)
    torch.testing.assert_close(found.logprobs[0], chances[kept.index(2)].log())
