"""The recipe's schema: closed models, at most three levels deep.

A part that a catalogue holds (an algorithm, a reward, an environment, a benchmark) is written as `{name: ..., its own
settings}`; those settings are checked against the part's signature, which is their schema.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

Decay = Annotated[float, Field(ge=0, lt=1)]

Correction = Literal[
    "none",
    "token_truncate",
    "token_mask",
    "sequence_truncate",
    "sequence_mask",
    "geometric_truncate",
    "geometric_mask",
]


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

    The first reward that is no shaping is the outcome unless another says so. shaping: it is trained on, and no filter
    and no pass rate reads it. gate: another reward of the list; where that has not its full mark, this one is 0 and is
    not called. deadline_seconds: of one call (default: what its file says, else rollout.deadline_seconds).
    """

    weight: float = 1.0
    outcome: bool = False
    shaping: bool = False
    gate: str | None = None
    deadline_seconds: PositiveFloat | None = None


class BenchmarkSettings(Named):
    """A benchmark on the first `limit` of its items, with `samples` completions of each (None: its own number).

    As `final_evaluation`: played once, after the last step, with the weights of the step that `evaluation` found best.
    """

    limit: PositiveInt | None = None
    samples: PositiveInt | None = None


class EvaluationSettings(BenchmarkSettings):
    """A benchmark run every `every_steps` steps of training (0: only before and after).

    Before the first and after the last step it always runs. keep_best: write the weights of the step with the highest
    pass rate to `best/`; a `final_evaluation` does so in any case.
    """

    every_steps: NonNegativeInt = 0
    keep_best: bool = False


class ModelSettings(Closed):
    """The policy: a hub id or directory (`path`), or an architecture to initialise from scratch (`config`).

    gradient_checkpointing: keep the inputs of the layers alone for the backward pass, and compute the rest again.
    activation_offload: keep what the backward pass reads on the host (on CUDA; elsewhere it is there already).
    quantization: the frozen weights under a LoRA adapter in 4 bits (nf4, arXiv 2305.14314).
    compile: the decoder's layers by torch.compile: a minute at the start, faster steps; for a GPU.
    freeze_vision: of a model that reads images, train the language model alone (default: true).
    """

    path: str | None = None
    config: dict[str, Any] | None = None
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    attention: str | None = None
    gradient_checkpointing: bool = False
    activation_offload: bool = False
    quantization: Literal["nf4"] | None = None
    compile: bool = False
    freeze_vision: bool | None = None


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


class ReferenceSettings(Closed):
    """The frozen copy that rollouts are measured against. offload: on the host, but while it scores."""

    offload: bool = False


class CriticSettings(Closed):
    """The second model that an algorithm trains beside the policy: PPO's critic, OREAL's token reward model.

    path, revision: the causal language model whose decoder it starts from (default: the policy's start). learning_rate
    and max_grad_norm are its own (0 does not clip; DeepSpeed clips both models' gradients as one, at training's norm);
    schedule and optimiser are training's. warmup_steps: the run's first steps, in which it alone learns: the policy
    does not change at all. So a critic gets used to the rollouts of a policy that was trained on data, before that
    policy moves and without the data (warm-start RL, arXiv 2412.07762: recipe tiny/warm_start).
    """

    path: str | None = None
    revision: str | None = None
    learning_rate: NonNegativeFloat = 1e-5
    max_grad_norm: NonNegativeFloat = 1.0
    warmup_steps: NonNegativeInt = 0


class TokenizerSettings(Closed):
    """A hub id or directory (default: the model's), or one for tiny models, with a chat template.

    path: `characters` has one token a character; `bpe` learns at most `vocabulary` byte pairs from the texts of
    `corpus`, a .jsonl file such as the run's demonstrations.
    """

    path: str | None = None
    revision: str | None = None
    chat_template: str | None = None
    corpus: str | None = None
    vocabulary: PositiveInt = 1024


