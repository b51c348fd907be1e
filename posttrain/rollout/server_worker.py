"""What a vLLM server that is a replica can do beside vLLM's own: say what it computes in, and load published weights.

vLLM mixes `ReplicaWorker` into its workers (`--worker-extension-cls`) and calls its methods over the route
`/collective_rpc`. Loaded by name in the server's processes; nothing else imports it.
"""

from __future__ import annotations

from typing import Any

import torch

from posttrain.rollout.publish import REFUSED, at_hand, read_weights, verified_files
from posttrain.rollout.vllm_weights import replace_weights

if not torch.cuda.is_available() and torch.cpu._is_amx_tile_supported():
    torch.cpu._init_amx()  # a process that has not asked the kernel for AMX dies with an illegal instruction


class ReplicaWorker:
    """Methods that every worker of a replica gets."""

    def posttrain_describe(self) -> dict[str, Any]:
        """The precision it computes in, and its longest sequence in tokens."""
        config: Any = self.model_runner.model_config  # type: ignore[attr-defined] # the worker's
        return {"dtype": str(config.dtype).removeprefix("torch."), "window": config.max_model_len}

    def posttrain_load(self, place: str, digest: str, seconds: str) -> None:
        """Load the version at `place`, a directory or a URL, whose digest this is.

        RuntimeError, with `REFUSED` in front, where that fails; where a file is not as published nothing is changed.
        """
        try:
            with at_hand(place, digest, float(seconds)) as directory:
                replace_weights(self, read_weights(verified_files(directory, digest)))
        except Exception as error:  # shown where the trainer runs
            raise RuntimeError(f"{REFUSED} {type(error).__name__}: {error}") from error
