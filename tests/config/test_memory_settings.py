"""Settings that save memory: what cannot work with them, and where nothing would read them."""

import importlib.util

import pytest

from posttrain.config import load_recipe

GRPO = "model: owner/name\nalgorithm: grpo\nprompts: rows.jsonl\nrewards: exact_match\n"
PPO = GRPO.replace("grpo", "ppo")
SFT = "model: owner/name\nalgorithm: sft\ndemonstrations: rows.jsonl\n"
NF4 = "model.quantization=nf4"
SCRATCH = (
    "model: {config: {model_type: qwen3}, quantization: nf4}\ntokenizer: characters\nlora: {}\nalgorithm: sft\n"
    "demonstrations: rows.jsonl\n"
)


@pytest.fixture
def installed(monkeypatch):
    """Sets whether bitsandbytes is found."""
    found = importlib.util.find_spec

    def choose(present):
        def find(name, *rest):
            return (found("torch") if present else None) if name == "bitsandbytes" else found(name, *rest)

        monkeypatch.setattr(importlib.util, "find_spec", find)

    choose(True)
    return choose


@pytest.mark.parametrize(
    ("recipe", "overrides", "expected"),
    [
        (SFT, [NF4], "model.quantization: 'nf4' is not allowed: quantised weights cannot be trained; allowed: with a"),
        (SFT, [NF4, "lora.dora=true"], "model.quantization: 'nf4' is not allowed: lora.dora is on"),
        (SCRATCH, [], "model.quantization: 'nf4' is not allowed: model.config makes random weights"),
        (PPO, [NF4, "lora.rank=4"], "model.quantization: 'nf4' is not allowed: the critic starts as a copy of"),
        (SFT, ["model.quantization=nf5"], "model.quantization: 'nf5' is not allowed"),
        (SFT, ["training.optimizer=lion"], "training.optimizer: 'lion' is not allowed"),
        (
            SFT,
            ["reference.offload=true"],
            "reference: set, but nothing would read it: algorithm 'sft' measures nothing",
        ),
        (GRPO, ["reference.offload=true", "lora.rank=4"], "reference: set, but nothing would read it: with lora the"),
        (
            SFT,
            ["training.optimizer=adafactor", "training.betas=[0.5, 0.6]"],
            "training.betas: set, but nothing would read it: training.optimizer is adafactor",
        ),
    ],
)
def test_what_cannot_work_or_is_not_read_is_said(message, installed, recipe, overrides, expected):
    found = message(recipe, overrides)
    assert expected in found
    assert len(found.splitlines()) == 1, found


@pytest.mark.parametrize(
    ("override", "field"),
    [("training.optimizer=adamw_8bit", "training.optimizer"), ("training.optimizer=paged_adamw_8bit", "training")],
)
def test_a_package_that_is_missing(message, installed, override, field):
    installed(False)
    found = message(SFT, [override])
    assert f": {field}" in found
    assert "needs the package 'bitsandbytes', which is not installed: pip install" in found


def test_what_works(folder, installed):
    (folder / "recipe.yaml").write_text(GRPO)
    overrides = [NF4, "lora.rank=4", "training.optimizer=paged_adamw_8bit", "model.activation_offload=true"]
    assert load_recipe("recipe.yaml", overrides).recipe.model.quantization == "nf4"
    assert load_recipe("recipe.yaml", ["reference.offload=true"]).recipe.reference.offload
