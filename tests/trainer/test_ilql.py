"""A run of ILQL: it goes on after a stop as if nothing had been, and its values lead the sampler of an evaluation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from posttrain.config import load_recipe
from posttrain.errors import RecipeError
from posttrain.evaluation.model import NamedModel, open_model
from posttrain.models.action_values import FILE
from posttrain.rollout.engine import Request, Sampling
from posttrain.trainer import train


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """One of three steps, and one of two and one."""
    folder = tmp_path_factory.mktemp("ilql")
    settings = ["algorithm.target_rate=0.5", "training.learning_rate=1e-2", "critic.learning_rate=1e-1"]
    for name, steps, resume in (("whole", 3, False), ("parts", 2, False), ("parts", 3, True)):
        loaded = load_recipe("tiny/ilql", [*settings, f"training.steps={steps}"])
        assert train(loaded, folder / name, resume=resume) is None
    return folder / "whole" / "final", folder / "parts" / "final"


def test_it_goes_on_from_a_checkpoint_with_its_target(runs: tuple[Path, Path]) -> None:
    whole, parts = (load_file(run / FILE) for run in runs)
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert whole["target_weight"].any() and not torch.equal(whole["target_weight"], whole["action.weight"])


def test_values_lead_the_sampler(runs: tuple[Path, Path]) -> None:
    model = NamedModel(str(runs[0]), value_weight=200.0)
    model.check()
    led, plain = open_model(model), open_model(NamedModel(str(runs[0])))
    assert model.identity() != NamedModel(str(runs[0])).identity() and "weight 200" in model.title
    requests = [Request((3, 40, 41), seed) for seed in range(8)]
    said = [one.engine.generate(requests, Sampling(6, one.stop_ids)) for one in (led, plain)]
    assert [one.token_ids for one in said[0]] != [one.token_ids for one in said[1]]


def test_without_values_there_is_nothing_to_be_led_by(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"--value-weight 2: needs --engine transformers and a model with action_val"):
        NamedModel(str(tmp_path), value_weight=2.0).check()
