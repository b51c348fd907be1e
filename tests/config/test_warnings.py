"""Scientifically wrong combinations: each rule stops the run, the right form does not, an acknowledgement goes on."""

import pytest

from posttrain.algorithms import load
from posttrain.catalog import members
from posttrain.config import load_recipe
from posttrain.config.warnings import RULES, TRAJECTORY_INPUTS, findings
from posttrain.reward.signature import _FROM_TRAJECTORY

RUN = """\
model: owner/name
prompts: rows.jsonl
rewards: exact_match
algorithm: """
MODEL = RUN.replace("owner/name", "{config: {model_type: gpt2, attn_pdrop: 0.1}}") + "grpo\ntokenizer: characters\n"
HYBRID = RUN.replace("prompts", "demonstrations")


def terms(*written):
    """A recipe whose algorithm is these terms over rollouts (or their own source)."""
    lines = ["\n  terms:"] + [f"    - {{source: rollouts, {term}}}" for term in written]
    return (HYBRID if any("demonstrations" in term for term in written) else RUN) + "\n".join(lines) + "\n"


ONE = "algorithm: {terms: [{source: demonstrations, denominator: one%s}]}\nmodel: a/b\ndemonstrations: rows.jsonl\n"

# rule, recipe, overrides, field, what would be right
WRONG = [
    ("stale_gradient", RUN + "rloo", ["rollout.updates=2"], "rollout.updates", ["rollout.updates=1"]),
    ("stale_gradient", RUN + "f_dpg", ["rollout.updates=2"], "rollout.updates", ["algorithm=gspo"]),
    (
        "stale_gradient",
        RUN + "rloo",
        ["rollout.max_staleness=1", "rollout.correction=none"],
        "rollout.max_staleness",
        ["rollout.correction=auto"],
    ),
    (
        "stale_gradient",
        RUN + "p3o",
        ["rollout.max_staleness=1"],
        "rollout.max_staleness",
        ["rollout.old_logprobs=sampler"],
    ),
    (
        "stale_gradient",
        RUN + "oreal",
        ["rollout.max_staleness=1", "rollout.correction=none"],
        "rollout.max_staleness",
        ["rollout.correction=auto"],
    ),
    ("truncated_sampling", RUN + "grpo", ["rollout.top_p=0.9"], "rollout.top_p", ["rollout.top_p=1"]),
    ("truncated_sampling", RUN + "reinforce", ["rollout.top_k=20"], "rollout.top_k", ["algorithm=raft"]),
    ("two_temperatures", HYBRID + "luffy", ["rollout.temperature=0.7"], "rollout.temperature", ["algorithm=dapo"]),
    ("pair_deviation", RUN + "grpo", ["rollout.group_size=2"], "rollout.group_size", ["algorithm.std=false"]),
    ("pair_deviation", RUN + "{name: grpo, preset: openrlhf}", ["rollout.group_size=2"], "rollout.group_size", []),
    ("unclipped_reuse", HYBRID + "luffy", ["rollout.updates=8"], "rollout.updates", ["algorithm.clip=true"]),
    ("unclipped_reuse", HYBRID + "{name: hpt, clip: false}", ["rollout.updates=8"], "rollout.updates", []),
    (
        "unbounded_behavior",
        terms("denominator: behavior, advantage: reward"),
        [],
        "algorithm",
        ["algorithm.terms.0.mask=clip"],
    ),
    ("vanishing_imitation", ONE % "", [], "algorithm", ["algorithm.terms.0.likelihood=shaped"]),
    (
        "self_imitation",
        terms("weight: 0.5").replace("rewards: exact_match\n", ""),
        [],
        "algorithm",
        ["algorithm.terms.0.where=solved", "rewards=exact_match"],
    ),
    (
        "rounded_updates",
        RUN + "grpo",
        ["model.dtype=bfloat16", "training.learning_rate=1e-6"],
        "model.dtype",
        ["model.dtype=float32"],
    ),
    ("dropout", MODEL, [], "model.config.attn_pdrop", ["model.config.attn_pdrop=0"]),
    ("unchecked_outcome", RUN + "grpo", ["rewards=[shortness, exact_match]"], "rewards.0", ["rewards.1.outcome=true"]),
    ("clip_range", RUN + "gspo", ["algorithm.clip_high=0.2"], "algorithm", ["algorithm.clip_high=4e-4"]),
    (
        "clip_range",
        RUN + "grpo",
        ["algorithm.clip_low=3e-4", "algorithm.clip_high=4e-4"],
        "algorithm",
        ["algorithm.clip_high=0.2"],
    ),
    ("weight_cap", RUN + "cispo", ["algorithm.cap=0.28"], "algorithm", ["algorithm.cap=1.28"]),
    (
        "overlong_out_of_reach",
        RUN + "dapo",
        ["rewards=[exact_match, overlong]"],
        "rewards.1.max_tokens",
        ["rewards.1.max_tokens=512", "rewards.1.buffer_tokens=100"],
    ),
    (
        "sampler_precision",
        RUN + "grpo",
        ["rollout.dtype=bfloat16", "rollout.correction=none"],
        "rollout.dtype",
        ["rollout.correction=auto"],
    ),
    (
        "sampler_precision",
        RUN + "oreal",
        ["rollout.dtype=bfloat16", "rollout.correction=none"],
        "rollout.dtype",
        ["rollout.correction=auto"],
    ),
    (
        "sampler_precision",
        RUN + "grpo",
        ["rollout.dtype=bfloat16", "rollout.correction=none"],
        "rollout.dtype",
        ["rollout.correction=none", "rollout.old_logprobs=sampler"],
    ),
]


