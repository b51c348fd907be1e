"""One episode in progress: it turns completions into turns, asks the environment, and ends in a trajectory."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from posttrain.config.schema import EpisodeSettings
from posttrain.data.examples import Example
from posttrain.environments import Environment, Episode, Step, TakesTurns, told
from posttrain.errors import PosttrainError, RunError
from posttrain.rollout.choices import allowed_tokens
from posttrain.rollout.conversation import Conversation
from posttrain.rollout.engine import Completion, Request
from posttrain.rollout.seeds import derived_seed
from posttrain.trajectory import EpisodeEnd, Message, StopReason, Trajectory, Turn

_T = TypeVar("_T")


@dataclass(frozen=True)
class Slot:
    """One trajectory to play. occurrence: the how-manieth time its example is in this call.

    given: tokens that the first turn starts with (`rollout.resets`). lines: what is said in the first turns, in place
    of what the policy would say.
    """

    example: Example
    occurrence: int
    sample: int
    given: tuple[int, ...] = ()
    lines: Sequence[str] = ()


class RunningEpisode:
    """The state of one attempt at a slot. `ended` once the environment or a limit ended it, or something failed.

    actions: those that the environment lists where the policy is now.
    """

    def __init__(
        self, slot: Slot, attempt: int, seed: int, temperature: float, limits: EpisodeSettings | None = None
    ) -> None:
        self.slot, self.attempt, self.seed = slot, attempt, seed
        self.limits = EpisodeSettings() if limits is None else limits
        self.trajectory = Trajectory(
            prompt_id=slot.example.id,
            attempt=attempt,
            prompt=slot.example.prompt,
            columns=slot.example.columns,
            temperature=temperature or 1.0,
        )
        self.conversation = Conversation(slot.example.prompt, self.limits.history_turns)
        self._episode: Episode | None = None
        self._state = self._screenshot = ""
        self.actions: tuple[str, ...] = ()
        self._began = time.monotonic()

    @property
    def ended(self) -> bool:
        """Whether nothing more is asked of the policy."""
        return self.trajectory.end is not None

    @property
    def turn_seed(self) -> int:
        """The seed of the next completion's draws."""
        slot = self.slot
        turn = len(self.trajectory.turns)
        return derived_seed(self.seed, slot.example.id, slot.occurrence, slot.sample, self.attempt, turn)

    @property
    def given(self) -> tuple[int, ...]:
        """What the next completion continues beyond its prompt."""
        return () if self.trajectory.turns else self.slot.given

    @property
    def line(self) -> str | None:
        """What is said next whatever the policy would say; None where the policy speaks."""
        num_turns = len(self.trajectory.turns)
        return self.slot.lines[num_turns] if num_turns < len(self.slot.lines) else None

    async def start(self, environment: Environment) -> None:
        """Reset. Every sample and attempt of an example gets the same seed: a group plays one and the same task."""
        example = self.slot.example
        seed = derived_seed(self.seed, example.id, self.slot.occurrence)
        started = await self._guarded(environment.reset(example.prompt, example.columns, seed))
        if started is not None:
            observation, self._episode = started
            self.trajectory.prompt = observation.messages or self.trajectory.prompt
            self.conversation.start(observation)
            self._state, self._screenshot = observation.state, observation.info.get("screenshot", "")
            self.actions = observation.actions

    async def take(self, request: Request, completion: Completion, text: str) -> None:
        """Record the completion of a request and ask the environment for its answer."""
        if completion.error is not None or completion.stop_reason is StopReason.ERROR:
            self._fail(f"engine: {completion.error}")
            return
        turn = Turn(
            request.prompt_ids,
            completion.token_ids,
            completion.logprobs,
            completion.stop_reason,
            completion.policy_version,
            text,
            len(self.given),
            state=self._state,
            screenshot=self._screenshot,
            pictures=request.pictures,
            allowed=self._allowed(request, completion),
        )
        before = self.trajectory.turns
        self.trajectory.turns += (turn,)
        assert self._episode is not None
        episode = self._episode
        answer = episode.take(turn) if isinstance(episode, TakesTurns) else episode.step(text)
        step = await self._guarded(answer)
        if step is None:
            return
        masked = step.masked or (step.invalid is not None and self.limits.invalid == "mask")
        answered = replace(turn, reward=step.reward, invalid=step.invalid, masked=masked, off_path=step.off_path)
        self.trajectory.turns = (*before, answered)
        end = self._end(step)
        if end is not None:
            self.end(end, step.solved)
            return
        if step.anew:
            self.conversation.start(step.observation)
        elif isinstance(self.conversation.prompt, str):
            raise RunError(
                f"the environment goes on after a completion of the plain text prompt {self.trajectory.prompt_id}; "
                "allowed: conversations (set `chat: true` on the source, or let reset return messages)"
            )
        elif step.aside:
            self.conversation.aside, self.actions = step.aside, ()
            return
        else:
            self.conversation.add(text if step.said is None else step.said, messages_of(step))
        if step.invalid is None:
            self._state, self.actions = step.observation.state, step.observation.actions
        self._screenshot = step.observation.info.get("screenshot", "")

    def end(self, end: EpisodeEnd, solved: bool | None = None) -> None:
        """Nothing more is played; where a limit ended it before the environment did, it is not solved."""
        of_environment = end in (EpisodeEnd.TERMINATED, EpisodeEnd.TRUNCATED)
        self.trajectory.end = end
        self.trajectory.outcome = solved if of_environment else False

    async def close(self) -> None:
        """Let the environment free what the episode holds."""
        if self._episode is not None:
            episode, self._episode = self._episode, None
            await self._guarded(episode.close())

    def _allowed(self, request: Request, completion: Completion) -> tuple[tuple[int, ...], ...]:
        """What each token was one of; RunError where one was none of the request's choices."""
        allowed = allowed_tokens(request.choices, completion.token_ids)
        if request.choices and not allowed:
            raise RunError(
                "the sampler drew none of the actions that it was to choose from; allowed: a server that `posttrain "
                "serve` has started for a recipe with rollout.listed_actions"
            )
        return allowed

    def _end(self, step: Step) -> EpisodeEnd | None:
        """Why the episode is over after this step, the environment's reasons before the limits'."""
        limits, trajectory = self.limits, self.trajectory
        reasons = (
            (step.terminated, EpisodeEnd.TERMINATED),
            (step.truncated, EpisodeEnd.TRUNCATED),
            (step.invalid is not None and limits.invalid == "end", EpisodeEnd.INVALID),
            (len(trajectory.turns) >= limits.max_turns, EpisodeEnd.TURNS),
            (trajectory.num_completion_tokens >= (limits.max_tokens or float("inf")), EpisodeEnd.TOKENS),
            (time.monotonic() - self._began >= (limits.max_seconds or float("inf")), EpisodeEnd.SECONDS),
        )
        return next((end for holds, end in reasons if holds), None)

    async def _guarded(self, answer: Awaitable[_T]) -> _T | None:
        """The environment's answer; None, and a failed episode, where it raised anything but an error of ours."""
        began = time.monotonic()
        try:
            return await answer
        except PosttrainError:
            raise
        except Exception as error:  # the environment's code is not ours: its failure is data
            self._fail(f"environment: {type(error).__name__}: {next(iter(str(error).splitlines()), '')}")
            return None
        finally:
            self.trajectory.environment_seconds += time.monotonic() - began

    def _fail(self, cause: str) -> None:
        self.trajectory.error = self.trajectory.error or cause
        self.trajectory.end = EpisodeEnd.ERROR


def messages_of(step: Step) -> Sequence[Message]:
    """The environment's messages; of an invalid action without any, why it was one."""
    messages = step.observation.messages
    if isinstance(messages, str):
        return told(messages)
    return messages or (told(step.invalid) if step.invalid is not None else ())
