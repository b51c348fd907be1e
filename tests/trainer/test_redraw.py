"""Dynamic sampling: what is replaced, what is not, and that nothing is lost uncounted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from posttrain.config import load_recipe
from posttrain.data.examples import Example
from posttrain.errors import RecipeError
from posttrain.trainer import train
from posttrain.trainer.redraw import Redrawn, redraw, says_something
from posttrain.trajectory import Group, Trajectory

WriteRecipe = Callable[..., Path]


def _example(number: int) -> Example:
    return Example(id=str(number), prompt=str(number), columns={})


def _group(example: Example, *outcomes: float | None) -> Group:
    made = tuple(
        Trajectory(example.id, 0, example.prompt, {}, rewards={"right": one, "short": float(i)}, reward=one)
        for i, one in enumerate(outcomes)
    )
    return Group(example.id, made)


def test_only_the_outcome_of_graded_rollouts_is_looked_at() -> None:
    example = _example(0)
    assert says_something(_group(example, 0.0, 1.0, None), "right")
    assert not says_something(_group(example, 1.0, 1.0, None), "right")  # "short" differs
    assert not says_something(_group(example, None, None), "right")


def _alone(number: int, *, num_ranks: int, rounds: int) -> list[Redrawn]:
    """`redraw` on every one of `num_ranks`, for `number` prompts; each third prompt of the stream says something."""
    shares = [range(number)[rank::num_ranks] for rank in range(num_ranks)]

    def play(own: list[Example], round_number: int = 0) -> list[Group]:
        return [_group(one, 0.0, float(int(one.id) % 3 == 0)) for one in own]

    silent = [i for i in range(number) if i % 3]
    asked: list[list[int]] = []
    while silent:  # what the ranks together would report, round by round
        asked.append(silent)
        first = number + sum(len(one) for one in asked[:-1])
        silent = [place for place, fresh in zip(silent, range(first, first + len(silent)), strict=True) if fresh % 3]
    found = []
    for share in shares:
        cursor = [number]
        calls = iter([*asked, []])

        def draw(count: int, cursor: list[int] = cursor) -> list[Example]:
            cursor[0] += count
            return [_example(i) for i in range(cursor[0] - count, cursor[0])]

        def gather(own: list[int], calls: Any = calls) -> list[int]:
            together = next(calls)
            assert set(own) <= set(together)
            return list(together)

        examples = [_example(i) for i in share]
        how: dict[str, Any] = {"draw": draw, "play": play, "places": share, "gather": gather}
        found.append(redraw(examples, play(examples), outcome="right", rounds=rounds, **how))
    return found


@pytest.mark.parametrize("rounds", [1, 2, 20])
def test_any_number_of_ranks_replaces_the_same_prompts_by_the_same_ones(rounds: int) -> None:
    kept = []
    for num_ranks in (1, 2, 3):
        found = _alone(7, num_ranks=num_ranks, rounds=rounds)
        places = {rank + i * num_ranks: one.id for rank, r in enumerate(found) for i, one in enumerate(r.examples)}
        kept.append([places[i] for i in range(7)])
        assert all(one.id == group.prompt_id for r in found for one, group in zip(r.examples, r.groups, strict=True))
    assert kept[0] == kept[1] == kept[2]
    assert kept[0][0::3] == ["0", "3", "6"]
    if rounds == 20:
        assert all(int(name) % 3 == 0 for name in kept[0])
        assert sum(len(one.dropped) for one in found) == int(max(kept[0], key=int)) + 1 - 7


_PARITY = '''
"""A reward that depends on what was said, in most groups alike."""

def parity(completion: str) -> float:
    """1 where the characters sum up to a multiple of four."""
    return float(sum(map(ord, completion)) % 4 == 0)
'''


def _recipe(tiny_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    (tmp_path / "rewards").mkdir()
    (tmp_path / "rewards" / "parity.py").write_text(_PARITY)
    monkeypatch.setenv("POSTTRAIN_PATH", str(tmp_path))
    tiny_recipe |= {"algorithm": {"name": "dapo"}, "prompts": tiny_recipe.pop("demonstrations")}
    tiny_recipe["rewards"] = [{"name": "parity"}]
    tiny_recipe["rollout"] |= {"group_size": 4, "max_draws": 8}
    return tiny_recipe


def test_a_run_trains_on_groups_that_say_something_and_resumes_exactly(
    tiny_recipe: dict[str, Any], write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write_recipe(_recipe(tiny_recipe, tmp_path, monkeypatch))
    assert train(load_recipe(recipe), tmp_path / "whole") is None
    rows = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["num_redrawn_groups"] > rows[0]["num_redrawn_groups"] > 0
    assert all(row["num_pruned"] == 0 for row in rows)  # every group has both outcomes
    assert train(load_recipe(recipe, ["training.steps=2"]), tmp_path / "parts") is None
    assert train(load_recipe(recipe), tmp_path / "parts", resume=True) is None
    whole, parts = (load_file(tmp_path / name / "final" / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(parts[name], value) for name, value in whole.items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rollout": {"group_size": 1, "max_draws": 2}, "algorithm": {"name": "reinforce"}}, "a group of one rollout"),
        ({"rollout": {"max_draws": 2}, "algorithm": {"name": "hpt"}}, "imitates the prompts"),
    ],
)
def test_where_it_makes_no_sense(
    tiny_recipe: dict[str, Any], write_recipe: WriteRecipe, changes: dict[str, Any], message: str
) -> None:
    if changes["algorithm"]["name"] != "hpt":
        tiny_recipe["prompts"] = tiny_recipe.pop("demonstrations")
    with pytest.raises(RecipeError, match=rf"rollout\.max_draws: 2 is not allowed: .*{message}"):
        load_recipe(write_recipe(tiny_recipe | changes))
