"""Loading: values, short forms, overrides, provenance."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import posttrain
from posttrain.config import load_recipe, parse_settings
from posttrain.config.schema import Recipe


def test_a_recipe_loads_with_its_short_forms(folder):
    loaded = load_recipe("recipe.yaml")
    recipe = loaded.recipe
    assert isinstance(recipe, Recipe)
    assert loaded.path == Path("recipe.yaml")
    assert recipe.tokenizer.path == "characters"
    assert recipe.algorithm.name == "hpt"
    assert [source.path for source in recipe.demonstrations] == ["rows.jsonl"]
    assert [(reward.name, reward.weight, reward.settings) for reward in recipe.rewards] == [
        ("exact_match", 1.0, {}),
        ("shortness", 0.5, {"limit": 20}),
    ]
    assert recipe.training.learning_rate == 1e-5
    assert recipe.evaluation is not None
    assert recipe.evaluation.settings == {"data": None}


def test_defaults_of_a_parts_signature_become_values(folder):
    loaded = load_recipe("recipe.yaml", ["algorithm.gate=2"])
    assert loaded.recipe.algorithm.settings["gate"] == 2
    assert loaded.recipe.algorithm.settings["length"] == 8192
    assert loaded.recipe.environment.settings == {"rounds": 1}
    assert loaded.provenance["algorithm.length"] == "default"


def test_provenance_of_every_value(folder):
    overrides = ["training.steps=20", "demonstrations.0.limit=10"]
    provenance = load_recipe("recipe.yaml", overrides).provenance
    assert provenance["training.steps"] == "command line"
    assert provenance["demonstrations.0.limit"] == "command line"
    assert provenance["demonstrations.0.path"] == "recipe.yaml:6"
    assert provenance["model.config.hidden_size"] == "recipe.yaml:3"
    assert provenance["rewards.0.name"] == "recipe.yaml:8"
    assert provenance["rewards.1.weight"] == "recipe.yaml:9"
    assert provenance["training.learning_rate"] == "recipe.yaml:14"
    assert provenance["training.betas"] == "default"


@pytest.mark.parametrize(
    ("override", "read", "expected"),
    [
        ("training.learning_rate=3e-4", lambda r: r.training.learning_rate, 3e-4),
        ("training.betas=[0.8, 0.9]", lambda r: r.training.betas, (0.8, 0.9)),
        ("training.mixed_precision=no", lambda r: r.training.mixed_precision, "no"),
        ("rewards=exact_match", lambda r: [x.name for x in r.rewards], ["exact_match"]),
        ("rewards.1.weight=2", lambda r: r.rewards[1].weight, 2.0),
        ("rewards.1={name: exact_match}", None, "exact_match"),
        ("model.config.hidden_size=32", lambda r: r.model.config, {"model_type": "qwen3", "hidden_size": 32}),
        ("evaluation=null", lambda r: r.evaluation, None),
        ("rollout=null", lambda r: r.rollout.group_size, 8),
        ("training.steps=null", lambda r: (r.training.steps, r.training.learning_rate), (100, 1e-5)),
        ("rewards.1.limit=null", lambda r: r.rewards[1].settings, {"limit": 10}),
        ("demonstrations={path: rows.jsonl, weight: 2}", lambda r: r.demonstrations[0].weight, 2.0),
    ],
)
def test_overrides(folder, message, override, read, expected):
    if read is None:
        assert f"'{expected}' is listed 2 times" in message(overrides=[override])
    else:
        assert read(load_recipe("recipe.yaml", [override]).recipe) == expected


def test_null_takes_whole_sections_away_before_others_are_set(folder):
    overrides = ["algorithm=sft", "rewards=null", "rollout.group_size=null", "environment=null", "evaluation=null"]
    recipe = load_recipe("recipe.yaml", overrides).recipe
    assert (recipe.rewards, recipe.environment.name, recipe.evaluation) == ([], "single_turn", None)
    (folder / "prompts.jsonl").write_text('{"prompt": "a", "answer": "b"}\n')
    overrides = ["algorithm=grpo", "demonstrations=null", "prompts=prompts.jsonl", "rollout=null", "rollout.updates=2"]
    recipe = load_recipe("recipe.yaml", overrides).recipe
    assert (recipe.demonstrations, recipe.rollout.group_size, recipe.rollout.updates) == ([], 8, 2)


def test_a_new_name_drops_the_old_settings_whatever_the_order(folder):
    overrides = ["algorithm.kl_weight=0", "algorithm=grpo"]
    (folder / "recipe.yaml").write_text((folder / "recipe.yaml").read_text().replace("hpt", "{name: hpt, gate: 1}"))
    algorithm = load_recipe("recipe.yaml", overrides).recipe.algorithm
    assert (algorithm.name, algorithm.settings["kl_weight"]) == ("grpo", 0.0)
    assert "gate" not in algorithm.settings


def test_settings_of_one_part_from_the_command_line():
    assert parse_settings(["gate=2", "std=true", "name=x"]) == {"gate": 2, "std": True, "name": "x"}


def test_a_recipe_is_found_by_name(folder):
    (folder / "recipes").mkdir()
    (folder / "recipe.yaml").rename(folder / "recipes" / "my_run.yaml")
    assert load_recipe("my_run").path == folder / "recipes" / "my_run.yaml"


def test_the_whole_check_takes_less_than_five_seconds(folder):
    code = (
        "import time; from posttrain.config import load_recipe as load; load('recipe.yaml'); print(time.process_time())"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(posttrain.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert float(done.stdout) < 5