@pytest.mark.parametrize(("rule", "text", "overrides", "field", "right"), WRONG)
def test_a_rule_stops_the_run_unless_acknowledged(message, folder, rule, text, overrides, field, right):
    found = message(text, overrides)
    assert len(found.splitlines()) == 1, found
    assert f": {field}: " in found
    assert "right: " in found
    assert found.endswith(f"acknowledge: [{rule}]")
    (finding,) = load_recipe("recipe.yaml", overrides, stop_at_warnings=False).findings
    assert (finding.rule, finding.field, finding.acknowledged) == (rule, field, False)
    loaded = load_recipe("recipe.yaml", [*overrides, f"acknowledge=[{rule}]"])
    assert [one.acknowledged for one in loaded.findings] == [True]
    if right:
        assert load_recipe("recipe.yaml", [*overrides, *right]).findings == ()


def test_every_rule_is_tried_and_says_what_it_is():
    assert {case[0] for case in WRONG} == RULES.keys()
    assert all(rule.__doc__ for rule in RULES.values())


@pytest.mark.parametrize("name", sorted({member.name for member in members("algorithms")} - {"terms"}))
def test_no_paper_is_warned_of(folder, name):
    (folder / "recipe.yaml").write_text(RUN + "grpo\n")
    recipe = load_recipe("recipe.yaml").recipe
    found = [finding.rule for finding in findings(recipe, load(name))]
    assert found == [], "an algorithm's own defaults, in a plain run"


def test_an_acknowledgement_of_nothing_is_unused(message):
    found = message(RUN + "grpo", ["acknowledge=[dropout]"])
    assert "acknowledge.0: 'dropout' is acknowledged, but nothing warns of it; leave it out" in found
    found = message(RUN + "grpo", ["rollout.top_p=0.9", "acknowledge=[truncated_samplin]"])
    assert "did you mean 'truncated_sampling'?" in found
    assert len(found.splitlines()) == 3


def test_what_a_reward_reads_of_a_trajectory_is_known_here_too():
    assert _FROM_TRAJECTORY.keys() == TRAJECTORY_INPUTS
