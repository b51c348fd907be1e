"""The accelerator, and the few collectives that the trainer needs."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from posttrain.config.schema import TrackingSettings, TrainingSettings
from posttrain.errors import RunError, UserError
from posttrain.models.policy import Policy


def make_accelerator(training: TrainingSettings, tracking: TrackingSettings, output: Path) -> Any:
    """An `accelerate.Accelerator` for this process; RunError where it does not see the ranks that were launched.

    UserError for FSDP, which accelerate would leave out without a word where there is no GPU.
    """
    from accelerate import Accelerator, InitProcessGroupKwargs
    from accelerate.utils import DistributedType, ProjectConfiguration

    # Every checkpoint of a model with tied weights would warn of them.
    logging.getLogger("accelerate.utils.other").setLevel(logging.ERROR)
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        raise UserError("the launch file says FSDP; allowed: DeepSpeed, as in recipes/launch/zero3_8gpu.yaml, or DDP")
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    on_cpu = launched > 1 and not torch.cuda.is_available()
    with_deepspeed = os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"
    accelerator = Accelerator(
        cpu=on_cpu and not with_deepspeed,  # said to be on CPU, accelerate leaves DeepSpeed out; unsaid, DDP
        mixed_precision=training.mixed_precision,
        log_with=list(tracking.trackers) or None,
        project_config=ProjectConfiguration(project_dir=str(output), logging_dir=str(output / "trackers")),
        kwargs_handlers=[InitProcessGroupKwargs(backend="gloo")] if on_cpu else [],
    )
    if accelerator.num_processes != launched or (launched > 1 and accelerator.distributed_type == DistributedType.NO):
        raise RunError(f"{launched} ranks were launched but this one sees {accelerator.num_processes}")
    if with_deepspeed:
        # What a recipe says is not said again in a launch file. The batch size is not DeepSpeed's to know.
        config = accelerator.state.deepspeed_plugin.deepspeed_config
        config |= {"gradient_clipping": training.max_grad_norm, "train_micro_batch_size_per_gpu": 1}
    return accelerator


def gather_head(policy: Policy) -> None:
    """Under ZeRO-3, have the output head gathered around the policy's forward and backward, which read it directly."""
    head = policy.model.get_output_embeddings()
    if hasattr(head.weight, "ds_id"):
        import deepspeed

        for parameter in head.parameters():
            deepspeed.zero.register_external_parameter(policy, parameter)


def add_over_ranks(accelerator: Any, values: Tensor) -> Tensor:
    """The sum of `values` over all ranks."""
    if accelerator.num_processes == 1:
        return values
    summed: Tensor = accelerator.reduce(values.to(accelerator.device), reduction="sum")
    return summed.to(values.device)


def of_all_ranks(accelerator: Any, values: list[int]) -> list[int]:
    """The values of every rank, together."""
    if accelerator.num_processes == 1:
        return values
    from accelerate.utils import gather_object

    gathered: list[int] = gather_object(values)
    return gathered


def largest_over_ranks(accelerator: Any, value: int) -> int:
    """The largest `value` of any rank."""
    if accelerator.num_processes == 1:
        return value
    return int(accelerator.gather(torch.tensor([value], device=accelerator.device)).max())
