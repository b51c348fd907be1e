"""Valid values that cannot work together, and settings that nothing would read."""

import pytest

from posttrain.config import load_recipe

GRPO = """\
model: owner/name
algorithm: grpo
prompts: rows.jsonl
rewards: exact_match
"""
SFT = """\
model: owner/name
algorithm: sft
demonstrations: rows.jsonl
"""
KTO = """\
model: owner/name
algorithm: kto
preferences: rows.jsonl
"""
HYPO = """\
model: owner/name
algorithm: hypo
preferences: rows.jsonl
prompts: rows.jsonl
"""

PPO = GRPO.replace("grpo", "ppo")

PAIRS = "algorithm={terms: [{source: rollouts, advantage: pair_difference}]}"
PROSPECTS = (
    "algorithm={terms: [{source: preferences, term: a, advantage: prospect_value}, "
    "{source: preferences, term: b, advantage: pair_preference}]}"
)

SERVED = "rollout.engine=vllm\nrollout.mode=served"

IMPOSSIBLE = [
    (GRPO, PAIRS, "algorithm: a term over rollouts compares two of them, and nothing pairs them"),
    (PPO, "critic.warmup_steps=100", "critic.warmup_steps: 100 is not allowed: training.steps is 100"),
    (GRPO, "algorithm={terms: [{source: rollouts, advantage: gae}]}", "algorithm: 'terms' reads a critic's old_values"),
    (
        GRPO,
        "algorithm={terms: [{source: rollouts, advantage: {name: batch_centred, advantage: quantile}}]}",
        "algorithm: 'terms' measures rollouts against the reference's, and the reference plays none; allowed:",
    ),
    (
        GRPO,
        "algorithm={terms: [{source: rollouts, advantage: reward, weight: entropy_balance}]}",
        "algorithm: entropy_balance compares the terms 'imitation' and 'policy', and there is no 'imitation'; allowed:",
    ),
    (
        KTO,
        PROSPECTS,
        "algorithm: 'terms' reads preferences as pairs and as single completions; allowed: prospect_value",
    ),
    (GRPO, "tokenizer=bpe", "tokenizer.corpus: missing: tokenizer 'bpe' is learnt from it; allowed: a .jsonl file"),
    (GRPO, "tokenizer.corpus=rows.jsonl", "tokenizer.corpus: 'rows.jsonl' is read by tokenizer.path bpe alone"),
    (PPO, "critic.path=a/b/c", "critic.path: 'a/b/c' does not exist"),
    (KTO, "training.prompts_per_step=1", "training.prompts_per_step: 1 is not allowed: algorithm 'kto' joins each"),
    (GRPO, "partner={temperature: 0.5}", "partner: names nobody, or two; allowed: `path`, or `self_play: true`"),
    (GRPO, "partner={path: owner/name, self_play: true}", "partner: names nobody, or two"),
    (GRPO, "partner={path: owner/name, name: b}", "partner.name: it names one of an endpoint's models"),
    (GRPO, "partner.path=a/b/c", "partner.path: 'a/b/c' does not exist"),
    (HYPO, "prompts=[]", "prompts: missing: algorithm 'hypo' samples rollouts"),
    (HYPO, "preferences=[]", "preferences: missing: algorithm 'hypo' reads preferences"),
    (HYPO, "rollout.group_size=1", "rollout.group_size: 1 is not allowed: algorithm 'hypo' compares"),
    (GRPO, "algorithm=p3o\nrollout.group_size=5", "group_size: 5 is not allowed: algorithm 'p3o' pairs neighbouring"),
    (
        GRPO,
        "algorithm=online_dpo\nrollout.group_size=1",
        "pairs the best rollout of a prompt over its worst; allowed: at",
    ),
    (GRPO, "algorithm=online_dpo\nrewards=[]", "rewards: missing: algorithm 'online_dpo' reads rewards"),
    (GRPO, "algorithm={name: osp, judge: rewards}\nrewards=[]", "rewards: missing: algorithm 'osp' reads rewards"),
    (GRPO, "model=null", "model: missing"),
    (GRPO, "model.path=null", "model: neither path nor config is set"),
    (GRPO, "model.config={model_type: qwen3}", "model: both path and config are set"),
    (GRPO, "model={config: {model_type: qwen3}}", "tokenizer.path: missing: model.config has no tokenizer"),
    (GRPO, "rewards=[]", "rewards: missing: algorithm 'grpo' reads rewards"),
    (GRPO, "rewards=[exact_match, exact_match]", "rewards: 'exact_match' is listed 2 times"),
    (
        GRPO,
        "rewards=[{name: exact_match, outcome: true}, {name: shortness, outcome: true}]",
        "rewards: exact_match and shortness are both `outcome: true`",
    ),
    (GRPO, "prompts=[]", "prompts: missing: algorithm 'grpo' samples rollouts"),
    (GRPO, "rollout.group_size=1", "rollout.group_size: 1 is not allowed"),
    (GRPO, "training.warmup_steps=200", "training.warmup_steps: 200 is not allowed: training.steps is 100"),
    (SFT, "demonstrations=[]", "demonstrations: missing: algorithm 'sft' reads demonstrations"),
    (GRPO, "prompts={path: reasoning_gym}", "prompts.0.config.dataset: missing"),
    (GRPO, "model.path=a/b/c", "model.path: 'a/b/c' does not exist"),
    (GRPO, "model.path=runs/nope", "model.path: 'runs/nope' does not exist"),
    (GRPO, "prompts=runs/nope", "prompts.0.path: 'runs/nope' does not exist; allowed: a file"),
    (
        SFT,
        "algorithm=return_weighted\ntrajectories=runs/nope\ndemonstrations=null",
        "trajectories.0.path: 'runs/nope' does not exist; allowed: a file, a run's directory, or a hub id",
    ),
    (GRPO, "curriculum={}", "curriculum: it changes nothing; allowed: with strategy (buckets or target), recorded_run"),
    (
        GRPO,
        "curriculum={recorded_run: runs/first, recorded_column: rate}",
        "curriculum: both recorded_run and recorded_column are set; allowed: one of them",
    ),
    (
        GRPO,
        "curriculum={recorded_column: rate, min_pass_rate: 0.6, max_pass_rate: 0.4}",
        "curriculum.min_pass_rate: 0.6 is not allowed: max_pass_rate is 0.4; allowed: at most that",
    ),
    (
        GRPO,
        "curriculum={strategy: buckets, bounds: [0.5, 0.2], weights: [1, 1, 1]}",
        "curriculum.bounds: [0.5, 0.2] is not allowed; allowed: rising numbers above 0, up to 1",
    ),
    (
        GRPO,
        "curriculum={strategy: buckets, bounds: [0.5]}",
        "curriculum.weights: [6.0, 4.0, 4.0, 2.0, 0.0] is not allowed: 1 bounds make 2 buckets; allowed: a weight",
    ),
    (GRPO, SERVED, "rollout.servers: neither servers nor replicas is set; allowed: the addresses of servers, or"),
    (GRPO, f"{SERVED}\nrollout.replicas=1\nrollout.servers=[http://a:1]", "rollout.servers: both servers and replicas"),
    (
        GRPO,
        f"{SERVED}\nrollout.servers=[host:8000]",
        "rollout.servers.0: 'host:8000' is no address; allowed: as in http",
    ),
    (GRPO, f"{SERVED}\nrollout.servers=[http://a:1, http://a:1]", "rollout.servers.1: 'http://a:1' is listed twice"),
    (
        GRPO,
        f"{SERVED}\nrollout.replicas=2\nrollout.replica_devices=['0']",
        "rollout.replica_devices: 1 are named; allowed: one for each",
    ),
    (
        GRPO,
        f"algorithm=bond\n{SERVED}\nrollout.replicas=1",
        "rollout.mode: 'served' is not allowed: replicas hold the policy, and the reference of algorithm 'bond' plays",
    ),
]

