"""The unified policy gradient estimator: the formula once, its parts, and algorithms as sums of terms.

Imports torch and `posttrain.batch` only: usable inside any trainer.
"""

from posttrain.batch import Source, TokenBatch, TokenSequence
from posttrain.estimator.algorithm import Algorithm, Loss, reduce
from posttrain.estimator.plan import Plan
from posttrain.estimator.term import PolicyTerm, Term

__all__ = ["Algorithm", "Loss", "Plan", "PolicyTerm", "Source", "Term", "TokenBatch", "TokenSequence", "reduce"]
