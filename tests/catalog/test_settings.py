"""The signature is the schema."""

import pytest

from posttrain import catalog
from posttrain.errors import RecipeError

_PART = """
from __future__ import annotations
from typing import TYPE_CHECKING, Literal
if TYPE_CHECKING:
    from collections.abc import Callable

def part(completion: Callable, *, size: int, rate: float = 1e-5, mode: Literal["fast", "slow"] = "fast",
         flags: list[bool] = [], pair: tuple[int, int] = (1, 2), either: int | str = 0, strict: bool = True):
    return size, rate, pair
"""


@pytest.fixture(autouse=True)
def _part(tmp_path, monkeypatch):
    monkeypatch.setenv("POSTTRAIN_PATH", str(tmp_path))
    (tmp_path / "rewards").mkdir()
    (tmp_path / "rewards" / "part.py").write_text(_PART)
    (tmp_path / "rewards" / "open_part.py").write_text("def open_part(*, size: int = 1, **more):\n    return more\n")


def test_settings_are_checked_and_defaults_filled_in():
    assert catalog.check("rewards", "part", {"size": 3, "pair": [4, 5], "rate": 1}) == {
        "size": 3, "rate": 1.0, "mode": "fast", "flags": [], "pair": (4, 5), "either": 0, "strict": True,
    }  # fmt: skip


def test_unpacked_settings_are_checked_and_only_passed_where_given(tmp_path):
    source = (
        "from typing import TypedDict, Unpack\n"
        "class Shared(TypedDict, total=False):\n    width: int\n    title: str\n"
        "def shared_part(*, size: int = 1, **more: Unpack[Shared]):\n    return size, more\n"
    )
    (tmp_path / "rewards" / "shared_part.py").write_text(source)
    assert catalog.build("rewards", "shared_part", {"width": 2}) == (1, {"width": 2})
    with pytest.raises(RecipeError, match="width: 'two' is not allowed; allowed: an integer"):
        catalog.check("rewards", "shared_part", {"width": "two"})
    with pytest.raises(RecipeError, match=r"unknown key .* did you mean 'title'"):
        catalog.check("rewards", "shared_part", {"titel": "x"})


def test_variable_keywords_take_no_settings():
    with pytest.raises(RecipeError, match="colour: unknown key"):
        catalog.check("rewards", "open_part", {"colour": "red"})


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "size: missing: reward 'part' has no default for it"),
        ({"size": 1, "rte": 2}, "rte: unknown key (set to 2); did you mean 'rate'?"),
        ({"size": 1, "completion": 2}, "completion: unknown key"),
        ({"size": "1"}, "size: '1' is not allowed; allowed: an integer"),
        ({"size": True}, "size: true is not allowed; allowed: an integer"),
        ({"size": 1, "rate": "1e-5"}, "rate: '1e-5' is not allowed; allowed: a number"),
        ({"size": 1, "mode": "fats"}, "mode: 'fats' is not allowed; did you mean 'fast'? allowed: fast, slow"),
        ({"size": 1, "flags": [1]}, "flags: 1 is not allowed; allowed: true or false"),
        ({"size": 1, "either": []}, "either: [] is not allowed; allowed: an integer or text"),
        ({"size": 1, "strict": "yes"}, "strict: 'yes' is not allowed; did you mean true?"),
    ],
)
def test_mistakes_name_the_setting(settings, expected):
    with pytest.raises(RecipeError) as error:
        catalog.check("rewards", "part", settings)
    assert expected in str(error.value)


def test_all_mistakes_are_listed():
    with pytest.raises(RecipeError) as error:
        catalog.check("rewards", "part", {"size": 0.5, "rte": 1})
    assert len(str(error.value).splitlines()) == 2


def test_as_is_another_word_for_preset() -> None:
    assert catalog.check("algorithms", "grpo", {"as": "verl"}) == catalog.check(
        "algorithms", "grpo", {"preset": "verl"}
    )
    with pytest.raises(RecipeError, match=r"as: 'verll' is not allowed.*verl"):
        catalog.check("algorithms", "ppo", {"as": "verll"})
    with pytest.raises(RecipeError, match="as: unknown key"):
        catalog.check("algorithms", "sft", {"as": "verl"})
    with pytest.raises(RecipeError, match="as: unknown key"):
        catalog.check("algorithms", "grpo", {"as": "verl", "preset": "trl"})