UNUSED = [
    (GRPO, "critic.learning_rate=1e-5", "critic: set, but nothing would read it: algorithm 'grpo' trains no second"),
    (PPO, "critic.revision=main", "critic.revision: set, but nothing would read it: critic.path is not set"),
    (HYPO, "rewards=exact_match", "rewards: set, but nothing would read it: nothing in algorithm 'hypo' reads rewards"),
    (HYPO, "rollout.reward_workers=1", "rollout.reward_workers: set, but nothing would read it: nothing in algorithm"),
    (GRPO, "algorithm=osp", "rewards: set, but nothing would read it: nothing in algorithm 'osp' reads rewards"),
    (GRPO, "algorithm=online_dpo\npreferences=rows.jsonl", "preferences: set, but nothing would read it"),
    (
        GRPO,
        "demonstrations=rows.jsonl",
        "demonstrations: set, but nothing would read it: rollouts start from `prompts`",
    ),
    (GRPO, "preferences=rows.jsonl", "preferences: set, but nothing would read it: no term of algorithm 'grpo'"),
    (GRPO, "trajectories=rows.jsonl", "trajectories: set"),
    (GRPO, "training.demonstrations_per_step=4", "training.demonstrations_per_step: set"),
    (GRPO, "tracking.project=mine", "tracking.project: set, but nothing would read it: tracking.trackers is empty"),
    (GRPO, "prompts.0.config.size=3", "prompts.0.config: set, but nothing would read it"),
    (
        HYPO,
        "curriculum={strategy: target}",
        "curriculum: set, but nothing would read it: algorithm 'hypo' grades no rollouts, and pass rates are theirs",
    ),
    (GRPO, "curriculum={strategy: target, bounds: [0.5]}", "curriculum.bounds: set, but nothing would read it: it bel"),
    (
        GRPO,
        "curriculum={strategy: buckets, width: 0.5}",
        "curriculum.width: set, but nothing would read it: it belongs",
    ),
    (GRPO, "curriculum={recorded_column: x, decay: 0.5}", "curriculum.decay: set, but nothing would read it: no curri"),
    (
        GRPO,
        "curriculum={strategy: target, max_pass_rate: 0.5}",
        "curriculum.max_pass_rate: set, but nothing would read it: no pass rates are known before training",
    ),
    (SFT, "prompts=rows.jsonl", "prompts: set, but nothing would read it: algorithm 'sft' samples no rollouts"),
    (SFT, "rewards=exact_match", "rewards: set"),
    (GRPO, "training.max_length=64", "training.max_length: set, but nothing would read it: it cuts data"),
    (GRPO, "model={config: {model_type: qwen3}, revision: main}\ntokenizer=characters", "model.revision: set"),
    (SFT, "environment=arena", "environment: set"),
    (SFT, "partner.self_play=true", "partner: set"),
    (SFT, "rollout.temperature=1", "rollout.temperature: set"),
    (SFT, "rollout.dtype=float32", "rollout.dtype: set"),
    (SFT, "tracking.groups_per_step=1", "tracking.groups_per_step: set"),
    (SFT, "tracking.trajectories=none", "tracking.trajectories: set"),
    (GRPO, "rollout.memory_fraction=0.3", "rollout.memory_fraction: set, but nothing would read it: it belongs to"),
    (GRPO, "rollout.sleep=1", "rollout.sleep: set, but nothing would read it: it belongs to `engine: vllm`"),
    (
        GRPO,
        "rollout={engine: vllm, memory_fraction: 0.3, batch_tokens: 99}",
        "rollout.batch_tokens: set, but nothing would read it: rollout.memory_fraction gives the size",
    ),
    (
        GRPO,
        "rollout.engine=vllm\nrollout.replicas=2",
        "rollout.replicas: set, but nothing would read it: it belongs to",
    ),
    (
        GRPO,
        f"{SERVED}\nrollout.replicas=2\nrollout.sleep=1",
        "rollout.sleep: set, but nothing would read it: replicas have devices of their own",
    ),
    (
        GRPO,
        f"{SERVED}\nrollout.servers=[http://a:1]\nrollout.max_restarts=1",
        "rollout.max_restarts: set, but nothing would read it: rollout.servers were started elsewhere",
    ),
]


