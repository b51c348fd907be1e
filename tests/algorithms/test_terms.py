"""Algorithms written in YAML: the same gradients as the named ones, new mixtures, and what a mistake says."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from posttrain.algorithms import load
from posttrain.config import load_recipe
from posttrain.errors import RecipeError
from posttrain.estimator import PolicyTerm, Source
from posttrain.estimator.assemble import ROLES, every_part, parts_of, role_of
from posttrain.estimator.masks import Clip, Product, Unmasked
from posttrain.estimator.objective import as_latex, as_text
from posttrain.trainer.explain import explain

GRPO = """
- {source: rollouts, term: policy, denominator: old, mask: {name: clip, high: 0.28}, advantage: group_relative,
   aggregation: sequence_mean}
- {source: rollouts, term: kl, advantage: {name: reference_kl, estimator: k3}, aggregation: sequence_mean, weight: 0.04}
"""
HPT = """
- source: rollouts
  term: policy
  denominator: old
  mask: {name: clip, low: 0.2, high: 0.2}
  advantage: {name: group_relative, std: false}
  likelihood: ratio
  aggregation: {name: fixed_length, length: 8192}
  weight: {name: solved_gate, gate: 0, above: true}
- source: demonstrations
  aggregation: sequence_mean
  weight: {name: solved_gate, gate: 0, above: false}
"""
DPO = """
- {source: preferences, advantage: {name: pair_preference, loss: sigmoid, beta: 0.1}, aggregation: pair_mean}
"""
LUFFY = """
- {source: rollouts, denominator: old, advantage: guided_group_relative, aggregation: joint}
- source: demonstrations
  denominator: one
  advantage: {name: guided_group_relative, reward: 1.0}
  likelihood: {name: shaped, gamma: 0.1}
  aggregation: {name: joint, aggregation: token_mean}
