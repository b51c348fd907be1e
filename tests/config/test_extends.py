"""A recipe on top of another: what merges, what replaces, what goes, and where each value is written."""

from pathlib import Path

import pytest
import yaml

from posttrain.config import load_recipe, write_resolved
from posttrain.config.located import located
from posttrain.errors import RecipeError


@pytest.fixture
def child(folder):
    """Writes child.yaml, which extends recipe.yaml unless it says otherwise, and returns its path."""

    def write(text, name="child.yaml", base="recipe.yaml"):
        (folder / name).write_text(f"extends: {base}\n{text}" if base else text)
        return name

    return write


def test_mappings_merge_and_everything_else_replaces(child):
    recipe = load_recipe(child("training: {steps: 3, betas: [0.5, 0.6]}\nmodel: {config: {head_dim: 8}}\n")).recipe
    assert (recipe.training.steps, recipe.training.learning_rate) == (3, 1e-5)
    assert recipe.training.betas == (0.5, 0.6)
    assert recipe.model.config == {"model_type": "qwen3", "hidden_size": 64, "head_dim": 8}
    assert load_recipe(child("rewards: [exact_match]\n")).recipe.rewards[0].name == "exact_match"
    assert len(load_recipe(child("rewards: [exact_match]\n")).recipe.rewards) == 1
    assert load_recipe(child("")).recipe == load_recipe("recipe.yaml").recipe


def test_another_part_replaces_the_section_and_the_same_part_adds_to_it(child, folder):
    base = (folder / "recipe.yaml").read_text().replace("algorithm: hpt", "algorithm: {name: hpt, gate: 1, length: 9}")
    (folder / "recipe.yaml").write_text(base)
    for same in ("algorithm: {name: hpt, gate: 2}\n", "algorithm: {gate: 2}\n"):
        settings = load_recipe(child(same)).recipe.algorithm.settings
        assert (settings["gate"], settings["length"]) == (2, 9)
    other = load_recipe(child("algorithm: {name: luffy, gamma: 0.2}\n")).recipe.algorithm
    assert (other.name, other.settings["length"]) == ("luffy", None)
    assert load_recipe(child("algorithm: hpt\n")).recipe.algorithm.settings["gate"] == 0, "a short form is the whole"
    terms = "algorithm: {terms: [{source: rollouts, advantage: reward}]}\n"
    assert load_recipe(child(terms)).recipe.algorithm.name == "terms"
    assert load_recipe(child("evaluation: {every_steps: 9}\n")).recipe.evaluation.name == "held_out"


def test_null_takes_the_bases_value_away(child):
    recipe = load_recipe(
        child("evaluation: null\ntraining: {steps: null}\ntokenizer: null\nmodel: owner/name\n")
    ).recipe
    assert recipe.evaluation is None
    assert (recipe.training.steps, recipe.training.learning_rate) == (100, 1e-5)
    assert (recipe.model.path, recipe.model.config) == ("owner/name", None)
    text = "algorithm: sft\nrewards: null\nrollout: null\nenvironment: null\n"
    assert load_recipe(child(text)).recipe.rewards == []


def test_what_the_base_gives_and_nothing_reads_is_an_error_that_says_how_to_drop_it(child):
    with pytest.raises(RecipeError) as error:
        load_recipe(child("algorithm: sft\nrollout: null\nenvironment: null\n"))
    assert str(error.value).startswith("recipe.yaml:7: rewards: set, but nothing would read it")
    assert "write `rewards: null` in child.yaml to drop what it inherits" in str(error.value)


def test_one_setting_of_a_section_is_dropped_alone(child):
    with pytest.raises(RecipeError) as error:
        load_recipe(child("algorithm: sft\nrewards: null\nenvironment: null\n"))
    assert "write `rollout: {group_size: null}` in child.yaml" in str(error.value)


def test_every_value_has_the_file_and_line_where_it_is_written(child):
    child("training: {learning_rate: 2e-5}\nseed: 4\n", name="middle.yaml")
    loaded = load_recipe(child("\nseed: 5\n", base="middle.yaml"), ["training.max_grad_norm=2"])
    assert loaded.path == Path("child.yaml")
    assert loaded.provenance["seed"] == "child.yaml:3"
    assert loaded.provenance["training.learning_rate"] == "middle.yaml:2"
    assert loaded.provenance["training.steps"] == "recipe.yaml:13"
    assert loaded.provenance["training.max_grad_norm"] == "command line"
    assert loaded.provenance["training.schedule"] == "default"
    late = located(RecipeError("model.config.hidden_size: odd"), loaded)
    assert str(late) == "recipe.yaml:3: model.config.hidden_size: odd"
    write_resolved(loaded, Path("resolved.yaml"))
    lines = Path("resolved.yaml").read_text().splitlines()
    assert "  steps: 10  # recipe.yaml:13" in lines
    assert "extends" not in yaml.safe_load("\n".join(lines))
    assert load_recipe("resolved.yaml").recipe == loaded.recipe


def test_errors_name_the_file_that_holds_the_mistake(child, folder):
    base = folder / "recipe.yaml"
    base.write_text(base.read_text().replace("steps: 10", "stepps: 10"))
    with pytest.raises(RecipeError) as error:
        load_recipe(child("seed: -1\n"))
    heading, first, second = str(error.value).splitlines()
    assert heading == "2 mistakes in child.yaml"
    assert first.strip().startswith("child.yaml:2: seed: -1 is not allowed")
    assert second.strip().startswith("recipe.yaml:13: training.stepps: unknown key")


def test_a_base_by_name_and_from_the_folder_of_the_recipe(child, folder):
    (folder / "recipes" / "small").mkdir(parents=True)
    (folder / "recipe.yaml").rename(folder / "recipes" / "small" / "base.yaml")
    assert load_recipe(child("seed: 1\n", base="small/base")).recipe.seed == 1
    child("seed: 2\n", name="recipes/small/next.yaml", base="base.yaml")
    loaded = load_recipe("small/next")
    assert (loaded.recipe.seed, loaded.name) == (2, "small/next")
    assert load_recipe(child("", base="small/next")).recipe.seed == 2


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        ("nowhere", "child.yaml:1: extends: 'nowhere' is not a known recipe"),
        ("tiny/bass", "did you mean 'tiny/base'?"),
        ("./recipes.yaml", "child.yaml:1: extends: ./recipes.yaml: no such file; did you mean 'recipe.yaml'?"),
        ("[recipe.yaml]", "child.yaml:1: extends: ['recipe.yaml'] is not allowed; allowed: one recipe, by name"),
        ("null", "child.yaml:1: extends: null is not allowed"),
        ("child.yaml", "child.yaml:1: extends: a circle: child.yaml -> child.yaml"),
        ("middle.yaml", "middle.yaml:1: extends: a circle: child.yaml -> middle.yaml -> child.yaml"),
    ],
)
def test_a_base_that_cannot_be(child, base, expected):
    child("", name="middle.yaml", base="child.yaml")
    with pytest.raises(RecipeError) as error:
        load_recipe(child("seed: 1\n", base=base))
    assert expected in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_extends_belongs_into_a_file(child, message):
    assert "on the command line, name the recipe that is meant" in message(overrides=["extends=tiny/base"])
    assert "did you mean 'extends'?" in message("extend: tiny/base\nmodel: a/b\nalgorithm: sft\n")