@pytest.mark.parametrize(("recipe", "override", "expected"), [*IMPOSSIBLE, *UNUSED])
def test_what_cannot_work_or_is_not_read_is_said(message, recipe, override, expected):
    found = message(recipe, override.splitlines())
    assert expected in found
    assert len(found.splitlines()) == 1, found


def test_grpo_takes_its_prompts_from_demonstrations(folder):
    (folder / "recipe.yaml").write_text(GRPO.replace("prompts", "demonstrations"))
    assert load_recipe("recipe.yaml").recipe.prompts == []


def test_hpt_with_prompts_of_their_own_never_imitates(message):
    text = GRPO.replace("grpo", "hpt") + "demonstrations: rows.jsonl\n"
    assert "prompts: algorithm 'hpt' imitates the demonstration of the prompt it has sampled" in message(text)


def test_a_gate_that_no_group_passes(message):
    text = SFT.replace("sft", "{name: hpt, gate: 8}") + "rewards: exact_match\n"
    assert "algorithm.gate: 8 is not allowed" in message(text)


def test_a_mixture_needs_to_know_how_many_demonstrations(message, folder):
    (folder / "algorithms").mkdir()
    (folder / "algorithms" / "blend.py").write_text(
        "from posttrain.estimator import Algorithm, PolicyTerm, Source\n"
        "from posttrain.estimator.advantages import Reward\n"
        "def blend():\n"
        "    terms = (PolicyTerm(Source.ROLLOUTS, advantage=Reward()), PolicyTerm(Source.DEMONSTRATIONS, name='sft'))\n"
        "    return Algorithm('blend', terms)\n"
    )
    text = GRPO.replace("grpo", "blend") + "demonstrations: rows.jsonl\n"
    assert "training.demonstrations_per_step: 0 is not allowed" in message(text)
    assert load_recipe("recipe.yaml", ["training.demonstrations_per_step=4"])


def test_an_evaluation_reads_the_engines_settings_only(message):
    overrides = ["evaluation=held_out", "rollout.dtype=float32", "rollout.temperature=0.5"]
    found = message(SFT, overrides)
    assert found.startswith("command line: rollout.temperature=0.5: rollout.temperature: set")
    assert len(found.splitlines()) == 1


def test_mixed_precision_of_half_weights(message):
    overrides = ["model.dtype=bfloat16", "training.mixed_precision=bf16"]
    assert "training.mixed_precision: 'bf16' is not allowed: it keeps float32 weights" in message(GRPO, overrides)


def test_a_tracker_that_is_not_installed(message, monkeypatch):
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "wandb" else found(name, *rest)
    )
    assert "'wandb' needs the package 'wandb', which is not installed: pip install" in message(
        GRPO, ["tracking.trackers=[wandb]"]
    )
