"""Names become objects: plug-ins, built-in parts, and what goes wrong."""

import multiprocessing
import os
import subprocess
import sys

import pytest

from posttrain import catalog
from posttrain.catalog.paths import PACKAGE
from posttrain.errors import MissingDependencyError, RecipeError, UnknownNameError, UserError


@pytest.fixture
def plugins(tmp_path, monkeypatch):
    """Writes plug-in files: plugins("rewards/x.py", source)."""
    monkeypatch.setenv("POSTTRAIN_PATH", str(tmp_path))

    def write(name, source):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
        return path

    return write


def output_of(code):
    """What a fresh interpreter prints."""
    environment = os.environ | {"PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True, env=environment)
    return done.stdout


def test_built_in_algorithms_are_found_and_helpers_are_not():
    names = {member.name for member in catalog.members("algorithms")}
    assert {"sft", "reinforce", "grpo", "hpt"} <= names
    assert "__init__" not in names
    summary = {member.name: member.summary for member in catalog.members("algorithms")}["grpo"]
    assert summary == "GRPO: clipped policy gradient with the group as its baseline."
    assert catalog.find("algorithms", "grpo").__module__ == "posttrain.algorithms.grpo"
    assert catalog.build("algorithms", "hpt", {"gate": 2}).name == "hpt"


def test_plugin_is_an_ordinary_module_that_a_spawned_process_unpickles(plugins):
    path = plugins(
        "rewards/echo_length.py", '"""Length. And more."""\ndef echo_length(completion):\n    return len(completion)\n'
    )
    member = next(m for m in catalog.members("rewards") if m.name == "echo_length")
    assert (member.summary, member.path) == ("Length.", path)
    reward = catalog.find("rewards", "echo_length")
    assert reward.__module__ == "posttrain.catalog.rewards.echo_length"
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(reward, ("four",)) == 4


def test_plugins_win_over_bundled_and_built_in_parts(plugins):
    plugins("algorithms/sft.py", "def sft(*, mine: int = 1):\n    return mine\n")
    assert catalog.build("algorithms", "sft", {"mine": 3}) == 3


def test_several_folders_share_one_kind(plugins, tmp_path, monkeypatch):
    plugins("a/rewards/first_part.py", "def first_part(completion): return 1.0\n")
    plugins("b/rewards/second_part.py", "def second_part(completion): return 0.5\n")
    monkeypatch.setenv("POSTTRAIN_PATH", os.pathsep.join([str(tmp_path / "a"), str(tmp_path / "b")]))
    assert catalog.find("rewards", "first_part")("") == 1.0
    assert catalog.find("rewards", "second_part")("") == 0.5


def test_a_namesake_of_another_search_path_is_not_mistaken_for_the_one_asked_for(plugins, tmp_path, monkeypatch):
    for folder, value in (("a", 1), ("b", 2)):
        plugins(f"{folder}/rewards/twin.py", f"def twin(completion): return {value}\n")
    for folder, value in (("a", 1), ("b", 2), ("a", 1)):
        monkeypatch.setenv("POSTTRAIN_PATH", str(tmp_path / folder))
        assert catalog.find("rewards", "twin")("") == value


def test_a_plugin_folder_cannot_shadow_the_catalogue_itself(plugins, tmp_path):
    for name in ("lookup", "settings", "members"):
        plugins(f"{name}.py", "raise RuntimeError\n")
    plugins("rewards/plain.py", "def plain(completion): return 1.0\n")
    code = "from posttrain import catalog; print(catalog.check('rewards', 'plain', {}))"
    assert output_of(code) == "{}\n"


@pytest.mark.parametrize(
    ("kind", "name", "expected"),
    [
        ("algorithms", "grpoo", "did you mean 'grpo'?"),
        ("algorithms", "../errors", "is not a known algorithm"),
        ("rewards", "honst", "did you mean 'honest'?"),
        ("reward", "honest", "did you mean 'rewards'?"),
        ("recipes", "tiny_stf", "did you mean 'tiny_sft'?"),
    ],
)
def test_unknown_names_say_what_is_near(plugins, kind, name, expected):
    plugins("rewards/honest.py", "def honest(completion): return 1.0\n")
    plugins("recipes/tiny_sft.yaml", "model: x\n")
    with pytest.raises(UnknownNameError) as error:
        catalog.find(kind, name)
    assert expected in str(error.value)


def test_missing_package_is_its_own_error_with_the_command(plugins):
    plugins("rewards/hungry.py", "import no_such_package_here\ndef hungry(completion): return 1.0\n")
    plugins("environments/lazy.py", "def lazy():\n    import no_such_package_here.part\n")
    with pytest.raises(MissingDependencyError, match=r"reward 'hungry' .*pip install no_such_package_here"):
        catalog.find("rewards", "hungry")
    with pytest.raises(MissingDependencyError, match="environment 'lazy' needs the package 'no_such_package_here'"):
        catalog.build("environments", "lazy", {})


def test_a_module_missing_from_an_installed_package_asks_for_another_version(plugins):
    plugins("rewards/modern.py", "import pytest.no_such_module\ndef modern(completion): return 1.0\n")
    with pytest.raises(MissingDependencyError, match=r"another version is needed"):
        catalog.find("rewards", "modern")


def test_an_error_inside_posttrain_is_not_a_missing_package(plugins):
    plugins("rewards/wrong.py", "import posttrain.no_such_module\ndef wrong(completion): return 1.0\n")
    with pytest.raises(ModuleNotFoundError) as error:
        catalog.find("rewards", "wrong")
    assert not isinstance(error.value, MissingDependencyError)


def test_a_file_that_does_not_define_its_name(plugins):
    plugins("rewards/misnamed.py", "def other(completion): return 1.0\n")
    with pytest.raises(UserError, match=r"misnamed\.py: .*'misnamed'; it defines: other"):
        catalog.find("rewards", "misnamed")
    assert "misnamed" not in [member.name for member in catalog.members("rewards")]


def test_a_plugin_that_is_not_python(plugins):
    plugins("rewards/broken.py", "def broken(:\n")
    with pytest.raises(UserError, match=r"broken\.py:1: not valid Python"):
        catalog.find("rewards", "broken")


@pytest.mark.parametrize(
    ("folder", "expected"), [("nowhere", "no folder"), ("rewards", "a folder without any of them")]
)
def test_a_useless_plugin_path_is_a_mistake(plugins, tmp_path, monkeypatch, folder, expected):
    plugins("rewards/honest.py", "def honest(completion): return 1.0\n")
    monkeypatch.setenv("POSTTRAIN_PATH", str(tmp_path / folder))
    with pytest.raises(UserError, match=expected):
        catalog.members("rewards")


def test_a_package_file_among_plugins_is_a_mistake(plugins):
    plugins("rewards/__init__.py", "")
    with pytest.raises(UserError, match="remove this file"):
        catalog.find("rewards", "anything")


def test_recipe_path_takes_a_file_or_a_stem(plugins, tmp_path, monkeypatch):
    path = plugins("recipes/tiny_v0.5.yaml", "# Tiny. Cheap.\nmodel: x\n")
    assert catalog.recipe_path("tiny_v0.5") == catalog.recipe_path(path) == path
    assert catalog.recipe_path("tiny_v0.5.yaml") == path
    assert [m.summary for m in catalog.members("recipes") if m.name == "tiny_v0.5"] == ["Tiny. Cheap."]
    with pytest.raises(RecipeError, match=r"no such file; did you mean 'tiny_v0\.5\.yaml'"):
        catalog.recipe_path(tmp_path / "recipes" / "tiny_v0.6.yaml")
    with pytest.raises(RecipeError, match="a folder"):
        catalog.recipe_path(tmp_path / "recipes")


@pytest.mark.parametrize(
    ("header", "summary"),
    [
        ("# Dr. GRPO on sums.\n#   posttrain train x\n", "Dr. GRPO on sums."),
        ("# One. Where all\n# fail, two.\n", "One."),
        ("# A sentence over two\n# lines. Another.\n", "A sentence over two lines."),
        ("# A title\n#   posttrain train x\n# Cost: none.\n", "A title"),
        ("model: x\n", ""),
    ],
)
def test_a_recipes_summary_is_whole_sentences(plugins, header, summary):
    plugins("recipes/mine.yaml", header)
    assert [m.summary for m in catalog.members("recipes") if m.name == "mine"] == [summary]


def test_recipes_in_folders_are_named_by_their_way_down(plugins, tmp_path, monkeypatch):
    path = plugins("recipes/small/sums.yaml", "# Sums.\nmodel: x\n")
    plugins("recipes/launch/two_cpus.yaml", "# accelerate's\nnum_processes: 2\n")
    names = {member.name for member in catalog.members("recipes")}
    assert {"small/sums", "tiny/grpo"} <= names
    assert not any(name.startswith("launch") for name in names)
    for given in ("small/sums", "small/sums.yaml", path):
        assert catalog.recipe_path(given) == path
    assert catalog.recipe_name(path) == "small/sums"
    assert catalog.recipe_name(tmp_path / "elsewhere.yaml") == "elsewhere"
    with pytest.raises(UnknownNameError, match="did you mean 'small/sums'"):
        catalog.recipe_path("small/sum")
    for outside in ("small/../small/sums", "launch/two_cpus"):
        with pytest.raises(UnknownNameError):
            catalog.recipe_path(outside)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small").mkdir()
    assert catalog.recipe_path("small/sums") == path, "a folder here does not hide it"
    with pytest.raises(RecipeError, match="a folder"):
        catalog.recipe_path("small")


def test_no_torch_is_imported():
    code = (
        "import sys, posttrain.config, posttrain.catalog as c; c.members('algorithms'); print('torch' in sys.modules)"
    )
    assert output_of(code) == "False\n"


def test_bundled_parts_have_no_setting_that_the_recipe_already_uses():
    for member in catalog.members("rewards"):
        checked, _ = catalog.validate("rewards", member.name, {})
        assert not {"name", "weight", "outcome"} & checked.keys()
    for member in catalog.members("eval"):
        checked, _ = catalog.validate("eval", member.name, {})
        assert not {"name", "every_steps", "limit", "samples"} & checked.keys()
