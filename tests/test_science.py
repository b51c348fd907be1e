"""The studies of scripts/science: their recipes load and are explained, held-out items stay out, verdicts are right."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import yaml

from posttrain.config import load_recipe
from posttrain.trainer.explain import explain

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
NAMES = [
    "hpt",
    "oreal",
    "osp",
    "p3o",
    "hypo",
    "dr_po",
    "j_bond",
    "distill",
    "ui_s1",
    "reward_models",
    "token_model",
    "text_world",
    "web",
    "negotiation",
    "hindsight",
]


@pytest.fixture(autouse=True)
def _studies(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("POSTTRAIN_PATH", str(SCRIPTS / "studies"))
    monkeypatch.syspath_prepend(str(SCRIPTS))
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "studies"]:
        del sys.modules[name]


def _study(name: str) -> Any:
    from studies.catalogue import STUDIES

    assert list(STUDIES) == NAMES
    return STUDIES[name]


def _placeholders(folder: Path) -> Any:
    """A context in which whatever would be made is an empty directory, or a file of one row."""
    from studies.context import Context

    class Placeholders(Context):
        def file(self, key: object, suffix: str, write: Callable[[Path], None]) -> str:
            path = folder / f"made.{suffix}"
            if suffix:
                path.write_text('{"prompt": "ab", "completion": "ba", "chosen": "ba", "rejected": "bb"}\n')
            else:
                (path / "final").mkdir(parents=True, exist_ok=True)
            return str(path)

    return Placeholders(folder, 0)


@pytest.mark.parametrize("name", NAMES)
def test_the_recipes_of_a_study_load_and_are_explained(name: str, tmp_path: Path) -> None:
    from studies.runner import recipes

    study, context = _study(name), _placeholders(tmp_path)
    for arm in study.arms:
        for tree in recipes(study, arm, context):
            tree.setdefault("model", {"path": str(tmp_path)})
            path = tmp_path / "recipe.yaml"
            path.write_text(yaml.safe_dump(tree))
            algorithm = load_recipe(path).recipe.algorithm.name
            assert f"algorithm   {algorithm}" in explain(str(path), [], "text"), arm.name


@pytest.mark.parametrize("name", NAMES)
def test_a_study_claims_something_of_its_arms_and_figures(name: str) -> None:
    study = _study(name)
    arms = {arm.name for arm in study.arms}
    assert study.claims
    assert "arXiv" in study.paper
    for claim in study.claims:
        assert {claim.arm, claim.other or claim.arm} <= arms
        assert claim.figure in study.figures


def test_held_out_prompts_are_never_trained_on_and_tuning_has_its_own() -> None:
    from studies.tasks import Reverse, Rows

    def prompts(split: str, seed: int) -> set[str]:
        return {str(row["prompt"]) for row in islice(Rows(Reverse(3, 4), split, 0).rows(seed), 300)}

    reported, tuned, trained = prompts("held_out", 0), prompts("held_out", 100), prompts("train", 0)
    assert not reported & tuned
    assert not trained & (reported | tuned | prompts("held_out", 1))
    assert trained != prompts("train", 1)


@pytest.mark.parametrize(
    ("values", "sign", "seen"),
    [
        ([0.1, 0.11, 0.12], 1, "holds"),
        ([0.1, 0.11, 0.12], -1, "does not hold"),
        ([0.1, -0.1, 0.05], 1, "not separable at this scale"),
        ([0.1], 1, "not separable at this scale"),
    ],
)
def test_a_claim_holds_where_the_interval_of_the_paired_difference_lies_on_its_side(
    values: list[float], sign: int, seen: str
) -> None:
    from dataclasses import replace

    from studies.study import Claim
    from studies.table import Results

    study = _study("hpt")
    claim = Claim("more", "greedy", "HPT", "SFT", sign=sign)
    found = [(arm, seed, {"greedy": 0.5 + value}) for seed, value in enumerate(values) for arm in ("HPT",)]
    found += [("SFT", seed, {"greedy": 0.5}) for seed in range(len(values))]
    results = Results(replace(study, claims=(claim,)), found)
    assert results.seen(claim) == seen
    assert f"| more | {results.claimed(claim).value:.1%}" in results.markdown()


def test_a_section_is_renewed_in_its_place(tmp_path: Path) -> None:
    from studies.table import write_section

    path, order = tmp_path / "science.md", ["One", "Two"]
    write_section(path, "Two", "## Two\n\nsecond", order)
    write_section(path, "One", "## One\n\nfirst", order)
    write_section(path, "Two", "## Two\n\nrenewed", order)
    text = path.read_text()
    assert text.startswith("# Science")
    assert text.index("first") < text.index("renewed")
    assert "second" not in text
