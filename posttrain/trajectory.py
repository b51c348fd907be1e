"""What a rollout leaves behind: messages, turns of sampled tokens, trajectories, and groups of one prompt.

Tokens are stored as they were sampled and never re-tokenised. A failed rollout is data: its `reward` is None
("ungraded"), never 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from posttrain.picture import Pictures

Message = Mapping[str, Any]
"""A chat message as transformers' templates take it: {"role": ..., "content": ..., maybe "tool_calls": ...}.

A content is text, or a list of parts: {"type": "text", "text": ...} and, as OpenAI writes images,
{"type": "image_url", "image_url": {"url": "data:image/png;base64,..."}}.
"""

Prompt = str | tuple[Message, ...]
"""Plain text (tokenised as it is) or a conversation (rendered with the tokenizer's chat template)."""


_LEAD = 2
"""Tokens before a completion that tell where it begins: the end of a generation prompt."""


class StopReason(StrEnum):
    """Why a turn ended."""

    STOP = "stop"  # the policy sampled a stop token
    LENGTH = "length"  # max_tokens or the model's window was reached
    ERROR = "error"  # engine or environment failed


class EpisodeEnd(StrEnum):
    """Why an episode ended. All but ERROR are outcomes of the policy's play, and graded."""

    TERMINATED = "terminated"  # the environment: the task is over
    TRUNCATED = "truncated"  # the environment: cut off
    TURNS = "turns"  # budget: episode.max_turns
    TOKENS = "tokens"  # budget: episode.max_tokens, or the conversation has filled the model's window
    SECONDS = "seconds"  # budget: episode.max_seconds
    INVALID = "invalid"  # the policy's action could not be carried out, and the recipe ends the episode there
    ERROR = "error"  # engine or environment failed


class Dropped(StrEnum):
    """Why nothing was trained on a trajectory."""

    ALIKE = "alike"  # dynamic sampling drew another prompt: all of its group ended alike
    STALE = "stale"  # sampled by a policy older than the recipe allows
    UNUSED = "unused"  # it makes no training sequence: it failed, or no pair of rollouts has it


@dataclass(frozen=True)
class Turn:
    """One completion of the policy and the exact tokens that it continued.

    prompt_ids: every token before the completion. completion_ids, logprobs: the sampled tokens and their
    log-probabilities in nats under the sampling distribution (behavior_logprobs), same length. text: the completion
    decoded without special tokens. num_given: how many of the last prompt_ids were taken from a demonstration's answer
    (`rollout.resets`); their text is part of `text`.

    What the environment said of the action: reward, None where it gave none; state, the name of the state that the
    action was taken in, "" where it has none; invalid, why the action could not be carried out, None where it was;
    screenshot, a picture of what the action was taken in, as a data URI, "" where none was kept.
    masked: the turn is context only, its tokens are not trained on. off_path: what follows is not its consequence,
    because the conversation went on with another action in its place. pictures: the spans of prompt_ids that are
    images. allowed: the tokens that each of completion_ids was one of (`rollout.listed_actions`); (): any.
    """

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    stop_reason: StopReason
    policy_version: int
    text: str
    num_given: int = 0
    reward: float | None = None
    state: str = ""
    invalid: str | None = None
    masked: bool = False
    screenshot: str = ""
    off_path: bool = False
    pictures: Pictures = ()
    allowed: tuple[tuple[int, ...], ...] = ()

    def added(self, before: Turn) -> tuple[int, ...]:
        """The tokens of this prompt that were not there when `before` was sampled: what an environment said in between.

        Where the template rewrites the turn before, what it made of it comes first. Where the prompt begins otherwise
        (`episode.history_turns`), they are what follows the completion, behind the end of its generation prompt (an
        observation may have the same words), or the whole prompt without it.
        """
        for known in (before.prompt_ids + before.completion_ids, before.prompt_ids):
            if self.prompt_ids[: len(known)] == known != self.prompt_ids:
                return self.prompt_ids[len(known) :]
        said = before.prompt_ids[-_LEAD:] + before.completion_ids
        ends = range(len(self.prompt_ids), len(said) - 1, -1) if before.completion_ids else ()
        return self.prompt_ids[next((end for end in ends if self.prompt_ids[end - len(said) : end] == said), 0) :]


@dataclass
class Trajectory:
    """One episode: what was said, what was sampled, and how it was graded.

    columns: the data row that the prompt came from (rewards read their columns from it). end: why the episode ended.
    outcome: the environment's own verdict, whether the task was achieved; None where it has none. rewards: each named
    reward, None where it failed. reward: their weighted sum, None where any failed ("ungraded"). shaping: the part of
    it that says nothing about success; filters and pass rates do not read it. turn_rewards: how that sum is spread over
    the turns, where a reward says so; None: all of it lies at the last. solved: whether the outcome reward reached its
    full mark. error: the cause of a failure, in one line. dropped: why nothing is trained on it, where so.
    generation_seconds, environment_seconds, grading_seconds: that the calls took which it was part of; they do not
    count in comparisons.
    """

    prompt_id: str
    attempt: int
    prompt: Prompt
    columns: Mapping[str, Any]
    turns: tuple[Turn, ...] = ()
    temperature: float = 1.0
    end: EpisodeEnd | None = None
    outcome: bool | None = None
    rewards: dict[str, float | None] = field(default_factory=dict)
    reward: float | None = None
    shaping: float | None = None
    turn_rewards: tuple[float, ...] | None = None
    solved: bool | None = None
    error: str | None = None
    dropped: Dropped | None = None
    generation_seconds: float = field(default=0.0, compare=False)
    environment_seconds: float = field(default=0.0, compare=False)
    grading_seconds: float = field(default=0.0, compare=False)

    @property
    def completion(self) -> str:
        """The text of the last turn (empty where the episode failed before one)."""
        return self.turns[-1].text if self.turns else ""

    @property
    def stop_reason(self) -> StopReason:
        """Why the last turn ended; ERROR where there is none."""
        return self.turns[-1].stop_reason if self.turns else StopReason.ERROR

    @property
    def num_completion_tokens(self) -> int:
        """Number of tokens the policy sampled, over all turns."""
        return sum(len(turn.completion_ids) for turn in self.turns)

    @property
    def num_invalid(self) -> int:
        """Number of turns whose action could not be carried out."""
        return sum(turn.invalid is not None for turn in self.turns)


@dataclass(frozen=True)
class Group:
    """All trajectories of one prompt; statistics such as a group's mean reward run over the graded ones."""

    prompt_id: str
    trajectories: tuple[Trajectory, ...]

    @property
    def num_graded(self) -> int:
        """How many of the trajectories have a reward."""
        return sum(trajectory.reward is not None for trajectory in self.trajectories)

    @property
    def num_solved(self) -> int:
        """How many of the graded trajectories are solved."""
        return sum(trajectory.solved is True for trajectory in self.trajectories)
