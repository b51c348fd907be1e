"""Which requests run together: sorted by prompt, cut by a token budget, each distinct prompt once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from posttrain.picture import Context, Pictures
from posttrain.rollout.engine import Request


@dataclass(frozen=True)
class Batch:
    """Requests (indices) in ascending order of their prompts' length; limits: how many tokens each may draw."""

    indices: tuple[int, ...]
    limits: tuple[int, ...]


def batches(requests: Sequence[Request], limits: Mapping[int, int], batch_tokens: int) -> Iterator[Batch]:
    """Cut the requests that have a limit into batches of at most `batch_tokens` padded tokens, or of one request.

    A batch of n rows takes n * (longest prompt + most new tokens). Requests of one prompt are neighbours.
    """
    rows: list[int] = []
    most = 0
    for index in sorted(limits, key=lambda i: _order(requests[i])):
        width = len(requests[index].prompt_ids)
        if rows and (len(rows) + 1) * (width + max(most, limits[index])) > batch_tokens:
            yield Batch(tuple(rows), tuple(limits[row] for row in rows))
            rows, most = [], 0
        rows.append(index)
        most = max(most, limits[index])
    if rows:
        yield Batch(tuple(rows), tuple(limits[row] for row in rows))


def _order(request: Request) -> tuple[int, tuple[int, ...], Pictures]:
    """By length, and those of one prompt side by side."""
    return len(request.prompt_ids), request.prompt_ids, request.pictures


def distinct(prompts: Sequence[Context]) -> list[tuple[Context, int]]:
    """Each prompt of a sorted list and how often it occurs."""
    return [(prompt, len(list(same))) for prompt, same in groupby(prompts)]


def chunks(counted: Sequence[tuple[Context, int]], max_tokens: int) -> Iterator[list[tuple[Context, int]]]:
    """Runs of distinct prompts whose padded size is at most `max_tokens`, or of one prompt."""
    chunk: list[tuple[Context, int]] = []
    for prompt, count in counted:
        if chunk and (len(chunk) + 1) * len(prompt.token_ids) > max_tokens:
            yield chunk
            chunk = []
        chunk.append((prompt, count))
    if chunk:
        yield chunk
