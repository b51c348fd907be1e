"""Recorded trajectories played as if they were live: UI-S1's semi-online rollouts (arXiv 2509.11543, sec. 3.2).

The policy's own turns make its history. While its actions are those of the recording, the recorded observations are
true; where one is not, a patch puts the recorded action into the history and the episode goes on, or it ends.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from posttrain.environments import Environment, Observation, Step, told
from posttrain.environments.recording import Form, GuiForm, Recorded, Recording, TextForm, recording_of
from posttrain.errors import DataError, RecipeError
from posttrain.trajectory import Prompt

Patch = Literal["thought_free", "on_policy_thought", "off_policy_thought"]
Variant = Literal["paper", "code"]
_PATCHES = ("thought_free", "on_policy_thought", "off_policy_thought")


def semi_online(
    *,
    match: Literal["gui", "text"] = "gui",
    patch: Patch = "thought_free",
    patches: int = 1,
    reward: Variant = "paper",
    instructions: bool = True,
) -> Environment:
    """Episodes over recordings: a row's `steps` as AndroidControl's, its `completion` (`posttrain record`) or `answer`.

    match "gui": UI-S1's rules for actions on a screen (`reward.gui`), in <think>...</think><action>JSON</action>;
    "text": the same words, of one kind where the first is the same. A turn earns Eq. 8, or the code's variant of it.

    patch: what stands in the history for a mistaken action: thought_free, the recorded action alone; on_policy_thought,
    with a thought that the policy is asked for, shown the action; off_policy_thought, with the recorded thought.
    patches: how many an episode may have before it ends at the next mistake; -1: any number. A recording is solved
    where every action was the policy's own. instructions: show what each step of AndroidControl is to do (its screens
    are pictures); without, the goal alone. Turns name their step as their state ("step 2 of 7").
    """
    if patch not in _PATCHES:
        raise RecipeError(f"environment semi_online: patch is {patch!r}; allowed: {', '.join(_PATCHES)}")
    if patches < -1:
        raise RecipeError(f"environment semi_online: patches is {patches}; allowed: 0 or more, or -1 for any number")
    form: Form = GuiForm(reward) if match == "gui" else TextForm(reward)
    return _SemiOnline(form, patch, patches, instructions)


@dataclass(frozen=True)
class _SemiOnline:
    form: Form
    patch: Patch
    patches: int
    instructions: bool
    capacity: ClassVar[int | None] = None

    async def reset(self, prompt: Prompt, columns: Mapping[str, Any], seed: int) -> tuple[Observation, _Replay]:
        """The recording's start. DataError where the row holds none, or no thought that the patch wants."""
        recording = recording_of(prompt, columns, self.instructions)
        if self.patch == "off_policy_thought" and any(not step.thought for step in recording.steps):
            raise DataError(
                "environment semi_online: patch is off_policy_thought, and a recorded step has no 'thought'"
            )
        return Observation(recording.opening, recording.tools, state=_named(0, recording)), _Replay(self, recording)

    def close(self) -> None:
        """Nothing is held."""


@dataclass
class _Replay:
    """place: the step that comes next. mistakes: of the policy so far. patching: the policy is asked for a thought."""

    environment: _SemiOnline
    recording: Recording
    place: int = 0
    mistakes: int = 0
    patching: bool = field(default=False)

    async def expert(self) -> str:
        """The recorded action, as the policy would write it."""
        return self._now.said

    async def step(self, action: str) -> Step:
        """Compare with the recording; go on, patch, or end."""
        environment, now = self.environment, self._now
        if self.patching:
            self.patching = False
            return self._go_on(said=environment.form.patched(now, action), masked=True)
        read, match = environment.form.compare(action, now)
        earned = environment.form.reward(action, read, match)
        if match.exact:
            return self._go_on(reward=earned)
        self.mistakes += 1
        if self.place == len(self.recording.steps) - 1 or self.mistakes > environment.patches != -1:
            return Step(reward=earned, terminated=True, solved=False, off_path=True)
        if environment.patch == "on_policy_thought":
            self.patching = True
            return Step(reward=earned, off_path=True, aside=told(environment.form.hint(now)))
        thought = now.thought if environment.patch == "off_policy_thought" else ""
        return self._go_on(reward=earned, said=environment.form.patched(now, thought), off_path=True)

    async def close(self) -> None:
        """Nothing is held."""

    @property
    def _now(self) -> Recorded:
        return self.recording.steps[self.place]

    def _go_on(self, **step: Any) -> Step:
        """To the recording's next step."""
        answer = self._now.answer
        self.place += 1
        over = self.place == len(self.recording.steps)
        solved = self.mistakes == 0 if over else None
        return Step(
            Observation(answer, state=_named(self.place, self.recording)), terminated=over, solved=solved, **step
        )


def _named(place: int, recording: Recording) -> str:
    return f"step {place + 1} of {len(recording.steps)}"
