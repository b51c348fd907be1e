"""Every algorithm at the edges: far ratios, short completions, groups that say nothing, half-precision logits."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from posttrain.algorithms import load
from posttrain.estimator import Source, reduce
from posttrain.models.head import token_logprobs
from tests.algorithms.names import EACH


def finite(algorithm: Any, world: Any, gradient: Any, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """The gradient of the batch in `dtype`; all of it, and every metric, is a number."""
    batch = world.batch(torch.cat(world.logprobs()).to(dtype))
    result = algorithm(batch)
    found: torch.Tensor = gradient(result.loss, world.theta)
    assert torch.isfinite(result.loss)
    assert torch.isfinite(found).all()
    assert all(math.isfinite(value) for value in result.metrics.values())
    return found


@EACH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("log_ratio", [-20.0, 20.0])
@pytest.mark.parametrize("far", ["old", "reference", "both"])
def test_finite_at_extreme_ratios(
    name: str, log_ratio: float, far: str, dtype: torch.dtype, world_for: Any, gradient: Any
) -> None:
    algorithm = load(name)
    here = world_for(algorithm, 3, num_groups=3)
    moved = {"old": ["old"], "reference": ["reference"], "both": ["old", "reference"]}[far]
    rows = [replace(r, **{field: [x - log_ratio for x in getattr(r, field)] for field in moved}) for r in here.rows]
    finite(algorithm, replace(here, rows=rows), gradient, dtype)


@EACH
@pytest.mark.parametrize("lengths", [(1, 1), (0, 2), (0, 0)], ids=["one token", "some empty", "all empty"])
def test_short_completions(name: str, lengths: tuple[int, int], world_for: Any, gradient: Any) -> None:
    algorithm = load(name)
    found = finite(algorithm, world_for(algorithm, 2, lengths=lengths), gradient)
    assert lengths[1] > 0 or not found.any()


@EACH
@pytest.mark.parametrize("kind", ["group of one", "equal rewards", "all ungraded", "one prompt"])
def test_groups_that_say_nothing(name: str, kind: str, world_for: Any, gradient: Any) -> None:
    algorithm = load(name)
    shape = {"group of one": {"group_size": 1}, "all ungraded": {"ungraded": 1.1}, "one prompt": {"num_groups": 1}}
    here = world_for(algorithm, 4, **shape.get(kind, {}))
    if kind == "equal rewards":
        shown = {Source.ROLLOUTS, Source.DEMONSTRATIONS}
        rows = [replace(r, reward=0.3) if r.source in shown and r.reward is not None else r for r in here.rows]
        here = replace(here, rows=rows)
    finite(algorithm, here, gradient)


@EACH
def test_the_gradient_of_a_batch_of_nothing_is_zero(name: str, world_for: Any, gradient: Any) -> None:
    """A rank whose share of the step is empty: no rows, and still a loss to differentiate."""
    algorithm = load(name)
    here = world_for(algorithm, 5)
    prepared = algorithm.prepare(here.batch())
    counts = algorithm.counts(prepared)
    totals, _ = algorithm.totals(prepared.take(torch.tensor([], dtype=torch.long)))
    assert not gradient(reduce(totals, counts), here.theta).any()


@EACH
def test_half_precision_logits(name: str, world_for: Any, gradient: Any) -> None:
    """bf16 hidden states and weights, log-softmax in fp32: the gradient is fp32's to bf16's rounding of the logits."""
    algorithm = load(name)
    here = world_for(algorithm, 6, drift=0.1)
    contexts = torch.tensor([context for row in here.rows for context in row.contexts])
    ids = torch.tensor([token for row in here.rows for token in row.tokens])
    found = []
    for dtype in (torch.bfloat16, torch.float32):
        hidden = torch.eye(6)[contexts].to(dtype).requires_grad_()
        weight = here.theta.detach().T.bfloat16().to(dtype).requires_grad_()
        scored = token_logprobs(hidden, weight, None, ids, torch.ones(len(ids)))
        assert scored.logprobs.dtype == torch.float32
        batch = here.batch(scored.logprobs).replace(entropy=scored.entropy)
        found.append(gradient(algorithm(batch).loss, weight).float())
    assert torch.isfinite(found[0]).all()
    assert (found[0] - found[1]).abs().max() <= 0.02 * found[1].abs().max() + 1e-6
