"""A rollout as a trackio trace: its conversation, its grades, and which policy sampled each turn."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from posttrain.picture import in_words
from posttrain.trainer.step_data import Played
from posttrain.trajectory import Message, Turn


def answer(before: Turn, after: Turn, tokenizer: Any) -> str:
    """What the environment said between two turns, decoded from the tokens that the policy read (`Turn.added`)."""
    said: str = tokenizer.decode(list(after.added(before)), skip_special_tokens=True)
    return said.strip()


def trace(played: Played, step: int, tokenizer: Any) -> Any:
    """A `trackio.Trace`. What an environment said between turns is decoded from the tokens the policy read."""
    import trackio

    trajectory = played.trajectory
    turns = trajectory.turns
    prompt = trajectory.prompt
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [_words(one) for one in prompt]
    said = [answer(before, after, tokenizer) for before, after in pairwise(turns)]
    for number, turn in enumerate(turns):
        messages += [{"role": "user", "content": said[number - 1]}] if number else []
        messages.append({"role": "assistant", "content": turn.text})
    metadata = {
        "step": step,
        "group": played.group,
        "prompt_id": trajectory.prompt_id,
        "attempt": trajectory.attempt,
        "by": "reference" if played.by_reference else "policy",
        "reward": trajectory.reward,
        "rewards": {name: None if value is None else float(value) for name, value in trajectory.rewards.items()},
        "solved": trajectory.solved,
        "turns": [
            {
                "prompt_tokens": len(turn.prompt_ids),
                "completion_tokens": len(turn.completion_ids),
                "policy_version": turn.policy_version,
                "stop_reason": str(turn.stop_reason),
            }
            for turn in turns
        ],
        "dropped": None if trajectory.dropped is None else str(trajectory.dropped),
        "error": trajectory.error,
        "status": "error" if trajectory.error else "ok",
        "duration_ms": 1000 * trajectory.generation_seconds,
    }
    return trackio.Trace(messages, metadata)


def _words(message: Message) -> dict[str, Any]:
    """A message with a mark in place of each image."""
    content = message.get("content")
    return {**message, "content": in_words(content) if isinstance(content, list | tuple) else content}
