"""Texts that share words in a row, against sets of tuples."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from posttrain.data.ngrams import ngrams, normalised, overlaps, words

ITEM = "A farmer has 12 cows and buys 7 more; how many cows does the farmer have after he sells a third of them?"


def test_words_have_no_case_no_punctuation_and_numbers_count() -> None:
    assert words("The \ufb01rst, 12.5%: x_1!") == ["the", "first", "12", "5", "x_1"]
    assert words("你好 world") == ["你", "好", "world"]
    assert normalised(" A\n b ,") == "a b ,"


@given(st.lists(st.sampled_from("abc"), max_size=12), st.lists(st.sampled_from("abc"), max_size=12))
def test_the_same_texts_as_by_sets(left: list[str], right: list[str]) -> None:
    def sequences(tokens: list[str]) -> set[tuple[str, ...]]:
        return {tuple(tokens[i : i + 3]) for i in range(len(tokens) - 2)}

    shares = bool(sequences(left) & sequences(right)) or left == right
    assert bool(overlaps([" ".join(left)], [" ".join(right)], n=3)) == shares


def test_a_planted_item_is_found_and_a_paraphrase_is_not() -> None:
    texts = [
        f"Solve it. {ITEM.upper()} Think first.",
        "12 cows belong to a farmer, who gets another 7. When a third of the cows is sold, how many are left to him?",
        ITEM.replace("12", "14"),
        "What is 2 + 2?",
    ]
    (found,) = overlaps(texts[:2] + texts[3:], ["Nothing of the kind.", ITEM])
    assert (found.text, found.item) == (0, 1)
    assert found.words == "a farmer has 12 cows and buys 7 more how many cows does"
    # With another number the words after it are still the same: the benchmark's question leaks.
    assert [one.text for one in overlaps(texts, [ITEM])] == [0, 2]
    assert [one.text for one in overlaps(texts, [ITEM], n=20)] == [0]


def test_a_short_item_is_found_where_it_is_the_whole_text() -> None:
    texts = ["what is  3 + 4?", "What is 3 - 4?", "What is 3 + 4? Say it."]
    assert [(one.text, one.words) for one in overlaps(texts, ["What is 3 + 4?"])] == [(0, "what is 3 + 4?")]


def test_phrases_that_many_share_do_not_count() -> None:
    phrase = "your task is to add the numbers that follow and to give nothing but their sum:"
    rng = random.Random(0)
    items = [f"{phrase} {rng.randrange(10**6)}" for _ in range(30)]
    assert overlaps([f"{phrase} 5"], items) == []
    assert len(overlaps([f"{phrase} 5"], items, common=30)) == 1
    # Among the texts too, but the same text again is no further text.
    texts = [f"{ITEM} {number}" for number in range(11)]
    assert overlaps(texts, [ITEM]) == []
    assert len(overlaps([ITEM + " Go."] * 11, [ITEM])) == 11
    assert ngrams("too short", 3) == []
