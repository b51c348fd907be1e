"""Did the episode achieve its task, as the environment says?"""

from __future__ import annotations


def episode_success(episode_outcome: bool | None) -> float | None:
    """1.0 where the environment says that the task was achieved, 0.0 where not; None where it gives no verdict."""
    return None if episode_outcome is None else float(episode_outcome)
