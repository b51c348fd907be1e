"""Cutting requests into batches."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from posttrain.picture import Context
from posttrain.rollout.batching import batches, chunks, distinct
from posttrain.rollout.engine import Request

PROMPTS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9).map(tuple), max_size=30)


@given(PROMPTS, st.integers(1, 8), st.integers(1, 120))
def test_every_request_once_within_the_budget(prompts: list[tuple[int, ...]], limit: int, budget: int) -> None:
    requests = [Request(prompt, seed) for seed, prompt in enumerate(prompts)]
    limits = {index: 1 + (limit + index) % 8 for index in range(len(requests)) if index % 5}
    cut = list(batches(requests, limits, budget))
    assert sorted(index for batch in cut for index in batch.indices) == sorted(limits)
    for batch in cut:
        widths = [len(requests[index].prompt_ids) for index in batch.indices]
        assert widths == sorted(widths)
        assert batch.limits == tuple(limits[index] for index in batch.indices)
        assert len(widths) == 1 or len(widths) * (widths[-1] + max(batch.limits)) <= budget


@given(PROMPTS, st.integers(1, 60))
def test_distinct_prompts_are_counted_and_cut(prompts: list[tuple[int, ...]], budget: int) -> None:
    prompts.sort(key=lambda prompt: (len(prompt), prompt))
    cut = list(chunks(distinct([Context(prompt) for prompt in prompts]), budget))
    counted = [(prompt.token_ids, count) for chunk in cut for prompt, count in chunk]
    assert [prompt for prompt, count in counted for _ in range(count)] == prompts
    assert len({prompt for prompt, _ in counted}) == len(counted)
    for chunk in cut:
        assert len(chunk) == 1 or len(chunk) * len(chunk[-1][0].token_ids) <= budget
