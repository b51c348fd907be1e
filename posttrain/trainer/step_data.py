"""What one optimiser step trains on: sequences of rollouts, demonstrations, preferences, recorded trajectories."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from posttrain.batch import PER_ACTION, Source, TokenSequence
from posttrain.data.chat import encode_demonstration
from posttrain.data.examples import Completion, Example, Outcome
from posttrain.data.labels import targets_of
from posttrain.data.recorded import read
from posttrain.errors import DataError
from posttrain.estimator import Algorithm
from posttrain.estimator.pairing import Chances
from posttrain.picture import pictures_before, whole_until
from posttrain.rollout.records import from_record
from posttrain.rollout.sequences import rollout_sequences
from posttrain.trainer.comparisons import mismatched, needs_both_sides, rollouts_of, sides
from posttrain.trajectory import Dropped, Group, Trajectory


@dataclass(frozen=True)
class Drawn:
    """The examples of one optimiser step, this rank's share; neighbours: the next of all preferences after each."""

    prompts: list[Example]
    demonstrations: list[Example]
    preferences: list[Example]
    neighbours: list[Example]
    trajectories: list[Example]


@dataclass(frozen=True)
class Played:
    """A trajectory and the rows that its training sequences have in their step's batch."""

    trajectory: Trajectory
    group: int
    rows: Sequence[int]
    by_reference: bool = False


@dataclass(frozen=True)
class StepData:
    """What one optimiser step trains on, and for its record and its metrics what was played for it."""

    sequences: list[TokenSequence]
    played: list[Played] = field(default_factory=list)


@dataclass(frozen=True)
class Judged:
    """A prompt's rollouts on their way into a step.

    used: those of `group` that make sequences. chances: the judge's, where the pairing has one. anchors: the
    reference's rollouts of the same prompt.
    """

    group: Group
    used: list[Trajectory]
    chances: Chances | None
    anchors: Group