"""
RAFT = "- {source: rollouts, where: solved}"
DISTILL = """
- {source: rollouts, likelihood: {name: jensen_shannon, beta: 0.3}, aggregation: sequence_mean, weight: 0.4}
- {source: demonstrations, likelihood: {name: jensen_shannon, beta: 0.3}, aggregation: sequence_mean, weight: 0.6}
"""
BONUS = GRPO + "- {source: rollouts, term: entropy, likelihood: entropy, aggregation: sequence_mean, weight: 0.01}"


def written(text: str) -> list[dict[str, Any]]:
    terms: list[dict[str, Any]] = yaml.safe_load(text)
    return terms


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("name", "settings", "terms"),
    [
        ("grpo", {"clip_high": 0.28}, GRPO),
        ("grpo", {"clip_high": 0.28, "entropy_weight": 0.01}, BONUS),
        ("hpt", {}, HPT),
        ("dpo", {}, DPO),
        ("luffy", {}, LUFFY),
        ("raft", {}, RAFT),
        ("sft", {}, "- source: demonstrations"),
        ("distill", {"beta": 0.3, "on_policy": 0.4, "off_policy": 0.6}, DISTILL),
    ],
    ids=["grpo", "entropy bonus", "hpt", "dpo", "luffy", "raft", "sft", "distill"],
)
def test_identical_gradients(
    name: str, settings: dict[str, Any], terms: str, seed: int, world: Any, gradient: Any
) -> None:
    here = world(seed, sources=list(Source))
    algorithms = load("terms", terms=written(terms)), load(name, **settings)
    for made in (here.leaf_batch, lambda: (here.batch(), here.theta)):
        ours, expected = (
            gradient(algorithm(batch).loss, at) for algorithm, (batch, at) in ((one, made()) for one in algorithms)
        )
        assert expected.any()
        torch.testing.assert_close(ours, expected, rtol=0, atol=0)
    assert algorithms[0].needs == algorithms[1].needs


def test_a_new_mixture(world: Any, gradient: Any) -> None:
    here = world(1)
    algorithm = load(
        "terms",
        terms=[
            {
                "source": "rollouts",
                "denominator": "old",
                "mask": {"name": "product", "first": "unmasked", "second": {"name": "clip", "low": 0.1}},
                "advantage": {"name": "reward", "baseline": 0.5},
            },
            {"source": "demonstrations", "weight": 2},
        ],
    )
    first, second = algorithm.terms
    assert isinstance(first, PolicyTerm)
    assert first.mask == Product(Unmasked(), Clip(low=0.1))
    assert (first.name, second.name) == ("rollouts", "demonstrations")
    flat = torch.cat(here.logprobs()).detach().requires_grad_()
    found = gradient(algorithm(here.batch(flat)).loss, flat)
    shown = here.batch(flat).broadcast(here.batch(flat).is_from(Source.DEMONSTRATIONS))
    torch.testing.assert_close(found[shown], torch.full_like(found[shown], -2.0 / int(shown.sum())))
    assert found[~shown].any()


@pytest.mark.parametrize("part", every_part(), ids=lambda part: part.__name__)
def test_every_part(part: Any) -> None:
    default = part()
    assert default == part()
    assert default.formula
    recorded = {"old_logprobs", "behavior_logprobs", "reference_logprobs", "old_values"}
    known = {"rewards", "groups", "reference_rollouts", "values", "divergence", "memory", "targets", "hidden"}
    assert default.needs <= known | recorded
    assert part.__doc__
    with pytest.raises((FrozenInstanceError, TypeError)):
        default.something = 1


def test_every_part_can_be_written() -> None:
    playing = {part for role in ROLES for part in parts_of(role).values()}
    for part in every_part():
        callable_part = "__call__" in vars(part) or hasattr(part, "token_weights")
        assert (part in playing) == callable_part, f"{part.__name__} has role {role_of(part)}"
    assert {"clip", "unmasked"} <= set(parts_of("mask"))
    assert {"always", "annealed", "during", "entropy_balance", "solved_gate", "solved_table"} == set(parts_of("weight"))
    with pytest.raises(ValueError, match="role is 'maks'; allowed: where, mask"):
        parts_of("maks")


ONE = {"source": "rollouts"}
MISTAKES: list[tuple[list[dict[str, Any]], str]] = [
    ([], "terms: [] is not allowed; allowed: a list of one or more terms"),
    ([{}], "terms.0.source: missing; allowed: demonstrations, preferences, rollouts, trajectories"),
    ([{"source": "rollout"}], "terms.0.source: 'rollout' is not allowed; did you mean 'rollouts'?"),
    ([ONE | {"advantge": "reward"}], "terms.0.advantge: unknown key (set to 'reward'); did you mean 'advantage'?"),
    (
        [ONE, {"source": "rollouts", "mask": "clpi", "term": "b"}],
        "terms.1.mask: 'clpi' is not a known mask; did you mean 'clip'?",
    ),
    (
        [ONE | {"mask": {"name": "clip", "hihg": 0.2}}],
        "terms.0.mask.hihg: unknown key (set to 0.2); did you mean 'high'?",
    ),
    ([ONE | {"mask": {"name": "clip", "low": "0.2"}}], "terms.0.mask.low: '0.2' is not allowed; allowed: a number"),
    ([ONE | {"mask": {"name": "clip", "low": 2}}], "terms.0.mask: clip is low=2.0, high=0.2; allowed: 0 <= low < 1"),
    ([ONE | {"mask": {"low": 0.2}}], "terms.0.mask: {'low': 0.2} is not allowed; allowed: a name, or a mapping"),
    (
        [ONE | {"advantage": {"name": "group_relative", "std": "no"}}],
        "terms.0.advantage.std: 'no' is not allowed; did you mean false?",
    ),
    ([ONE | {"denominator": "clip"}], "terms.0.denominator: 'clip' is not a known denominator; allowed: "),
    ([ONE | {"weight": -1}], "terms.0.weight: weight is -1.0; allowed: at least 0"),
    ([ONE | {"weight": True}], "terms.0.weight: true is not allowed; allowed: a number, a name, or a mapping"),
    (
        [ONE | {"likelihood": "entropy", "mask": "clip"}],
        "terms.0.mask: unknown key (set to 'clip'); allowed: aggregation",
    ),
    (
        [ONE | {"likelihood": {"name": "forward_kl"}, "mask": "clip"}],
        "terms.0.mask: unknown key (set to 'clip'); allowed: aggregation, likelihood",
    ),
    ([ONE | {"likelihood": {"name": "jensen_shannon", "beta": 2}}], "terms.0.likelihood: beta is 2.0; allowed: 0 to 1"),
    (
        [ONE | {"likelihood": "entorpy"}],
        "terms.0.likelihood: 'entorpy' is not a known likelihood; did you mean 'entropy'?",
    ),
    ([ONE | {"term": 3}], "terms.0.term: 3 is not allowed; allowed: text"),
    ([ONE, ONE], "terms.1.term: 'rollouts' is the name of an earlier term; allowed: a `term` of its own for each"),
    (
        [ONE | {"aggregation": {"name": "joint", "aggregation": {"name": "fixed_length", "length": 0}}}],
        "terms.0.aggregation.aggregation: length is 0.0; allowed: above 0",
    ),
    (
        [ONE | {"mask": {"name": "product", "second": "clpi"}}],
        "terms.0.mask.second: 'clpi' is not a known mask; did you mean 'clip'?",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("terms", "message"), MISTAKES, ids=lambda value: value if isinstance(value, str) else "")
def test_mistakes(terms: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(RecipeError) as error:
        load("terms", terms=terms)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_all_mistakes_at_once() -> None:
    with pytest.raises(RecipeError) as error:
        load("terms", terms=[{"source": "rollout", "mask": "clpi", "weight": -1}, {"denominator": "odl"}])
    places = [line.partition(":")[0] for line in str(error.value).splitlines()]
    assert places == ["terms.0.source", "terms.0.mask", "terms.0.weight", "terms.1.source", "terms.1.denominator"]


def recipe(tmp_path: Path, algorithm: str) -> Path:
    (tmp_path / "rows.jsonl").write_text("{}\n")
    path = tmp_path / "mine.yaml"
    path.write_text(
        f"model: owner/name\ndemonstrations: {tmp_path}/rows.jsonl\nrewards: gsm8k\nalgorithm:\n{algorithm}"
    )
    return path


def indented(text: str) -> str:
    return "".join(f"    {line}\n" for line in text.strip().splitlines())


def test_a_recipe_needs_no_name(tmp_path: Path) -> None:
    loaded = load_recipe(recipe(tmp_path, "  terms:\n" + indented(HPT)), ["algorithm.terms.0.mask.low=0.1"])
    assert loaded.recipe.algorithm.name == "terms"
    assert loaded.provenance["algorithm.terms.0.mask.low"] == "command line"
    assert loaded.provenance["algorithm.terms.0.mask.high"].endswith("mine.yaml:9")


def test_a_mistake_in_a_recipe_has_its_line(tmp_path: Path) -> None:
    path = recipe(tmp_path, "  terms:\n" + indented(HPT.replace("length: 8192", "lenght: 8192")))
    with pytest.raises(RecipeError) as error:
        load_recipe(path)
    place = f"{path}:12: algorithm.terms.0.aggregation.lenght: unknown key (set to 8192); did you mean 'length'?"
    assert str(error.value).startswith(place)


def test_explained(tmp_path: Path) -> None:
    text = explain(str(recipe(tmp_path, "  terms:\n" + indented(HPT))), [], "text")
    assert "fixed_length(length=8192.0)" in text
    assert "1[num_solved > 0]" in text
    algorithm = load("terms", terms=written(RAFT))
    assert "1[solved_i]" in as_text(algorithm)
    assert as_latex(algorithm).count("&=") == 1


@pytest.mark.parametrize("part", ["advantage: group_relative", "where: solved", "advantage: entropy_signed"])
def test_rewards_of_demonstrations_are_refused(part: str, tmp_path: Path) -> None:
    text = "  terms:\n    - {source: rollouts, advantage: reward}\n"
    path = recipe(tmp_path, text + f"    - {{source: demonstrations, {part}}}\n")
    with pytest.raises(RecipeError, match=f"over demonstrations has an {part.partition(':')[0]} that reads rewards"):
        load_recipe(path)
    load_recipe(recipe(tmp_path, "  name: luffy\n"))
