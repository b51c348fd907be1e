"""Typos and impossible values: each is one message with the place, the field, what is allowed, and the nearest name."""

import pytest

# What replaces what in the recipe's text, and what the message must say.
IN_THE_FILE = [
    ("training:", "trainin:", "recipe.yaml:12: trainin: unknown key", "did you mean 'training'?"),
    ("steps: 10", "stpes: 10", "recipe.yaml:13: training.stpes: unknown key (set to 10)", "did you mean 'steps'?"),
    ("steps: 10", "steps: 0", "recipe.yaml:13: training.steps: 0 is not allowed", "allowed: above 0"),
    ("steps: 10", "steps: ten", "training.steps: 'ten' is not allowed", "allowed: an integer"),
    ("steps: 10", "steps: true", "training.steps: true is not allowed", "allowed: an integer"),
    ("steps: 10", "steps: 2.5", "training.steps: 2.5 is not allowed", "allowed: an integer"),
    ("steps: 10", "max_steps: 10", "training.max_steps: unknown key", "did you mean 'training.steps'?"),
    ("steps: 10", "temperature: 1", "training.temperature: unknown key", "did you mean 'rollout.temperature'?"),
    ("1e-5", "-1e-5", "training.learning_rate: -1e-05 is not allowed", "allowed: at least 0"),
    ("1e-5", "'1e-5'", "training.learning_rate: '1e-5' is not allowed", "allowed: a number"),
    ("1e-5", ".inf", "training.learning_rate: inf is not allowed", "allowed: a finite number"),
    ("1e-5", "1\n  schedule: cosin", "recipe.yaml:15: training.schedule: 'cosin'", "did you mean 'cosine'?"),
    ("1e-5", "1\n  betas: [0.9, 1.5]", "training.betas.1: 1.5 is not allowed", "allowed: below 1"),
    ("1e-5", "1\n  betas: [0.9]", "training.betas: [0.9] is not allowed", "allowed: a list of 2"),
    ("1e-5", "1\n  betas: []", "training.betas: [] is not allowed", "allowed: a list of 2"),
    ("algorithm: hpt", "algorithm: htp", "recipe.yaml:5: algorithm.name: 'htp'", "did you mean 'hpt'?"),
    ("algorithm: hpt", "algorithm: {name: hpt, gte: 1}", "algorithm.gte: unknown key", "did you mean 'gate'?"),
    ("algorithm: hpt", "algorithm: {name: hpt, gate: all}", "algorithm.gate: 'all'", "allowed: an integer"),
    ("algorithm: hpt", "algorithm: {name: hpt, clip: yes}", "algorithm.clip: 'yes'", "did you mean true?"),
    ("algorithm: hpt", "algorithm: {name: hpt, clip_low: 3}", "recipe.yaml:5: algorithm: clip is low=3", "low < 1"),
    ("algorithm: hpt", "algorithm: 3", "algorithm: 3 is not allowed", "allowed: a mapping"),
    ("algorithm: hpt\n", "", "recipe.yaml:2: algorithm: missing", ""),
    ("- exact_match", "- exact_mach", "recipe.yaml:8: rewards.0.name: 'exact_mach'", "did you mean 'exact_match'?"),
    ("limit: 20", "limt: 20", "recipe.yaml:9: rewards.1.limt: unknown key", "did you mean 'limit'?"),
    ("weight: 0.5", "weight: heavy", "recipe.yaml:9: rewards.1.weight: 'heavy'", "allowed: a number"),
    ("arena", "arean", "recipe.yaml:10: environment.name: 'arean'", "did you mean 'arena'?"),
    ("held_out", "heldout", "recipe.yaml:15: evaluation.name: 'heldout'", "did you mean 'held_out'?"),
    ("name: held_out, ", "", "recipe.yaml:15: evaluation.name: missing", ""),
    ("every_steps: 5", "every_step: 5", "evaluation.every_step: unknown key", "allowed: data"),
    ("rows.jsonl", "row.jsonl", "recipe.yaml:6: demonstrations.0.path: 'row.jsonl' does not", "'rows.jsonl'?"),
    ("rows.jsonl", "{path: rows.jsonl, wieght: 2}", "demonstrations.0.wieght: unknown key", "mean 'weight'?"),
    ("rows.jsonl", "{path: rows.jsonl, weight: 0}", "demonstrations.0.weight: 0 is not", "allowed: above 0"),
    ("tokenizer: characters", "tokenizer: ./nowhere", "recipe.yaml:4: tokenizer.path: './nowhere'", "a directory"),
    ("group_size: 4", "top_p: 1.5", "recipe.yaml:11: rollout.top_p: 1.5 is not allowed", "allowed: at most 1"),
    ("group_size: 4", "engine: vlm", "rollout.engine: 'vlm' is not allowed", "allowed: "),
    ("group_size: 4", "num_generations: 4", "rollout.num_generations", "did you mean 'rollout.group_size'?"),
]

