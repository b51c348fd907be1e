"""Trajectories as training sequences: exactly the tokens that were sampled, joined where turns continue each other."""

from __future__ import annotations

from posttrain.batch import Source, TokenSequence
from posttrain.picture import marked
from posttrain.trajectory import Trajectory, Turn


def rollout_sequences(
    trajectory: Trajectory, group: int, number: int, source: Source = Source.ROLLOUTS
) -> list[TokenSequence]:
    """The trajectory's sequences, in the order of its turns; none where it has no turn.

    number: of the trajectory within its group; its sequences share it, so that statistics count the trajectory once.

    A turn whose prompt starts with every token, and every image, of a sequence so far continues it, the longest where
    there are several: token_ids = prompt + completion + the new part of the next prompt + its completion ...; any other
    turn (a template that rewrites earlier turns) begins a new one. action_mask is True on sampled tokens, one
    behavior_logprob each, but on those of masked turns; what these earned counts for the turn before, or the first that
    is not masked. A sequence of masked turns alone is left out where there are others. An ungraded trajectory has
    reward None.
    """
    sequences: list[list[tuple[int, Turn]]] = []
    ids: list[tuple[int, ...]] = []
    for index, turn in enumerate(trajectory.turns):
        read = marked(turn.prompt_ids, turn.pictures)
        fitting = [place for place, so_far in enumerate(ids) if read[: len(so_far)] == so_far]
        place = max(fitting, key=lambda one: len(ids[one]), default=len(ids))
        if place == len(sequences):
            sequences.append([])
        sequences[place].append((index, turn))
        ids[place : place + 1] = [read + turn.completion_ids]
    learnt = [turns for turns in sequences if not all(turn.masked for _, turn in turns)]
    sequences = learnt or sequences
    return [_sequence(turns, trajectory, group, number, source) for turns in sequences]


def _sequence(
    turns: list[tuple[int, Turn]], trajectory: Trajectory, group: int, number: int, source: Source
) -> TokenSequence:
    """One sequence of turns (their number in the trajectory, and what they are) that continue each other."""
    ids: tuple[int, ...] = ()
    mask: tuple[bool, ...] = ()
    logprobs: tuple[float, ...] = ()
    numbers: tuple[int, ...] = ()
    states: tuple[str, ...] = ()
    off_path: tuple[bool, ...] = ()
    allowed: tuple[tuple[int, ...], ...] = ()
    for index, turn in turns:
        length = 0 if turn.masked else len(turn.completion_ids)
        mask += (False,) * (len(turn.prompt_ids) - len(ids)) + (not turn.masked,) * len(turn.completion_ids)
        ids = turn.prompt_ids + turn.completion_ids
        logprobs += () if turn.masked else turn.logprobs
        numbers += (index,) * length
        states += (turn.state,) * length
        off_path += (turn.off_path,) * length
        allowed += (turn.allowed or ((),) * length)[:length]
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
        turn_index=numbers,
        turn_rewards=_rewards(numbers, trajectory),
        states=states if any(states) else None,
        off_path=off_path if any(off_path) else None,
        allowed=allowed if any(allowed) else None,
        pictures=turns[-1][1].pictures,
    )


def _rewards(numbers: tuple[int, ...], trajectory: Trajectory) -> tuple[float, ...] | None:
    """The reward of each action token's turn; None where the trajectory's is not spread over its turns."""
    if trajectory.turn_rewards is None:
        return None
    kept = [index for index, turn in enumerate(trajectory.turns) if not turn.masked]
    earned = dict.fromkeys(kept, 0.0)
    for index, reward in enumerate(trajectory.turn_rewards):
        owner = max((own for own in kept if own <= index), default=min(kept, default=None))
        if owner is not None:
            earned[owner] += reward
    return tuple(earned[number] for number in numbers)
