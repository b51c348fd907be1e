"""An environment of TRL's kind."""

from __future__ import annotations


class Counter:
    """Counts to the row's goal."""

    def reset(self, goal: int = 2, **row: object) -> str | None:
        self._count, self._goal = 0, goal
        return None if row.get("silent") else f" Count to {goal}."

    def add(self, number: int) -> str:
        """Add a number.

        Args:
            number: What to add, at least 1.
        """
        if number < 1:
            raise ValueError(f"{number} is below 1")
        self._count += number
        return f"Now {self._count}."

    async def look(self) -> int:
        """Look at the count."""
        return self._count

    def get_reward(self) -> float:
        return float(self._count == self._goal)


class Unrewarded:
    """Has no tool that a schema could be made of."""

    def reset(self) -> None:
        return None

    def act(self, what):  # type: ignore[no-untyped-def]
        return what


class Nothing:
    """Is no environment."""
