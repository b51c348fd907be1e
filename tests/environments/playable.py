"""A counter that lives in a worker process, and can go wrong in every way."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping
from typing import Any

from posttrain.environments import Observation, Step, told
from posttrain.errors import DataError


class Counter:
    def __init__(self, *, start: int = 0) -> None:
        self.count = start
        self.helper: subprocess.Popen[bytes] | None = None

    def reset(self, columns: Mapping[str, Any], seed: int) -> Observation:
        if columns.get("bad"):
            raise DataError("the row is bad")
        self.count += seed
        return Observation(told(f"count {self.count}"), info={"process": os.getpid()})

    def step(self, action: str) -> Step:
        print("printed by the game")
        if action == "hang":
            time.sleep(1000)
        if action == "die":
            os._exit(7)
        if action == "raise":
            raise IndexError("pop from\nempty list")
        if action == "helper":
            self.helper = subprocess.Popen(["sleep", "1000"], start_new_session=True)
            return Step(info={"helper": self.helper.pid})
        self.count += 1
        return Step(Observation(told(f"count {self.count}")), reward=1.0, terminated=action == "end", solved=True)

    def expert(self) -> str:
        return "end"

    def close(self) -> None:
        if self.helper is not None:
            self.helper.kill()


class Fragile:
    """An episode of one step. Rows whose task is "broken" fail at it: their process dies, or their code raises."""

    def reset(self, columns: Mapping[str, Any], seed: int) -> Observation:
        self.columns = columns
        return Observation(told("1 + 1 = "))

    def step(self, action: str) -> Step:
        if self.columns["task"] == "broken":
            if self.columns["seed"] % 2:
                os._exit(7)
            raise IndexError("pop from empty list")
        return Step(terminated=True, solved=action[:1] < "5")

    def close(self) -> None:
        """Nothing is held."""


class Broken:
    def __init__(self) -> None:
        pass
