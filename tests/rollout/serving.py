"""Servers for the tests: real replicas, started once a module and precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from posttrain.config.schema import RolloutSettings
from posttrain.rollout.served_engine import ServedEngine
from posttrain.rollout.server_command import command, environment, flags, write_config
from posttrain.rollout.server_process import ServerProcess

CPU = torch.device("cpu")


def served(**settings: Any) -> RolloutSettings:
    """A recipe's rollout settings, served."""
    kept = {"engine": "vllm", "mode": "served", "dtype": "float32", "batch_tokens": 16_384, "listed_actions": True}
    return RolloutSettings.model_validate(kept | settings)


class Servers:
    """Replicas by what they compute in, and the engines that talk to them."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._running: dict[str, ServerProcess] = {}
        self.engines: list[ServedEngine] = []

    def engine(self, model: Any, **settings: Any) -> ServedEngine:
        """An engine over a replica that is started where there is none of its precision."""
        place = self._directory / f"served-{len(self.engines)}"
        wanted = served(**settings)
        if wanted.dtype not in self._running:
            config = write_config(model.config, type(model).__name__, self._directory / "model")
            log = self._directory / f"{wanted.dtype}.log"
            line = command(config, flags(wanted, model.config, CPU))
            self._running[wanted.dtype] = ServerProcess(line, environment(CPU), log)
            self._running[wanted.dtype].start()
        found = served(**settings, servers=[self._running[wanted.dtype].url])
        self.engines.append(ServedEngine(model, found, CPU, place))
        return self.engines[-1]

    def stop(self) -> None:
        """End them all."""
        for server in self._running.values():
            server.stop()
