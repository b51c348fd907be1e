"""Where a reward stands among others: how much weight lies at or below it in its part of a partition."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Levels(NamedTuple):
    """Of each sequence [S]: the weight of the counted ones with a reward at most its own, below it, and of all."""

    at_most: Tensor
    below: Tensor
    total: Tensor


def levels(reward: Tensor, index: Tensor, counted: Tensor) -> Levels:
    """at_most_i = sum_j counted_j 1[R_j <= R_i], below_i with <, total_i = sum_j counted_j; all j of index_j = index_i.

    reward, counted (weights of at least 0) [S]; index [S]: the part of the partition. Rewards are compared exactly.
    """
    if not reward.numel():
        return Levels(reward, reward, reward)
    values, rank = torch.unique(reward, return_inverse=True)
    table = counted.new_zeros(int(index.max()) + 1, values.numel()).index_put_((index, rank), counted, accumulate=True)
    at_most = table.cumsum(1)
    below = torch.cat([torch.zeros_like(at_most[:, :1]), at_most[:, :-1]], 1)
    return Levels(at_most[index, rank], below[index, rank], at_most[index, -1])
