"""Supervised fine-tuning: imitate the demonstrations."""

from __future__ import annotations

from posttrain.estimator import Algorithm, PolicyTerm, Source
from posttrain.estimator.aggregation import SequenceMean, TokenMean


def sft(*, sequence_normalised: bool = False) -> Algorithm:
    """L = -1/N_tokens sum_i sum_t log pi(y_it | x_i, y_i<t) over the demonstrations.

    With sequence_normalised, each sequence's token mean counts once. The gradient is that of the estimator with
    denominator pi and advantage 1 (arXiv 2509.04419, table 1, row SFT, and eq. 12).
    """
    aggregation = SequenceMean() if sequence_normalised else TokenMean()
    return Algorithm("sft", (PolicyTerm(Source.DEMONSTRATIONS, aggregation=aggregation, name="sft"),))
