"""What every algorithm of the catalogue keeps."""

from __future__ import annotations

import inspect
import math
import re
from typing import Any

import pytest
import torch

from posttrain import catalog
from posttrain.algorithms import load
from posttrain.errors import RecipeError, UnknownNameError
from posttrain.estimator import Algorithm
from posttrain.estimator.objective import as_dict, as_latex, as_text
from tests.algorithms.names import EACH

LOGPROBS = ("old_logprobs", "behavior_logprobs", "reference_logprobs")


def test_the_catalogue_holds_the_algorithms() -> None:
    assert {"sft", "reinforce", "grpo", "hpt"} <= {member.name for member in catalog.members("algorithms")}


@EACH
def test_function(name: str) -> None:
    function = catalog.find("algorithms", name)
    assert isinstance(load(name), Algorithm)
    assert load(name).name == name
    for parameter in inspect.signature(function).parameters.values():
        assert parameter.kind is parameter.KEYWORD_ONLY
        assert parameter.default is not parameter.empty
        assert parameter.annotation is not parameter.empty
    text = inspect.getdoc(function) or ""
    assert re.search(r"arXiv \d{4}\.\d{5}|Williams", text)
    assert re.search(r"\b(eq|sec|table)\. \d|\btable \d", text)


@EACH
def test_wrong_settings(name: str) -> None:
    with pytest.raises(RecipeError, match="clip_hihg"):
        load(name, clip_hihg=1)
    with pytest.raises(UnknownNameError):
        load(name + "x")


@EACH
def test_explained(name: str) -> None:
    algorithm = load(name)
    for term in algorithm.terms:
        assert term.name in as_text(algorithm)
        for part in term.describe().values():
            assert part.formula
            fields = {"memory", "values", "old_values", "targets", "hidden", "divergence", *LOGPROBS}
            assert part.needs <= {"rewards", "groups", "reference_rollouts", *fields}
    assert as_dict(algorithm)["algorithm"] == name
    assert as_latex(algorithm).count("&=") == len(algorithm.terms)


@EACH
@pytest.mark.parametrize("seed", range(3))
def test_tokens_of_other_sources_have_no_gradient(name: str, seed: int, world_for: Any, gradient: Any) -> None:
    algorithm = load(name)
    here = world_for(algorithm, seed, ungraded=0.1)
    batch, leaf = here.leaf_batch()
    result = algorithm(batch)
    found = gradient(result.loss, leaf).abs().sum(0)
    mine = torch.stack([batch.is_from(term.source) for term in algorithm.terms]).any(0)
    assert found[batch.broadcast(mine)].any()
    assert not found[~batch.broadcast(mine)].any()
    assert all(math.isfinite(value) for value in result.metrics.values())


@EACH
def test_what_other_sources_hold_does_not_matter(name: str, world_for: Any, gradient: Any) -> None:
    algorithm = load(name)
    here = world_for(algorithm, 1)
    batch, leaf = here.leaf_batch()
    others = ~torch.stack([batch.is_from(term.source) for term in algorithm.terms]).any(0)
    spoiled = {
        field: torch.where(batch.broadcast(others), torch.full_like(leaf[0], torch.nan), getattr(batch, field))
        for field in (*LOGPROBS, "divergence", "values", "old_values", "hidden")
    }
    ours, expected = (gradient(algorithm(b).loss, leaf) for b in (batch.replace(**spoiled), batch))
    torch.testing.assert_close(ours, expected, rtol=0, atol=0)
