"""The accelerator, and the few collectives that the trainer needs."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from posttrain.config.schema import TrackingSettings, TrainingSettings
from posttrain.errors import RunError, UserError
from posttrain.models.policy import Policy
from posttrain.models.scorer import Scorer


def make_accelerator(training: TrainingSettings, tracking: TrackingSettings, output: Path) -> Any:
    """An `accelerate.Accelerator` for this process; RunError where it does not see the ranks that were launched.

    UserError for the first FSDP: its flat parameters know nothing of the head, which is read outside the model.
    """
    from accelerate import Accelerator, InitProcessGroupKwargs
    from accelerate.utils import DistributedType, ProjectConfiguration

    # Every checkpoint of a model with tied weights would warn of them.
    logging.getLogger("accelerate.utils.other").setLevel(logging.ERROR)
    with_fsdp = os.environ.get("ACCELERATE_USE_FSDP") == "true"
    if with_fsdp and os.environ.get("FSDP_VERSION") != "2":
        raise UserError(
            f"the launch file says fsdp_version {os.environ.get('FSDP_VERSION', '1')}; "
            "allowed: 2, as in recipes/launch/fsdp2_8gpu.yaml, DeepSpeed, or DDP"
        )
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    on_cpu = (launched > 1 or with_fsdp) and not torch.cuda.is_available()
    with_deepspeed = os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"
    backend = {"backend": "gloo"} if on_cpu else {}
    deadline = timedelta(seconds=training.collective_timeout_seconds)
    accelerator = Accelerator(
        cpu=on_cpu and not with_deepspeed,  # said to be on CPU, accelerate leaves DeepSpeed out; unsaid, DDP
        mixed_precision=training.mixed_precision,
        log_with=list(tracking.trackers) or None,
        project_config=ProjectConfiguration(project_dir=str(output), logging_dir=str(output / "trackers")),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=deadline, **backend)],
    )
    if accelerator.num_processes != launched or (launched > 1 and accelerator.distributed_type == DistributedType.NO):
        raise RunError(f"{launched} ranks were launched but this one sees {accelerator.num_processes}")
    if with_fsdp:
        _set_fsdp(accelerator, training)
    if with_deepspeed:
        # What a recipe says is not said again in a launch file. The batch size is not DeepSpeed's to know.
        config = accelerator.state.deepspeed_plugin.deepspeed_config
        config |= {"gradient_clipping": training.max_grad_norm, "train_micro_batch_size_per_gpu": 1}
    return accelerator


def _set_fsdp(accelerator: Any, training: TrainingSettings) -> None:
    """Have accelerate shard on CPU too, where it sees plain data parallelism; and keep what is added up in float32.

    accelerate's own mixed precision rounds the outputs, which are logprobs here, and the sums of gradients.
    """
    from accelerate import FullyShardedDataParallelPlugin, PartialState
    from accelerate.utils import DistributedType
    from torch.distributed.fsdp import MixedPrecisionPolicy

    if accelerator.distributed_type == DistributedType.MULTI_CPU:
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()
        PartialState().distributed_type = accelerator.state.distributed_type = DistributedType.FSDP
    computed_in = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(training.mixed_precision)
    precision = MixedPrecisionPolicy(param_dtype=computed_in, reduce_dtype=torch.float32)
    accelerator.state.fsdp_plugin.mixed_precision_policy = None if computed_in is None else precision


@contextmanager
def named_failures(deadline_seconds: float) -> Iterator[None]:
    """Within it, what a collective raises becomes a RunError that says what it means."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.distributed.DistError) and "gloo" not in str(error).lower():
            raise
        rank, num_ranks = (os.environ.get(name, "?") for name in ("RANK", "WORLD_SIZE"))
        raise RunError(
            f"rank {rank} of {num_ranks} lost the others, or waited for one longer than "
            f"training.collective_timeout_seconds ({deadline_seconds:g}): where a rank failed, its own message says "
            f"why; one that is gone without a message was killed. {str(error).splitlines()[0].split('. ')[0]}"
        ) from error


def prepare(accelerator: Any, policy: Policy | Scorer, optimizer: torch.optim.Optimizer) -> tuple[Any, Any]:
    """Policy and optimiser as accelerate wraps them for the ranks.

    FSDP2 gathers a decoder layer at a time; the rest, the head among it, around the policy's forward.
    """
    if accelerator.is_fsdp2:
        accelerator.state.fsdp_plugin.transformer_cls_names_to_wrap = sorted(policy.model._no_split_modules)
    prepared, optimizer = accelerator.prepare(policy, optimizer)
    if accelerator.is_fsdp2 and accelerator.device.type == "cpu":
        prepared.set_force_sum_reduction_for_comms(True)  # gloo cannot average
    _gather_head(policy)
    return prepared, optimizer


def _gather_head(policy: Policy | Scorer) -> None:
    """Under ZeRO-3, have the output head gathered around the policy's forward and backward, which read it directly."""
    head = policy.head
    if hasattr(head.weight, "ds_id"):
        import deepspeed

        for parameter in head.parameters():
            deepspeed.zero.register_external_parameter(policy, parameter)


def spread_of(accelerator: Any) -> str:
    """How weights and optimiser are spread over the ranks: what a checkpoint's files depend on."""
    if accelerator.is_fsdp2:
        return "FSDP2"
    plugin = accelerator.state.deepspeed_plugin
    return "no spread" if plugin is None else f"ZeRO-{plugin.zero_stage}"


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
