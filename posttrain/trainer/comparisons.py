"""Sequences that are compared: the sides of preferences, prompts with another's completion, pairs of rollouts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from posttrain.batch import Source, TokenSequence
from posttrain.data.examples import Completion, Example
from posttrain.errors import DataError
from posttrain.estimator import Algorithm
from posttrain.estimator.pairing import Chances
from posttrain.picture import moved, pictures_before, whole_until
from posttrain.rollout.sequences import rollout_sequences
from posttrain.trajectory import Group, Trajectory


def needs_both_sides(algorithm: Algorithm) -> bool:
    """Whether a preference with one side says nothing to `algorithm`."""
    return any(term.source is Source.PREFERENCES and term.couples == "pair" for term in algorithm.terms)


def sides(example: Example, algorithm: Algorithm) -> list[tuple[str, Completion, float]]:
    """(name, completion, reward) of an example's sides: chosen with reward 1, rejected with 0. DataError without."""
    found = [(name, getattr(example, name), reward) for name, reward in (("chosen", 1.0), ("rejected", 0.0))]
    missing = [name for name, side, _ in found if side is None]
    if missing and (needs_both_sides(algorithm) or len(missing) == 2):
        kind = "pairs of preferences" if needs_both_sides(algorithm) else "preferences"
        raise DataError(f"{example.id} has no {missing[0]!r} side, and {algorithm.name} reads {kind}")
    return [side for side in found if side[1] is not None]


def mismatched(own: Sequence[TokenSequence], others: Sequence[TokenSequence], limit: int | None) -> list[TokenSequence]:
    """The prompt of `own` with each completion of `others`, ungraded, cut at `limit` tokens (KTO's z0).

    Tokens are joined as they are. None where either side has no action left.
    """
    own, others = ([s for s in sequences if s.num_actions] for sequences in (own, others))
    if not own:
        return []
    start = own[0].action_mask.index(True)
    joined = []
    for other in others:
        first = other.action_mask.index(True)
        ids = (*own[0].token_ids[:start], *other.token_ids[first:])
        mask = (*own[0].action_mask[:start], *other.action_mask[first:])
        later = tuple(one for one in other.pictures if one.start >= first)
        pictures = pictures_before(own[0].pictures, start) + moved(later, start - first)
        cut = None if limit is None else whole_until(pictures, limit)
        kept: dict[str, Any] = {"pictures": pictures_before(pictures, len(ids) if cut is None else cut)}
        joined.append(replace(own[0], token_ids=ids[:cut], action_mask=mask[:cut], pair=-1, reward=None, **kept))
    return [sequence for sequence in joined if sequence.num_actions]


def usable(group: Group, algorithm: Algorithm) -> list[Trajectory]:
    """The trajectories that make sequences: those with a turn, and where none is graded, that did not fail."""
    graded = algorithm.grades_rollouts
    return [one for one in group.trajectories if one.turns and (graded or one.error is None)]


def rollouts_of(
    trajectories: Sequence[Trajectory], group: int, algorithm: Algorithm, chances: Chances | None, first_pair: int
) -> tuple[list[TokenSequence], list[list[int]]]:
    """The sequences of a group's trajectories, paired as `algorithm` plans it, and each trajectory's rows among them.

    Pairs are numbered from first_pair. A trajectory that stands in several pairs is shown at its first, one in none has
    no row. A side of a pair is a whole trajectory, however many sequences it has.
    """
    each = [rollout_sequences(trajectory, group, number) for number, trajectory in enumerate(trajectories)]
    pairing = algorithm.plan.pairing
    found: list[tuple[int, list[TokenSequence]]] = []
    if pairing is None or (
        pairing.source is Source.PREFERENCES and any(term.source is Source.ROLLOUTS for term in algorithm.terms)
    ):
        found += enumerate(each)
    if pairing is not None:
        first = [own[0] for own in each]  # what a pairing reads is the same in all sequences of a trajectory
        for one in pairing(first, chances):
            changes: dict[str, Any] = {"source": one.source, "pair": one.pair + first_pair, "reward": one.reward}
            found.append((one.trajectory, [replace(sequence, **changes) for sequence in each[one.trajectory]]))
    made: list[TokenSequence] = []
    rows: list[list[int]] = [[] for _ in each]
    for number, own in found:
        rows[number] = rows[number] or list(range(len(made), len(made) + len(own)))
        made += own
    return made, rows