@dataclass
class StepMaker:
    """Makes the sequences of a step for `algorithm`.

    max_length: tokens at which data is cut. paired: the demonstration of each prompt is imitated beside its rollouts.
    num_cut: sequences that max_length has cut short so far.
    """

    algorithm: Algorithm
    tokenizer: Any
    max_length: int | None
    paired: bool
    num_cut: int = 0

    def step(self, drawn: Drawn, groups: Iterator[Judged]) -> StepData:
        """The data of a step: of its prompts, in order, each takes the next of `groups`.

        Of a prompt whose rollouts are stale nothing is trained, not its demonstration either: whether that counts may
        depend on them.
        """
        sequences: list[TokenSequence] = []
        played: list[Played] = []
        first_pair = len(drawn.prompts) + len(drawn.demonstrations) + len(drawn.preferences)
        for index, (example, judged) in enumerate(zip(drawn.prompts, groups, strict=False)):
            made, rows = rollouts_of(judged.used, index, self.algorithm, judged.chances, first_pair)
            shown = {id(one): [len(sequences) + row for row in own] for one, own in zip(judged.used, rows, strict=True)}
            played += [Played(one, index, shown.get(id(one), [])) for one in judged.group.trajectories]
            if is_stale(judged.group):
                continue
            sequences += made
            first_pair = max([first_pair, *(one.pair + 1 for one in made)])
            for number, one in enumerate(judged.anchors.trajectories):
                before = len(sequences)
                sequences += rollout_sequences(one, index, number, Source.DEMONSTRATIONS)
                played.append(Played(one, index, range(before, len(sequences)), by_reference=True))
            if self.paired:
                sequences += self._demonstration(example, index)
        first = len(drawn.prompts)
        for index, example in enumerate(drawn.demonstrations, start=first):
            sequences += self._demonstration(example, index)
        compared = zip(drawn.preferences, drawn.neighbours, strict=True)
        for index, (example, neighbour) in enumerate(compared, start=first + len(drawn.demonstrations)):
            sequences += self._preference(example, neighbour, index)
        first += len(drawn.demonstrations) + len(drawn.preferences)
        for index, example in enumerate(drawn.trajectories, start=first):
            sequences += self._outcomes(example, index)
        return StepData(sequences, played)

    def _demonstration(self, example: Example, group: int) -> list[TokenSequence]:
        if example.completion is None:
            raise DataError(f"{example.id} has no completion, and {self.algorithm.name} imitates demonstrations")
        made = self._encoded(example, example.completion, Source.DEMONSTRATIONS, group)
        sequences = [replace(one, trajectory=0) for one in made]
        return [sequence for sequence in sequences if sequence.num_actions]

    def _outcomes(self, example: Example, group: int) -> list[TokenSequence]:
        """The sequences of each recorded trajectory of a prompt: as it was sampled where that is stored.

        Else of its text, encoded anew; one that was cut off does not learn to end there.
        """
        found: list[TokenSequence] = []
        source = Source.TRAJECTORIES
        for number, outcome in enumerate(example.outcomes):
            if outcome.sampled is None:
                made = self._encoded(example, outcome.completion, source, group, outcome.finished)
            else:
                sampled = from_record(read(outcome.sampled))
                made = [self._cut(one) for one in rollout_sequences(sampled, group, number, source)]
            graded: dict[str, Any] = {"reward": outcome.reward, "solved": outcome.solved, "trajectory": number}
            found += [replace(one, **graded) for one in self._labelled(example, outcome, made) if one.num_actions]
        return found

    def _labelled(self, example: Example, outcome: Outcome, made: list[TokenSequence]) -> list[TokenSequence]:
        """With targets, where the algorithm learns labels of tokens; one that was cut has lost those of its end."""
        plan = self.algorithm.plan
        if plan.labels is None:
            return made
        if len(made) != 1:
            raise DataError(f"{example.id}: the chat template breaks it into {len(made)} sequences; labels need one")
        actions = [token for token, action in zip(made[0].token_ids, made[0].action_mask, strict=True) if action]
        try:
            targets = targets_of(outcome, plan.scores, plan.labels, actions, self.tokenizer)
        except ValueError as error:
            raise DataError(f"{example.id}: {error}") from error
        return [replace(made[0], targets=targets)]

    def _preference(self, example: Example, neighbour: Example, group: int) -> list[TokenSequence]:
        """Its sides, those that max_length leaves an action (or none of a pair); where planned, mismatched ones too."""
        own = self._sides(example, group)
        kept = [side for side in own if side.num_actions]
        if needs_both_sides(self.algorithm):
            return kept if len(kept) == len(own) else []
        if self.algorithm.plan.mismatched:
            num_cut = self.num_cut  # the neighbour is counted where it is drawn itself
            kept += mismatched(own, self._sides(neighbour, group), self.max_length)
            self.num_cut = num_cut
        return kept

    def _sides(self, example: Example, group: int) -> list[TokenSequence]:
        """A sequence for each side, chosen with reward 1 and rejected with 0."""
        found: list[TokenSequence] = []
        for name, side, reward in sides(example, self.algorithm):
            sequences = self._encoded(example, side, Source.PREFERENCES, group)
            if len(sequences) != 1:
                raise DataError(
                    f"{example.id}: the chat template breaks the {name} side into {len(sequences)} sequences; a "
                    "preference needs one a side: keep its last turn alone, or set tokenizer.chat_template"
                )
            found.append(replace(sequences[0], pair=group, reward=reward, margin=example.margin))
        return found

    def _encoded(
        self, example: Example, completion: Completion, source: Source, group: int, finished: bool = True
    ) -> list[TokenSequence]:
        """A completion's sequences, cut at training.max_length; unless finished, without the last terminator."""
        encoded = encode_demonstration(example.prompt, completion, self.tokenizer, example.tools)
        if not finished:
            encoded[-1] = replace(
                encoded[-1], token_ids=encoded[-1].token_ids[:-1], action_mask=encoded[-1].action_mask[:-1]
            )
        made = [TokenSequence(e.token_ids, e.action_mask, source, group, pictures=e.pictures) for e in encoded]
        return [self._cut(one) for one in made]

    def _cut(self, sequence: TokenSequence) -> TokenSequence:
        """The first max_length tokens, with what belongs to them; a picture that does not fit is left out whole."""
        if self.max_length is None or sequence.num_tokens <= self.max_length:
            return sequence
        self.num_cut += 1
        limit = whole_until(sequence.pictures, self.max_length)
        mask = sequence.action_mask[:limit]
        recorded = {name: getattr(sequence, name) for name in PER_ACTION}
        kept: dict[str, Any] = {
            name: None if values is None else values[: sum(mask)] for name, values in recorded.items()
        }
        kept["pictures"] = pictures_before(sequence.pictures, limit)
        return replace(sequence, token_ids=sequence.token_ids[:limit], action_mask=mask, **kept)


def is_stale(group: Group) -> bool:
    """Whether the group was dropped, because a policy older than the recipe allows has sampled some of it."""
    return any(one.dropped is Dropped.STALE for one in group.trajectories)
