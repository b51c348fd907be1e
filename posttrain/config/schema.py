"""The recipe's schema: closed models, at most three levels deep.

A part that a catalogue holds (an algorithm, a reward, an environment, a benchmark) is written as `{name: ..., its own
settings}`; those settings are checked against the part's signature, which is their schema.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

Decay = Annotated[float, Field(ge=0, lt=1)]


class Closed(BaseModel):
    """A model that rejects keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Named(BaseModel):
    """The name of a catalogue's member; every further key is one of its settings."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)
    name: str

    @property
    def settings(self) -> dict[str, Any]:
        """The further keys."""
        return dict(self.__pydantic_extra__ or {})


class RewardSettings(Named):
    """A reward, its weight in the sum, and whether its full mark (1.0) is what "solved" means.

    The first reward is the outcome unless another says so.
    """

    weight: float = 1.0
    outcome: bool = False


class EvaluationSettings(Named):
    """A benchmark run every `every_steps` steps of training (0: only before and after), on `limit` of its items.

    Before the first and after the last step it always runs.
    """

    every_steps: NonNegativeInt = 0
    limit: PositiveInt | None = None
    samples: PositiveInt | None = None


class ModelSettings(Closed):
    """The policy: a hub id or directory (`path`), or an architecture to initialise from scratch (`config`)."""

    path: str | None = None
    config: dict[str, Any] | None = None
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    attention: str | None = None
    gradient_checkpointing: bool = False


class LoraSettings(Closed):
    """A LoRA adapter (peft) in place of training all weights; the reference is then the same model without it.

    alpha: the adapter's scale is alpha / rank (default: twice the rank). target_modules: names of linear layers, or
    all-linear. dora: weight-decomposed (arXiv 2402.09353). rank_stabilised: scale alpha / sqrt(rank) (2312.03732).
    """

    rank: PositiveInt = 16
    alpha: PositiveInt | None = None
    dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: list[str] = Field(default_factory=lambda: ["all-linear"])
    dora: bool = False
    rank_stabilised: bool = False


class TeacherSettings(Closed):
    """The frozen model that a distillation imitates: a hub id or directory (`path`) with the policy's tokenizer.

    config: an architecture in place of a path; its random weights teach nothing, but show what a run costs.
    """

    path: str | None = None
    config: dict[str, Any] | None = None
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32"


class CriticSettings(Closed):
    """The second model that an algorithm trains beside the policy: PPO's critic, OREAL's token reward model.

    path, revision: the causal language model whose decoder it starts from (default: the policy's start). learning_rate
    and max_grad_norm are its own (0 does not clip; DeepSpeed clips both models' gradients as one, at training's norm);
    schedule and optimiser are training's. warmup_steps: the run's first steps, in which it alone learns: the policy
    does not change at all.
    """

    path: str | None = None
    revision: str | None = None
    learning_rate: NonNegativeFloat = 1e-5
    max_grad_norm: NonNegativeFloat = 1.0
    warmup_steps: NonNegativeInt = 0


class TokenizerSettings(Closed):
    """A hub id or directory (default: the model's), or `characters`: one token a character, with a chat template."""

    path: str | None = None
    revision: str | None = None
    chat_template: str | None = None


class SourceSettings(Closed):
    """Where rows come from, and what they mean.

    path: a hub dataset id, a local .jsonl/.json/.csv/.parquet file, or `reasoning_gym`; for trajectories also a run's
    directory, whose rollouts/ are read. name, split, revision: the hub's. config: settings of a reasoning-gym dataset
    (`dataset: chain_sum, size: 1000, seed: 1, ...`). columns: our name -> the file's name, "column.key" within an
    object. template: a format string over the row's columns that makes the prompt. system: a system message in front,
    or "" to drop the row's own. chat: plain text becomes a conversation. weight: share in the mixture. on_bad_row: stop
    or skip.
    """

    path: str
    name: str | None = None
    split: str = "train"
    revision: str | None = None
    config: dict[str, Any] = Field(default_factory=dict)
    columns: dict[str, str] = Field(default_factory=dict)
    template: str | None = None
    system: str | None = None
    chat: bool = False
    limit: PositiveInt | None = None
    weight: PositiveFloat = 1.0
    on_bad_row: Literal["error", "skip"] = "error"


class RolloutSettings(Closed):
    """How completions are sampled and graded.

    updates: optimiser steps made from one rollout phase (a window holds updates x prompts_per_step prompts).
    deadline_seconds, memory_bytes: what one reward call may use. max_failure_rate: share of ungraded trajectories in
    a window above which the run stops. max_draws: how often a step's prompts are drawn, those again whose rollouts all
    get the same outcome (dynamic sampling; 1: once). attempts: how often a failed trajectory is sampled. batch_tokens:
    tokens of prompt and completion that the engine holds at once.

    mode: where the sampler runs: colocated, in the trainer's process. memory_fraction: the share of the device's memory
    for vLLM's weights and cache (default: a cache of batch_tokens). max_model_len: vLLM's longest sequence (default:
    the model's window). sleep: what vLLM frees while the trainer updates, on CUDA: 0 nothing, 1 its cache, with its
    weights moved to the host, 2 both. max_mismatch: mean difference of sampler's and trainer's logprobs (nats) on the
    canary above which the run stops (default: a multiple of the measured noise of the sampler's precision).
    """

    engine: Literal["transformers", "vllm"] = "transformers"
    mode: Literal["colocated"] = "colocated"
    memory_fraction: float | None = Field(default=None, gt=0, le=1)
    max_model_len: PositiveInt | None = None
    sleep: Literal[0, 1, 2] = 0
    max_mismatch: PositiveFloat | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    group_size: PositiveInt = 8
    temperature: PositiveFloat = 1.0
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: NonNegativeInt = 0
    max_tokens: PositiveInt = 512
    updates: PositiveInt = 1
    max_draws: PositiveInt = 1
    batch_tokens: PositiveInt = 262_144
    attempts: PositiveInt = 2
    reward_workers: PositiveInt = 2
    deadline_seconds: PositiveFloat = 10.0
    memory_bytes: PositiveInt = 2 << 30
    max_failure_rate: float = Field(default=0.5, ge=0, le=1)


class TrainingSettings(Closed):
    """The optimiser and its steps.

    prompts_per_step: prompts (or demonstrations, where there are no rollouts) in one optimiser step, and as many pairs
    of preferences where they are read; a mixture of unconnected demonstrations and rollouts adds
    demonstrations_per_step. tokens_per_microbatch: tokens of one forward
    pass; everything else is derived. warmup_steps: of the schedule. max_grad_norm: 0 does not clip.
    max_skipped_steps: this many non-finite gradients in a row stop the run.
    """

    steps: PositiveInt = 100
    prompts_per_step: PositiveInt = 32
    demonstrations_per_step: NonNegativeInt = 0
    learning_rate: NonNegativeFloat = 1e-6
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: NonNegativeInt = 0
    weight_decay: NonNegativeFloat = 0.0
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    epsilon: PositiveFloat = 1e-8
    max_grad_norm: NonNegativeFloat = 1.0
    tokens_per_microbatch: PositiveInt = 16_384
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    max_length: PositiveInt | None = None
    max_skipped_steps: PositiveInt = 10


class CheckpointSettings(Closed):
    """A checkpoint every `every_steps` steps (0: only on a signal and at the end), the newest `keep` kept."""

    every_steps: NonNegativeInt = 50
    keep: PositiveInt = 2


class TrackingSettings(Closed):
    """Trackers beside metrics.jsonl, and how many groups of each rollout phase are kept to read."""

    trackers: list[Literal["tensorboard", "wandb", "trackio"]] = Field(default_factory=list)
    project: str = "posttrain"
    groups_per_step: NonNegativeInt = 4


class Recipe(Closed):
    """One run, whole. acknowledge: names of warnings that the run goes on in spite of (`config.warnings`)."""

    model: ModelSettings
    tokenizer: TokenizerSettings = TokenizerSettings()
    lora: LoraSettings | None = None
    teacher: TeacherSettings | None = None
    critic: CriticSettings = CriticSettings()
    algorithm: Named
    prompts: list[SourceSettings] = Field(default_factory=list)
    demonstrations: list[SourceSettings] = Field(default_factory=list)
    preferences: list[SourceSettings] = Field(default_factory=list)
    trajectories: list[SourceSettings] = Field(default_factory=list)
    environment: Named = Named(name="single_turn")
    rewards: list[RewardSettings] = Field(default_factory=list)
    rollout: RolloutSettings = RolloutSettings()
    training: TrainingSettings = TrainingSettings()
    evaluation: EvaluationSettings | None = None
    checkpoint: CheckpointSettings = CheckpointSettings()
    tracking: TrackingSettings = TrackingSettings()
    acknowledge: list[str] = Field(default_factory=list)
    seed: NonNegativeInt = 0
