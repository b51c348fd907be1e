"""The README's table of algorithms is the one that the code gives."""

import json
from pathlib import Path

import pytest

from posttrain import catalog
from posttrain.algorithms import load, overview
from posttrain.algorithms.overview import FAMILIES, family, markdown, rows
from posttrain.errors import UnknownNameError
from posttrain.estimator.objective import as_text

README = Path(__file__).parents[2] / "README.md"


def test_the_readme_holds_the_table() -> None:
    assert markdown() in README.read_text(), (
        "python -c 'from posttrain.algorithms.overview import *; print(markdown())'"
    )


def test_every_algorithm_has_its_row_and_its_paper() -> None:
    found = rows()
    missing = {member.name for member in catalog.members("algorithms")} - {row.name for row in found}
    assert missing <= {"terms"}, "only algorithms that need settings have no row"
    assert all(row.paper for row in found)


# One of each family; where an algorithm belongs follows from what it reads and asks for.
EXAMPLES = {
    "bradley_terry": "reward model",
    "process_reward": "reward model",
    "sft": "imitation",
    "raft": "imitation",
    "return_weighted": "imitation",
    "grpo": "policy gradient",
    "ppo": "policy gradient",
    "ilql": "offline RL",
    "oreal": "policy gradient",
    "hpt": "hybrid",
    "luffy": "hybrid",
    "dpo": "preferences",
    "kto": "preferences",
    "online_dpo": "preferences, online",
    "p3o": "preferences, online",
    "f_dpg": "target distribution",
    "bond": "target distribution",
    "distill": "distillation",
    "dr_po": "resets",
}


def test_the_family_follows_from_the_structure() -> None:
    here = {member.name for member in catalog.members("algorithms")}
    expected = {name: kind for name, kind in EXAMPLES.items() if name in here}
    assert {name: family(load(name)) for name in expected} == expected


def test_every_family_has_a_member() -> None:
    found = {row.family for row in rows()}
    assert found <= FAMILIES.keys()
    assert FAMILIES.keys() - found <= {"resets"}


def test_a_row_says_what_data_and_which_models_it_takes() -> None:
    by_name = {row.name: row for row in rows()}
    assert by_name["grpo"].needs == "rewards, reference"
    assert by_name["ppo"].needs == "rewards, critic"
    assert by_name["distill"].needs == "teacher"
    assert (by_name["dpo"].data, by_name["dpo"].needs) == ("preferences", "reference")
    assert by_name["online_dpo"].data == "paired rollouts"


def test_explain_calls_the_data_what_the_table_calls_it() -> None:
    assert "over        paired rollouts" in as_text(load("online_dpo"))
    assert as_text(load("bond")).count("over        reference rollouts") == 2


def test_parity_is_a_table_of_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"algorithm": "grpo", "peer": "trl", "version": "1.16", "what": "loss dapo", "largest_difference": 2.1e-7}
    path = tmp_path / "parity.json"
    monkeypatch.setattr(overview, "PARITY", path)
    with pytest.raises(UnknownNameError, match="run scripts/parity"):
        overview.parity()
    path.write_text(json.dumps([row]))
    assert overview.parity() == [("grpo", "trl", "1.16", "loss dapo", "2.1e-07")]
