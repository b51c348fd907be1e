"""Recorded trajectories, and how a policy's action is compared with theirs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from posttrain.environments import told
from posttrain.errors import DataError
from posttrain.reward.gui import NO_MATCH, SCREEN, Match, eq8, has_form, match_action, read_action
from posttrain.trajectory import Message, Prompt

GUI_PROMPT = """You act on the screen of a phone. Answer each step with
<think>what you think</think><action>one JSON object</action>
Actions: {"action": "click", "coordinate": [x, y]}, long_press, swipe (coordinate, coordinate2), type, open and answer
(text), system_button (button), wait (time), terminate (status)."""


@dataclass(frozen=True)
class Recorded:
    """One step: what the expert said, what of it is compared, its thought, and what was said after it."""

    said: str
    expected: Any
    thought: str
    answer: tuple[Message, ...]


@dataclass(frozen=True)
class Recording:
    """An episode: what the policy reads first, and the steps."""

    opening: tuple[Message, ...]
    steps: tuple[Recorded, ...]
    tools: tuple[Mapping[str, Any], ...] = ()


class Form(Protocol):
    """How turns are written."""

    def compare(self, said: str, step: Recorded) -> tuple[bool, Match]:
        """Whether an action could be read, and how it fits the recorded one."""
        ...

    def reward(self, said: str, read: bool, match: Match) -> float:
        """What a turn earns, Eq. 8."""
        ...

    def patched(self, step: Recorded, thought: str) -> str:
        """The recorded action with a thought before it, or none."""
        ...

    def hint(self, step: Recorded) -> str:
        """The question for a thought that leads to the recorded action."""
        ...


@dataclass(frozen=True)
class GuiForm:
    """<think>...</think><action>JSON</action>, compared by `reward.gui.match_action`."""

    variant: Literal["paper", "code"]

    def compare(self, said: str, step: Recorded) -> tuple[bool, Match]:
        """By UI-S1's rules."""
        action = read_action(said)
        if action is None:
            return False, NO_MATCH
        return True, match_action(action, step.expected, step.expected.get("screen", SCREEN))

    def reward(self, said: str, read: bool, match: Match) -> float:
        """With the tags as the format."""
        return eq8(read and has_form(said), read, match, self.variant)

    def patched(self, step: Recorded, thought: str) -> str:
        """The tags, the thought's empty without one."""
        _, _, action = step.said.partition("<action>")
        return f"<think>{_thought(thought)}</think><action>{action}"

    def hint(self, step: Recorded) -> str:
        """Shows the action."""
        return f"The right action is {step.said.partition('<action>')[2].removesuffix('</action>')}. Think why:"


@dataclass(frozen=True)
class TextForm:
    """Plain words, after a thought that ends with </think> where there is one."""

    variant: Literal["paper", "code"]

    def compare(self, said: str, step: Recorded) -> tuple[bool, Match]:
        """The same words; of one kind where the first is the same."""
        own, other = _spoken(said).lower().split(), _spoken(str(step.expected)).lower().split()
        return bool(own), Match(own[:1] == other[:1] != [], own == other)

    def reward(self, said: str, read: bool, match: Match) -> float:
        """Saying something is the format."""
        return eq8(read, read, match, self.variant)

    def patched(self, step: Recorded, thought: str) -> str:
        """The action, after the thought where there is one."""
        thought = _thought(thought)
        return f"<think>{thought}</think>{_spoken(step.said)}" if thought else _spoken(step.said)

    def hint(self, step: Recorded) -> str:
        """Shows the action."""
        return f"The right action is {_spoken(step.said)}. Think why:"


def recording_of(prompt: Prompt, columns: Mapping[str, Any], instructions: bool) -> Recording:
    """The recording in a row. DataError where it holds none."""
    steps, completion = columns.get("steps"), columns.get("completion")
    if steps:
        return _android(columns, steps, instructions)
    if isinstance(completion, Sequence) and not isinstance(completion, str) and not isinstance(prompt, str):
        return _conversation(prompt, completion, columns)
    answer = completion or columns.get("answer")
    if isinstance(answer, str) and answer:
        opening = told(prompt) if isinstance(prompt, str) else tuple(prompt)
        return Recording(opening, (Recorded(answer, answer, _thought_of(answer), ()),))
    raise DataError(
        "environment semi_online: the row holds no recording; allowed: 'steps' as AndroidControl's, 'completion', "
        "messages as `posttrain record` writes them, or 'answer', a text"
    )


def _android(columns: Mapping[str, Any], steps: Sequence[Mapping[str, Any]], instructions: bool) -> Recording:
    """AndroidControl's row: goal, and steps with action_content, check_options and step_instruction."""
    screen = tuple(columns.get("screen_size") or SCREEN)
    try:
        shown = [f"Step {n}: {one['step_instruction']}" if instructions else f"Step {n}" for n, one in _numbered(steps)]
        answers = [*(told(text) for text in shown[1:]), ()]
        recorded = tuple(
            Recorded(
                f"<think>{_thought(one.get('thought'))}</think><action>{json.dumps(one['action_content'])}</action>",
                {**one["check_options"], "screen": screen},
                one.get("thought") or "",
                answer,
            )
            for one, answer in zip(steps, answers, strict=True)
        )
        opening = ({"role": "system", "content": GUI_PROMPT}, *told(f"{columns['goal']}\n{shown[0]}"))
    except (KeyError, TypeError) as error:
        raise DataError(
            f"environment semi_online: not a recording of AndroidControl ({{goal, steps: [{{action_content, "
            f"check_options, step_instruction}}]}}): {type(error).__name__}: {error}"
        ) from error
    return Recording(opening, recorded)


def _numbered(steps: Sequence[Mapping[str, Any]]) -> list[tuple[int, Mapping[str, Any]]]:
    return list(enumerate(steps, start=1))


def _conversation(prompt: Sequence[Message], completion: Sequence[Message], columns: Mapping[str, Any]) -> Recording:
    """A recorded conversation: each assistant message is a step, what follows it its answer."""
    found: list[tuple[str, list[Message]]] = []
    for message in completion:
        if message["role"] == "assistant":
            found.append((str(message["content"]), []))
        elif not found:
            raise DataError("environment semi_online: a recording begins with the expert's message, not with another")
        else:
            found[-1][1].append(message)
    steps = tuple(Recorded(said, said, _thought_of(said), tuple(answer)) for said, answer in found)
    if not steps:
        raise DataError("environment semi_online: a recording has no message of the expert")
    return Recording(tuple(prompt), steps, tuple(columns.get("tools") or ()))


def _spoken(text: str) -> str:
    """What is said after the thought."""
    return text.rpartition("</think>")[2].strip()


def _thought_of(text: str) -> str:
    return text.rpartition("</think>")[0].replace("<think>", "").strip()


def _thought(text: str | None) -> str:
    """A thought without the tags that would end it early."""
    return (text or "").replace("<think>", "").replace("</think>", "").strip()
