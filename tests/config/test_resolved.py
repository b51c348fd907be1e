"""RUN/recipe.yaml: every value with its origin, and the same recipe when it is loaded again."""

from pathlib import Path

import yaml

from posttrain.config import differences, load_recipe, write_resolved

TRICKY = ["yes", "1e-5", "0x1f", "a: b # c", "", "\u00e9\U0001f600\n\ttab", "{x}", "~", "Null", "1:30", "'q\"", "-"]


def test_the_resolved_recipe_is_the_same_recipe(folder):
    loaded = load_recipe("recipe.yaml", ["training.steps=20", "training.betas=[0.5, 0.6]"])
    write_resolved(loaded, Path("resolved.yaml"))
    again = load_recipe("resolved.yaml")
    assert again.recipe == loaded.recipe
    assert differences(loaded.recipe, again.recipe) == []
    write_resolved(again, Path("twice.yaml"))
    assert load_recipe("twice.yaml").recipe == loaded.recipe


def test_every_value_has_its_origin(folder):
    write_resolved(load_recipe("recipe.yaml", ["training.steps=20"]), Path("resolved.yaml"))
    lines = Path("resolved.yaml").read_text().splitlines()
    assert "  steps: 20  # command line" in lines
    assert "  learning_rate: 1.0e-05  # recipe.yaml:14" in lines
    assert "  betas: [0.9, 0.999]  # default" in lines
    assert "  - name: exact_match  # recipe.yaml:8" in lines
    values = [line for line in lines[1:] if not line.endswith(":")]
    assert all("  # " in line for line in values)


def test_defaults_that_nothing_reads_are_left_out(folder):
    text = "model: owner/name\nalgorithm: sft\ndemonstrations: rows.jsonl\n"
    (folder / "recipe.yaml").write_text(text)
    loaded = load_recipe("recipe.yaml")
    write_resolved(loaded, Path("resolved.yaml"))
    resolved = yaml.safe_load(Path("resolved.yaml").read_text())
    assert not {"rollout", "rewards", "prompts", "environment"} & resolved.keys()
    assert load_recipe("resolved.yaml").recipe == loaded.recipe


def test_text_survives_every_yaml_reader(folder):
    columns = {value: value for value in TRICKY}
    overrides = [f"demonstrations.0.system={yaml.safe_dump(text, default_style=chr(34))}" for text in TRICKY]
    for override, text in zip(overrides, TRICKY, strict=True):
        loaded = load_recipe("recipe.yaml", [override])
        assert loaded.recipe.demonstrations[0].system == text
        renamed = loaded.recipe.demonstrations[0].model_copy(update={"columns": columns})
        assert renamed.columns == columns
        write_resolved(loaded, Path("resolved.yaml"))
        assert load_recipe("resolved.yaml").recipe == loaded.recipe
        assert yaml.safe_load(Path("resolved.yaml").read_text())["demonstrations"][0]["system"] == text


def test_settings_with_structure_survive(folder):
    (folder / "algorithms").mkdir()
    (folder / "algorithms" / "built.py").write_text(
        "from typing import Any\nfrom posttrain.algorithms.sft import sft\n"
        "def built(*, terms: list[dict[str, Any]], table: list[list[int]] = [[1], []], big: float = 1e300):\n"
        "    return sft()\n"
    )
    text = "model: owner/name\ndemonstrations: rows.jsonl\nalgorithm:\n  name: built\n  terms:\n"
    text += "    - {source: demonstrations, mask: {clip: {low: 0.1}}, empty: {}, none: []}\n    - a: 1\n"
    (folder / "recipe.yaml").write_text(text)
    loaded = load_recipe("recipe.yaml")
    write_resolved(loaded, Path("resolved.yaml"))
    assert load_recipe("resolved.yaml").recipe == loaded.recipe


def test_differences_name_both_values(folder):
    before = load_recipe("recipe.yaml").recipe
    overrides = ["training.steps=200", "evaluation=null", "rewards=exact_match", "training.betas=[0.5, 0.6]"]
    found = differences(before, load_recipe("recipe.yaml", overrides).recipe)
    assert "training.steps: 10 -> 200" in found
    assert "training.betas: [0.9, 0.999] -> [0.5, 0.6]" in found
    assert "rewards.1.name: 'shortness' -> (not set)" in found
    assert "evaluation.name: 'held_out' -> (not set)" in found
    assert "evaluation: (not set) -> null" in found
    assert len(found) == 16


def test_a_default_equals_itself_in_a_recipe(folder):
    (folder / "algorithms").mkdir()
    (folder / "algorithms" / "paired.py").write_text(
        "from collections.abc import Sequence\nfrom posttrain.algorithms.sft import sft\n"
        "def paired(*, words: Sequence[str] = ('a', 'b'), betas: tuple[float, ...] = (0.5, 0.6)):\n    return sft()\n"
    )
    text = "model: owner/name\nalgorithm: paired\ndemonstrations: rows.jsonl\n"
    (folder / "recipe.yaml").write_text(text)
    loaded = load_recipe("recipe.yaml")
    write_resolved(loaded, Path("resolved.yaml"))
    assert load_recipe("resolved.yaml").recipe == loaded.recipe
