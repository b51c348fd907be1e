"""Exact and near duplicates that were planted, against exact overlaps."""

from __future__ import annotations

import random

import numpy as np
import pytest

from posttrain.curation.duplicates import exact_duplicates
from posttrain.curation.near_duplicates import _signature, bands, jaccard, near_duplicates, shingles
from posttrain.data.stream import random_words
from posttrain.errors import RecipeError

WORDS = [f"w{letter}{other}" for letter in "abcdefghijklmnopqrst" for other in "abcdefghijklmnopqrst"]


def texts(count: int, seed: int = 0, length: int = 60) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=length)) for _ in range(count)]


def changed(text: str, places: list[int]) -> str:
    words = text.split()
    for place in places:
        words[place] = "other"
    return " ".join(words)


def test_exact_duplicates_are_told_without_case_and_spacing() -> None:
    rows = ["What is 2 + 2?", "What is 2 - 2?", "what  is 2\n+ 2?", "WHAT IS 2 + 2?", "What is 2 + 2"]
    assert exact_duplicates(rows) == {2: 0, 3: 0}


def test_planted_near_duplicates_are_found_and_nothing_else() -> None:
    rows = texts(300)
    near = {300 + i: i for i in range(0, 200, 5)}
    rows += [changed(rows[i], [7]) for i in near.values()]  # 5 of 56 shingles differ: 51 / 61 = 0.836
    rows += [changed(rows[i], [5, 15, 25, 35, 45]) for i in range(200, 260)]  # 31 / 81 = 0.38
    near = {300 + number: i for number, i in enumerate(near.values())}
    found = near_duplicates(rows)
    assert {place: other for place, (other, _) in found.items()} == near
    assert {round(overlap, 3) for _, overlap in found.values()} == {round(51 / 61, 3)}
    assert near_duplicates(rows, seed=5) == found
    assert near_duplicates(rows) == found


def test_a_pair_at_the_threshold_is_a_candidate_with_99_percent() -> None:
    for threshold in (0.3, 0.5, 0.7, 0.8, 0.9, 1.0):
        number, rows = bands(threshold)
        assert number * rows <= 128
        assert 1 - (1 - threshold**rows) ** number >= 0.99
        if rows < 128:
            assert 1 - (1 - threshold ** (rows + 1)) ** (128 // (rows + 1)) < 0.99


def test_the_share_of_equal_hashes_estimates_the_overlap() -> None:
    factors = random_words(256, 1, 0).reshape(2, 128) | np.uint64(1)
    errors = []
    for number, text in enumerate(texts(100, seed=2)):
        other = changed(text, random.Random(number).sample(range(60), number % 6))
        a, b = shingles(text, 5), shingles(other, 5)
        exact = jaccard(a, b)
        words = text.split(), other.split()
        sets = [{tuple(one[i : i + 5]) for i in range(len(one) - 4)} for one in words]
        assert exact == len(sets[0] & sets[1]) / len(sets[0] | sets[1])
        errors.append(float((_signature(a, factors) == _signature(b, factors)).mean()) - exact)
    assert abs(np.mean(errors)) < 0.02  # unbiased: four standard errors are 0.018
    assert np.max(np.abs(errors)) < 0.2


def test_other_numbers_are_another_problem() -> None:
    text = "A baker makes 12 loaves of bread a day and sells each of them for 3 dollars. What does he earn in a week?"
    rows = [text, text.replace("12", "15"), text.replace("A baker", "The baker")]
    assert set(near_duplicates(rows, 0.7)) == {2}
    assert set(near_duplicates(rows, 0.6, same_numbers=False)) == {1, 2}


def test_a_template_costs_time_in_proportion(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = 0
    exact = jaccard

    def counted(a, b):  # type: ignore[no-untyped-def]
        nonlocal compared
        compared += 1
        return exact(a, b)

    monkeypatch.setattr("posttrain.curation.near_duplicates.jaccard", counted)
    base = texts(1, length=40)[0]
    rng = random.Random(3)
    rows = [f"{base} {' '.join(rng.choices(WORDS, k=12))}" for _ in range(800)]  # overlaps of about 36 / 60
    assert near_duplicates(rows, 0.75) == {}
    assert 20 * 800 < compared <= 64 * 800  # of 319,600 pairs


def test_empty_and_short_texts() -> None:
    assert set(near_duplicates(["", "a", "", "a b", "a"])) == {2, 4}


@pytest.mark.parametrize("settings", [{"threshold": 0.0}, {"threshold": 1.5}, {"words_per_shingle": 0}])
def test_mistakes(settings: dict[str, float]) -> None:
    with pytest.raises(RecipeError, match="allowed"):
        near_duplicates(["a"], **settings)  # type: ignore[arg-type]
