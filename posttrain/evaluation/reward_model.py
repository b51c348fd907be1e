"""A trained reward model that scores completions: as a reward, for calibration, for filtering."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from posttrain.batch import Source, TokenSequence
from posttrain.config.schema import ModelSettings, TokenizerSettings
from posttrain.data.chat import encode_demonstration
from posttrain.data.collate import collate
from posttrain.data.examples import Completion
from posttrain.data.held_out import content
from posttrain.data.labels import step_ends, steps_of
from posttrain.data.plan import microbatches
from posttrain.errors import DataError
from posttrain.models.scorer import Scorer, load_classifier
from posttrain.models.tokenizer import load_tokenizer
from posttrain.trajectory import Prompt

OverSteps = Literal["min", "last", "mean", "product"]


@dataclass(frozen=True, eq=False)
class Scored:
    """What a reward model says of one completion's action tokens: scores [K, A] and, if asked, hidden states [H, A].

    token_ids: the action tokens [A].
    """

    token_ids: tuple[int, ...]
    scores: Tensor
    hidden: Tensor | None = None


@dataclass(frozen=True, eq=False)
class RewardModel:
    """A classifier and its tokenizer. reading: which tokens speak of a completion (`estimator.plan.Plan`)."""

    scorer: Scorer
    tokenizer: Any
    reading: str
    batch_tokens: int = 16_384

    @classmethod
    def load(cls, path: str, *, device: str | None = None, dtype: str = "auto", hidden: bool = False) -> RewardModel:
        """The model at `path`, on `device` (default: CUDA where there is one). UserError as `load_classifier`."""
        model = load_classifier(path, dtype)
        tokenizer = load_tokenizer(TokenizerSettings(path=path), ModelSettings())
        place = device or ("cuda" if torch.cuda.is_available() else "cpu")
        reading = getattr(model.config, "reward_reading", "last")
        return cls(Scorer(model.to(place), gives_hidden=hidden).eval(), tokenizer, reading)

    @property
    def names(self) -> list[str]:
        """Of its scores."""
        labels: dict[int, str] = self.scorer.model.config.id2label
        return [labels[number] for number in range(len(labels))]

    def __call__(self, pairs: Sequence[tuple[Prompt, Completion]]) -> list[Scored]:
        """What it says of each (prompt, completion), in order.

        DataError where the chat template breaks a completion into several sequences.
        """
        return self.of_sequences([self.sequence(prompt, completion) for prompt, completion in pairs])

    @torch.no_grad()
    def of_sequences(self, sequences: Sequence[TokenSequence]) -> list[Scored]:
        """What it says of each sequence, in order; several to a forward pass."""
        found: dict[int, Scored] = {}
        how: dict[str, Any] = {"layout": self.scorer.layout, "whole": True}
        for rows in microbatches(sequences, self.batch_tokens, **how):
            part = [sequences[row] for row in rows]
            said = self.scorer(collate(part, **how).to(self.scorer.head.weight.device))
            values = (said.values if said.values.ndim == 2 else said.values[None]).cpu()
            sizes = [one.num_actions for one in part]
            states = [None] * len(part) if said.hidden is None else said.hidden.cpu().split(sizes, -1)
            for row, one, scores, hidden in zip(rows, part, values.split(sizes, -1), states, strict=True):
                found[row] = Scored(tuple(_actions(one)), scores, hidden)
        return [found[row] for row in range(len(sequences))]

    def reward(self, scored: Scored, completion: Completion, over_steps: OverSteps = "min") -> list[float]:
        """One number for each of its scores: at the last token, the mean over tokens, or of the steps' probabilities.

        over_steps: how sigma(s_k) of the steps, lines of the completion, become one: the lowest (arXiv 2312.08935, sec.
        3.4), the last, their mean or their product (arXiv 2305.20050, sec. 2.6).
        """
        if not scored.token_ids:
            return [0.0] * len(scored.scores)
        if self.reading == "last":
            return [float(score) for score in scored.scores[:, -1]]
        if self.reading == "mean":
            return [float(score) for score in scored.scores.mean(-1)]
        steps = torch.sigmoid(scored.scores[:, self.step_ends(scored, completion)])
        ways = {"min": steps.amin(-1), "last": steps[:, -1], "mean": steps.mean(-1), "product": steps.prod(-1)}
        return [float(value) for value in ways[over_steps]]

    def step_ends(self, scored: Scored, completion: Completion) -> list[int]:
        """The places of the tokens that complete the completion's steps."""
        text = text_of(completion) or self.tokenizer.decode(scored.token_ids, skip_special_tokens=True)
        ends = step_ends(steps_of(text), scored.token_ids, self.tokenizer)
        return [end for end in ends if end is not None] or [len(scored.token_ids) - 1]

    def sequence(self, prompt: Prompt, completion: Completion) -> TokenSequence:
        """The tokens of a completion after its prompt; DataError as a call."""
        encoded = encode_demonstration(prompt, completion, self.tokenizer)
        if len(encoded) != 1:
            raise DataError(
                f"the chat template breaks a completion into {len(encoded)} sequences; a reward model reads one"
            )
        return TokenSequence(encoded[0].token_ids, encoded[0].action_mask, Source.TRAJECTORIES, 0)


def text_of(completion: Completion) -> str:
    """Its text: that of its last message, where it is a conversation."""
    return completion if isinstance(completion, str) else content(completion[-1])


def _actions(sequence: TokenSequence) -> Iterator[int]:
    return (token for token, action in zip(sequence.token_ids, sequence.action_mask, strict=True) if action)