class SourceSettings(Closed):
    """Where rows come from, and what they mean.

    path: a hub dataset id, a local .jsonl/.json/.csv/.parquet file, `reasoning_gym`, or `tasks` for an environment that
    makes its own; for trajectories also a run's directory: exactly the tokens of its rollouts are trained on (or, where
    it stored none, the texts of its rollouts/). name, split, revision: the hub's. config: settings of a reasoning-gym
    dataset (`dataset: chain_sum, size: 1000, seed: 1, ...`) or of tasks (`size: 600, seed: 0, ...`; `data.tasks`).
    columns: our name -> the file's name, "column.key" within an object. template: a format string over the row's
    columns that makes the prompt. system: a system message in front, or "" to drop the row's own. chat: plain text
    becomes a conversation. weight: share in the mixture. on_bad_row: stop or skip.
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


class CurriculumSettings(Closed):
    """Which prompts rollouts start from, by how often the policy solves them (without this section: all, in turn).

    strategy: how prompts are drawn by their running pass rate: `buckets` gives the rates between the `bounds` one of
    the `weights` each (OREAL's, arXiv 2502.06781), `target` prefers rates near `target`, on a bell curve of `width`.
    exploration: the share of draws that goes to prompts without an estimate yet. decay: what is left of a prompt's
    former counts when its next rollouts come.

    recorded_run, recorded_column: pass rates known before training: of a former run's rollouts (its directory), or a
    column of the prompts. Prompts outside of min_pass_rate to max_pass_rate are left out; the others start with theirs.
    """

    strategy: Literal["buckets", "target"] | None = None
    bounds: list[float] = Field(default_factory=lambda: [0.2, 0.4, 0.6, 0.8])
    weights: list[NonNegativeFloat] = Field(default_factory=lambda: [6.0, 4.0, 4.0, 2.0, 0.0])
    target: float = Field(default=0.5, ge=0, le=1)
    width: PositiveFloat = 0.2
    exploration: float = Field(default=0.2, ge=0, le=1)
    decay: float = Field(default=0.5, ge=0, le=1)
    recorded_run: str | None = None
    recorded_column: str | None = None
    min_pass_rate: float = Field(default=0.0, ge=0, le=1)
    max_pass_rate: float = Field(default=1.0, ge=0, le=1)


class ServedSettings(Closed):
    """vLLM in processes of their own (`mode: served`): replicas that all hold the policy.

    servers: the addresses of replicas that were started elsewhere (`posttrain serve`). replicas: in their place, how
    many the run starts and restarts itself, on this machine. replica_devices: for each of those its CUDA devices, as in
    "2,3". server_arguments: further flags of vLLM for them. server_requests: most requests in flight to one replica.

    weights_transfer: how weights get there: files (in a directory that trainer and replicas both see) or http (the same
    files, fetched from the trainer's main process) or nccl (from the main rank's GPU to theirs; not run yet: see
    `rollout.served_nccl`). weights_directory: where files are written (default: weights/ in the run's directory).

    startup_seconds: how long a replica may take until it first answers. request_seconds: a completion, before it is
    asked of another replica. sync_seconds: loading new weights. health_seconds: a sign of life. recovery_seconds: how
    long requests wait where no replica is left. max_restarts: of one replica, before it is given up.
    """

    servers: list[str] = Field(default_factory=list)
    replicas: PositiveInt | None = None
    replica_devices: list[str] = Field(default_factory=list)
    server_arguments: list[str] = Field(default_factory=list)
    server_requests: PositiveInt = 256
    weights_transfer: Literal["files", "http", "nccl"] = "files"
    weights_directory: str | None = None
    startup_seconds: PositiveFloat = 600.0
    request_seconds: PositiveFloat = 600.0
    sync_seconds: PositiveFloat = 300.0
    health_seconds: PositiveFloat = 30.0
    recovery_seconds: PositiveFloat = 120.0
    max_restarts: NonNegativeInt = 3


class RolloutSettings(ServedSettings):
    """How completions are sampled and graded.

    updates: optimiser steps made from one rollout phase (a window holds updates x prompts_per_step prompts).
    deadline_seconds, memory_bytes: what one reward call may use. max_failure_rate: share of ungraded trajectories in
    a window above which the run stops. max_draws: how often a step's prompts are drawn, those again whose rollouts all
    get the same outcome (dynamic sampling; 1: once). attempts: how often a failed trajectory is sampled. batch_tokens:
    tokens of prompt and completion that the engine holds at once.

    max_staleness: how many rollout phases are played ahead: phase w is sampled by the policy as it was before phase
    w - max_staleness, while the trainer updates (0: by today's, and each waits for the other). old_logprobs: where
    ratios begin: trainer, at the policy before the update, or sampler, at what it reported. correction: importance
    weights pi_old / pi_behavior on the rollouts, bounded by correction_cap (`estimator.importance`); auto:
    token_truncate where max_staleness is above 0, the engine is vllm or dtype is below the trainer's, unless the
    algorithm corrects itself or ratios begin at the sampler.

    listed_actions: a turn is one of the actions that the environment lists in its state, and no thought: other tokens
    are masked where it is sampled and where its likelihood is computed (invalid action masking, arXiv 2006.14171).

    mode: where the sampler runs: colocated, in the trainer's process, or served (`ServedSettings`). memory_fraction:
    the share of the device's memory for vLLM's weights and cache (default: a cache of batch_tokens). max_model_len:
    vLLM's longest sequence (default: the model's window). sleep: what vLLM frees while the trainer updates, on CUDA: 0
    nothing, 1 its cache, with its weights moved to the host, 2 both. max_mismatch: mean difference of sampler's and
    trainer's logprobs (nats) on the canary above which the run stops (default: a multiple of the measured noise of the
    sampler's precision).
    """

    engine: Literal["transformers", "vllm"] = "transformers"
    mode: Literal["colocated", "served"] = "colocated"
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
    max_staleness: NonNegativeInt = 0
    old_logprobs: Literal["trainer", "sampler"] = "trainer"
    correction: Literal["auto", Correction] = "auto"
    correction_cap: float = Field(default=2.0, gt=1)
    max_draws: PositiveInt = 1
    listed_actions: bool = False
    batch_tokens: PositiveInt = 262_144
    attempts: PositiveInt = 2
    reward_workers: PositiveInt = 2
    deadline_seconds: PositiveFloat = 10.0
    memory_bytes: PositiveInt = 2 << 30
    max_failure_rate: float = Field(default=0.5, ge=0, le=1)


class EpisodeSettings(Closed):
    """Where an episode of several turns ends at the latest, and what becomes of actions that cannot be carried out.

    max_turns, max_tokens (sampled, over all turns), max_seconds: once one is reached the episode is over and not
    solved; max_seconds depends on the machine, so that a run with it does not repeat exactly. history_turns: how many
    of its earlier turns the policy sees, with what was said between them (default: all); what reset said stays, but for
    its last message, the first observation. invalid: tell, the policy is told why and goes on; mask, the same, and
    nothing is learnt from that turn; end, the episode is over.
    """

    max_turns: PositiveInt = 50
    max_tokens: PositiveInt | None = None
    max_seconds: PositiveFloat | None = None
    history_turns: NonNegativeInt | None = None
    invalid: Literal["tell", "mask", "end"] = "tell"


class PartnerSettings(Closed):
    """Who plays the other side of an environment that has one (without this section: the environment itself does).

    path: a frozen model's directory or hub id, or the address of an OpenAI-compatible endpoint (as in
    http://host:8000/v1; name: which of its models); engine: what samples from weights. self_play: in place of a path,
    the policy as its sampler has it at the time; nothing is trained on the lines it says there. max_tokens,
    temperature, top_p: of one line.
    """

    path: str | None = None
    name: str | None = None
    engine: Literal["transformers", "vllm"] = "transformers"
    self_play: bool = False
    max_tokens: PositiveInt = 256
    temperature: NonNegativeFloat = 1.0
    top_p: float = Field(default=1.0, gt=0, le=1)


class TrainingSettings(Closed):
    """The optimiser and its steps.

    prompts_per_step: prompts (or demonstrations, where there are no rollouts) in one optimiser step, and as many pairs
    of preferences where they are read; a mixture of unconnected demonstrations and rollouts adds
    demonstrations_per_step. optimizer: adamw; adamw_8bit, its moments in 8 bits (bitsandbytes); paged_adamw_8bit, these
    moved to the host where CUDA's memory runs out; adafactor. tokens_per_microbatch: tokens of one forward pass;
    everything else is derived. warmup_steps: of the schedule. max_grad_norm: 0 does not clip. max_skipped_steps: this
    many non-finite gradients in a row stop the run. collective_timeout_seconds: how long ranks wait for one another, at
    most: for one that still plays its rollouts as for one that is gone.
    """

    steps: PositiveInt = 100
    prompts_per_step: PositiveInt = 32
    demonstrations_per_step: NonNegativeInt = 0
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit", "adafactor"] = "adamw"
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
    collective_timeout_seconds: PositiveFloat = 1800.0


class CheckpointSettings(Closed):
    """A checkpoint every `every_steps` steps (0: only on a signal and at the end), the newest `keep` kept."""

    every_steps: NonNegativeInt = 50
    keep: PositiveInt = 2


class TrackingSettings(Closed):
    """Trackers beside metrics.jsonl, and what is kept of rollouts.

    groups_per_step: how many groups of each step are written as text, and go to trackio as traces. trajectories: all
    rollouts with their tokens and logprobs, in compressed shards, or none.
    """

    trackers: list[Literal["tensorboard", "wandb", "trackio"]] = Field(default_factory=list)
    project: str = "posttrain"
    groups_per_step: NonNegativeInt = 4
    trajectories: Literal["all", "none"] = "all"


class Recipe(Closed):
    """One run, whole. acknowledge: names of warnings that the run goes on in spite of (`config.warnings`)."""

    model: ModelSettings
    tokenizer: TokenizerSettings = TokenizerSettings()
    lora: LoraSettings | None = None
    reference: ReferenceSettings = ReferenceSettings()
    teacher: TeacherSettings | None = None
    critic: CriticSettings = CriticSettings()
    algorithm: Named
    prompts: list[SourceSettings] = Field(default_factory=list)
    demonstrations: list[SourceSettings] = Field(default_factory=list)
    preferences: list[SourceSettings] = Field(default_factory=list)
    trajectories: list[SourceSettings] = Field(default_factory=list)
    curriculum: CurriculumSettings | None = None
    environment: Named = Named(name="single_turn")
    episode: EpisodeSettings = EpisodeSettings()
    partner: PartnerSettings | None = None
    rewards: list[RewardSettings] = Field(default_factory=list)
    rollout: RolloutSettings = RolloutSettings()
    training: TrainingSettings = TrainingSettings()
    evaluation: EvaluationSettings | None = None
    final_evaluation: BenchmarkSettings | None = None
    checkpoint: CheckpointSettings = CheckpointSettings()
    tracking: TrackingSettings = TrackingSettings()
    acknowledge: list[str] = Field(default_factory=list)
    seed: NonNegativeInt = 0
