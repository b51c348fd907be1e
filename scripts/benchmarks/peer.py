"""TRL's side: its trainers' own steps, on batches that they have prepared themselves; sampling is taken out.

A step is `training_step` (loss and backward) on each micro-batch, clipping, the optimiser's and the schedule's step,
as in transformers' training loop. What comes before is not timed: collating, and GRPO's rewards and advantages, which
`_generate_and_score_completions` makes of the given completions.
"""

from __future__ import annotations

from collections.abc import Sequence
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from benchmarks.ours import TRAINING, fresh_model, tokenizer
from benchmarks.workloads import GROUP_SIZE, Scale, split
from posttrain.batch import TokenSequence

_OUTPUT = TemporaryDirectory(prefix="benchmark_")
"""Where trainers would write; it goes when the process does."""


def settings(scale: Scale, mixed: str, **beside: Any) -> dict[str, Any]:
    """Settings of all three trainers: what the other side does too, and no reports."""
    return {
        "output_dir": _OUTPUT.name,
        "use_cpu": not torch.cuda.is_available(),
        "bf16": mixed == "bf16",
        "gradient_checkpointing": scale.recompute,
        "learning_rate": TRAINING.learning_rate,
        "lr_scheduler_type": "constant",
        "max_steps": TRAINING.steps,
        "max_grad_norm": TRAINING.max_grad_norm,
        "optim": "adamw_torch_fused",
        "per_device_train_batch_size": scale.rows[0],
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "save_strategy": "no",
    } | beside


def adapter(scale: Scale) -> Any:
    """peft's config of the adapter, or None."""
    if scale.lora is None:
        return None
    from peft import LoraConfig

    return LoraConfig(
        r=scale.lora, lora_alpha=2 * scale.lora, target_modules="all-linear", lora_dropout=0.0, task_type="CAUSAL_LM"
    )


class Peer:
    """Steps of a TRL trainer; micro-batches by rows."""

    def __init__(self, trainer: Any, sizes: Sequence[int]) -> None:
        trainer.create_optimizer_and_scheduler(TRAINING.steps)
        trainer.model.train()
        trainer.model_wrapped, trainer.optimizer = trainer.accelerator.prepare(trainer.model, trainer.optimizer)
        self.trainer, self.model, self.sizes = trainer, trainer.model, sizes
        self.batches: list[Any] = []
        self.num_items: Any = None

    def use(self, size: int) -> None:
        """Micro-batches of `size` rows, collated by the trainer's own data loader."""
        trainer = self.trainer
        trainer._train_batch_size = size
        loader = trainer.get_train_dataloader()
        self.batches, self.num_items = trainer.get_batch_samples(iter(loader), len(loader), trainer.args.device)
        trainer.current_gradient_accumulation_steps = len(self.batches)

    def step(self) -> None:
        """As transformers' `Trainer` makes it."""
        trainer = self.trainer
        model = trainer.model_wrapped
        for index, batch in enumerate(self.batches):
            trainer.accelerator.gradient_state._set_sync_gradients(index == len(self.batches) - 1)
            trainer.training_step(model, dict(batch), self.num_items)
        trainer._clip_grad_norm(model).item()
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
        model.zero_grad()

    @property
    def optimizer(self) -> Any:
        """torch's, out of accelerate's wrapper."""
        return self.trainer.optimizer.optimizer

    @property
    def trained(self) -> list[Tensor]:
        """In the model's order."""
        return [p for p in self.model.parameters() if p.requires_grad]


class PeerGrpo(Peer):
    """GRPOTrainer; its batch of completions is divided as it divides it, shuffled."""

    def __init__(self, sequences: Sequence[TokenSequence], scale: Scale, mixed: str = "no") -> None:
        import os

        from datasets import Dataset
        from trl import GRPOConfig, GRPOTrainer

        os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
        parts = [split(sequence) for sequence in sequences]
        longest = max(len(completion) for _, completion in parts)
        arguments = settings(
            scale,
            mixed,
            per_device_train_batch_size=len(sequences),
            num_generations=GROUP_SIZE,
            max_completion_length=longest,
            beta=0.0,
        )
        prompts = [{"prompt": str(index)} for index in range(len(sequences))]
        trainer = GRPOTrainer(
            model=fresh_model(scale),
            reward_funcs=lambda completions, **_: [sequence.reward for sequence in sequences],
            args=GRPOConfig(**arguments),
            train_dataset=Dataset.from_list(prompts),
            processing_class=tokenizer(),
            peft_config=adapter(scale),
            rollout_func=lambda *_: {
                "prompt_ids": [prompt for prompt, _ in parts],
                "completion_ids": [completion for _, completion in parts],
                "logprobs": None,
            },
        )
        super().__init__(trainer, [rows for rows in scale.rows if len(sequences) % rows == 0])
        self.whole = trainer._generate_and_score_completions(prompts)
        trainer._prepare_inputs = lambda batch: batch

    def use(self, size: int) -> None:
        """Micro-batches of `size` completions of the one batch that was prepared."""
        from trl.trainer.utils import shuffle_sequence_dict, split_tensor_dict

        number = max(1, len(self.whole["completion_ids"]) // size)
        self.batches = split_tensor_dict(shuffle_sequence_dict(self.whole), number)
        self.trainer.args.steps_per_generation = number
        self.trainer.current_gradient_accumulation_steps = number


def sft_peer(sequences: Sequence[TokenSequence], scale: Scale, mixed: str = "no", *, packed: int | None = None) -> Peer:
    """SFTTrainer without packing, or with its packing into rows of `packed` tokens."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    rows = {"packing": True, "max_length": packed} if packed else {"max_length": None}
    trainer = SFTTrainer(
        model=fresh_model(scale),
        args=SFTConfig(**settings(scale, mixed, **rows)),
        train_dataset=Dataset.from_list([{"input_ids": list(sequence.token_ids)} for sequence in sequences]),
        processing_class=tokenizer(),
        peft_config=adapter(scale),
    )
    return Peer(trainer, [1, 2, 4] if packed else scale.rows)


def dpo_peer(sequences: Sequence[TokenSequence], scale: Scale, mixed: str = "no") -> Peer:
    """DPOTrainer with the reference's logprobs computed in every step; micro-batches in pairs."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    parts = [split(sequence) for sequence in sequences]
    compared = [
        {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}
        for (prompt, chosen), (_, rejected) in zip(parts[0::2], parts[1::2], strict=True)
    ]
    trainer = DPOTrainer(
        model=fresh_model(scale),
        ref_model=None if scale.lora else fresh_model(scale),
        args=DPOConfig(**settings(scale, mixed, max_length=None)),
        train_dataset=Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}]),
        processing_class=tokenizer(),
        peft_config=adapter(scale),
    )
    trainer.train_dataset = Dataset.from_list(compared)  # it would tokenise text; these are tokens
    return Peer(trainer, [rows // 2 for rows in scale.rows if len(compared) % (rows // 2) == 0])
