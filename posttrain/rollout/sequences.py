"""Trajectories as training sequences: exactly the tokens that were sampled, joined where turns continue each other."""

from __future__ import annotations

from posttrain.batch import Source, TokenSequence
from posttrain.trajectory import Trajectory, Turn


def rollout_sequences(
    trajectory: Trajectory, group: int, number: int, source: Source = Source.ROLLOUTS
) -> list[TokenSequence]:
    """The trajectory's sequences, in the order of its turns; none where it has no turn.

    number: of the trajectory within its group; its sequences share it, so that statistics count the trajectory once.

    A turn whose prompt starts with every token so far continues the sequence: token_ids = prompt + completion + the
    new part of the next prompt + its completion ...; any other turn (a template that rewrites earlier turns) begins a
    new one. action_mask is True on sampled tokens, one behavior_logprob each. An ungraded trajectory has reward None.
    """
    sequences: list[list[Turn]] = []
    ids: tuple[int, ...] = ()
    for turn in trajectory.turns:
        if sequences and turn.prompt_ids[: len(ids)] == ids:
            sequences[-1].append(turn)
        else:
            sequences.append([turn])
        ids = turn.prompt_ids + turn.completion_ids
    return [_sequence(turns, trajectory, group, number, source) for turns in sequences]


def _sequence(turns: list[Turn], trajectory: Trajectory, group: int, number: int, source: Source) -> TokenSequence:
    """One sequence of turns that continue each other."""
    ids: tuple[int, ...] = ()
    mask: tuple[bool, ...] = ()
    logprobs: tuple[float, ...] = ()
    for turn in turns:
        mask += (False,) * (len(turn.prompt_ids) - len(ids)) + (True,) * len(turn.completion_ids)
        ids = turn.prompt_ids + turn.completion_ids
        logprobs += turn.logprobs
    return TokenSequence(
        token_ids=ids,
        action_mask=mask,
        source=source,
        group=group,
        reward=trajectory.reward,
        solved=trajectory.solved is True,
        behavior_logprobs=logprobs,
        temperature=trajectory.temperature,
        trajectory=number,
    )