ON_THE_COMMAND_LINE = [
    ("training.stesp=5", "training.stesp: unknown key (set to 5)", "did you mean 'steps'?"),
    ("steps=5", "steps: unknown key", "did you mean 'training.steps'?"),
    ("lr=1e-4", "lr: unknown key", "did you mean 'training.learning_rate'?"),
    ("training.steps=-1", "training.steps: -1 is not allowed", "allowed: above 0"),
    ("training.steps", "not an override", "allowed: key=value"),
    ("=5", "not an override", "allowed: key=value"),
    ("training..steps=5", "not an override", "allowed: key=value"),
    ("training.steps=[1", "not valid YAML", ""),
    ("training.steps.x=1", "training.steps is a single value (10)", "no key 'x'"),
    ("demonstrations.limit=3", "demonstrations is a list of 1", "as in demonstrations.0.limit"),
    ("demonstrations.1.limit=3", "demonstrations is a list of 1, and '1' is no place in it", "allowed: 0"),
    ("algorithm.gat=1", "algorithm.gat: unknown key", "did you mean 'gate'?"),
    ("algorithm={name: kto, beta: -1}", "algorithm.beta: -1.0 is not allowed", "allowed: above 0"),
    ("algorithm={name: dr_po, reset_probability: 2}", "algorithm.reset_probability: 2.0 is not", "allowed: 0 to 1"),
    ("algorithm={name: osp, judge_labels: [A]}", "algorithm.judge_labels: ['A'] is not", "allowed: a list of 2"),
    ("algorithm={name: osp, judge_labels: [A, A]}", "algorithm.judge_labels: ('A', 'A')", "two different texts"),
    ("algorithm={name: distill, beta: 0.2, divergence: forward_kl}", "algorithm.beta: 0.2, which", "jensen_shannon"),
    ("algorithm=grpoo", "algorithm.name: 'grpoo'", "did you mean 'grpo'?"),
    ("rewards=shortnes", "rewards.0.name: 'shortnes'", "did you mean 'shortness'?"),
    ("prompts=null", "prompts: null is not allowed", "allowed: a list"),
    (
        "rollout.correction=token_truncat",
        "rollout.correction: 'token_truncat' is not",
        "did you mean 'token_truncate'?",
    ),
    ("model.gradient_checkpointing=on", "model.gradient_checkpointing: 'on'", "did you mean true?"),
    ("seed=-1", "seed: -1 is not allowed", "allowed: at least 0"),
    ("tracking.trackers=[wandbb]", "tracking.trackers.0: 'wandbb'", "did you mean 'wandb'?"),
    ("tracking.trajectories=al", "tracking.trajectories: 'al'", "did you mean 'all'?"),
    ("checkpoint=never", "checkpoint: 'never' is not allowed", "allowed: a mapping"),
]


@pytest.mark.parametrize(("old", "new", "place", "hint"), IN_THE_FILE, ids=[new for _, new, *_ in IN_THE_FILE])
def test_a_mistake_in_the_file(message, folder, old, new, place, hint):
    text = (folder / "recipe.yaml").read_text()
    assert old in text
    found = message(text.replace(old, new, 1))
    assert place in found
    assert hint in found


@pytest.mark.parametrize(("override", "place", "hint"), ON_THE_COMMAND_LINE)
def test_a_mistake_on_the_command_line(message, override, place, hint):
    found = message(overrides=[override])
    assert found.startswith(f"command line: {override}: ")
    assert place in found
    assert hint in found
    assert len(found.splitlines()) == 1


def test_all_mistakes_are_listed_by_line_the_command_line_last(message, folder):
    text = (folder / "recipe.yaml").read_text().replace("steps: 10", "stpes: 10").replace("hpt", "htp")
    head, *lines = message(text, ["seed=x"]).splitlines()
    assert head == "3 mistakes in recipe.yaml"
    assert [line.split(": ")[0].strip() for line in lines] == ["recipe.yaml:5", "recipe.yaml:13", "command line"]


def test_a_part_whose_setting_hides_the_recipes_key(message, folder):
    (folder / "rewards" / "greedy.py").write_text("def greedy(completion, *, weight: float = 1.0): return 1.0\n")
    assert "has a setting called 'weight'" in message(overrides=["rewards=greedy"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "recipe.yaml: is empty"),
        ("# only a comment\n", "recipe.yaml: is empty"),
        ("- model\n", "recipe.yaml: holds no mapping"),
        ("model: {path: [\n", "recipe.yaml:2: not valid YAML"),
        ("model: a: b\n", "recipe.yaml:1: not valid YAML"),
    ],
)
def test_a_file_that_is_no_recipe(message, text, expected):
    assert message(text).startswith(expected)


def test_a_missing_recipe(message, folder, monkeypatch):
    from posttrain.config import load_recipe
    from posttrain.errors import RecipeError

    with pytest.raises(RecipeError, match=r"'recip\.yaml' is no file here"):
        load_recipe("recip.yaml")
