"""What every reward of the catalogue keeps: documented, bounded, nothing for garbage, the full mark for gold.

Shaping rewards say nothing about the answer: they are a penalty in [-1, 0] beside one that does.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain import catalog
from posttrain.reward.signature import RewardInputs

REWARDS = [member.name for member in catalog.members("rewards")]

ENTRY = {"question": "2 + 2 = ", "answer": "4", "metadata": {"source_dataset": "chain_sum", "source_index": 0}}

GOLD: dict[str, tuple[str, dict[str, Any]]] = {
    "format_tags": ("<think>Two and two.</think>\n<answer>4</answer>", {}),
    "gsm8k": ("Two and two make #### 4", {"answer": "He has 2 + 2 = <<2+2=4>>4 apples.\n#### 4"}),
    "overlong": ("Two and two make 4.", {"num_tokens": 7}),
    "math_answer": ("It is \\boxed{\\frac{1}{2}}.", {"answer": "0.5"}),
    "reasoning_gym": ("<answer>4</answer>", {"entry": ENTRY}),
    "multiple_choice": ("Paris is the capital. The answer is (C).", {"answer": "C"}),
    "repetition": ("Two and two make four, and never more than that.", {}),
    "length_budget": ("Two and two make 4.", {"num_tokens": 7, "target_tokens": 5000}),
    "language_consistency": ("Two and two: 4.", {}),
    "regex_match": ("four: 4", {"pattern": r"four: \d"}),
    "tool_calls": (
        '<tool_call>{"name": "add", "arguments": {"b": 2, "a": [2]}}</tool_call>',
        {"expected_calls": [{"name": "add", "arguments": {"a": [2], "b": 2}}]},
    ),
    "code_tests": ("```python\ndef four():\n    return 4\n```", {"tests": ["assert four() == 4"]}),
    "episode_success": ("", {"episode_outcome": True}),
    "episode_return": (
        "",
        {"environment_rewards": [None, 1.0], "invalid_actions": [False, False], "episode_outcome": True},
    ),
    "recorded_steps": ("", {"states": ["step 1 of 1"], "off_path": [False]}),
    "potential": ("", {"states": ["kitchen"], "potentials": {"kitchen": 0.5}}),
    "gui_action": (
        '<think>The tab.</think><action>{"action": "click", "coordinate": [540, 2273]}</action>',
        {"expected_action": {"action": "click", "coordinate": [540, 2273], "candidate_bbox": [[456, 2211, 624, 2337]]}},
    ),
    "ifeval": (
        "<<Sums>>\nTwo and two make four.",
        {
            "instruction_id_list": ["detectable_format:title", "keywords:existence"],
            "kwargs": [{}, {"keywords": ["Four", "two"], "relation": None}],
        },
    ),
    "json_schema": ('```json\n{"sum": 4}\n```', {"schema": {"type": "object", "required": ["sum"]}}),
}
"""A completion that deserves the full mark, and the columns of its row."""

GARBAGE = [
    "",
    " \n\t",
    "\x00\x01\ud800",
    "🦆" * 1000,
    "x" * 200_000,
    "((" * 2000 + "{{[[" * 500,
    "\\boxed{" * 50,
    "<answer></answer>",
    "<answer>" * 100,
    "####",
    "nan",
    "inf -inf 1e999",
    "9" * 5000,
    "None",
    "</think></think>",
    "$$",
    "\\frac{}{}",
    "-- -$ $- ,,, ...",
]


MODELS = ["reward_model"]
"""What a model says: it has no gold completion but the one its model was taught; each has tests of its own."""
SHAPING = ["language_consistency", "length_budget", "overlong", "repetition"]
EPISODES = ["episode_return", "episode_success", "potential", "recorded_steps"]
"""They read what an environment said, and no completion."""
JUDGES = ["judge_debate", "judge_pairwise", "judge_pointwise", "judge_rubric"]
"""They ask a server, over whole groups: see test_judges.py."""
ANSWERS = [name for name in REWARDS if name not in (*SHAPING, *MODELS, *EPISODES, *JUDGES)]


@pytest.fixture(params=ANSWERS)
def reward(request: pytest.FixtureRequest) -> Callable[..., float | None]:
    """Each reward, with its columns filled in."""
    function = catalog.find("rewards", request.param)
    _, columns = GOLD[request.param]
    return lambda completion: function(completion, **columns)


def test_every_reward_has_a_gold_completion_here() -> None:
    assert set(REWARDS) == {*GOLD, *MODELS, *JUDGES}


@pytest.mark.parametrize("name", REWARDS)
def test_documented_and_readable(name: str) -> None:
    function = catalog.find("rewards", name)
    assert inspect.getdoc(function)
    inputs = RewardInputs.of(name, function)
    known = {"completion", "completions", "num_tokens", "episode_outcome", "environment_rewards", "states"}
    assert known & set(inputs.required)
    assert catalog.check("rewards", name, {}) is not None  # every setting has a default
    inputs.check_columns(GOLD[name][1] if name in GOLD else ())


@pytest.mark.parametrize("name", ANSWERS)
def test_gold_scores_the_full_mark(name: str) -> None:
    completion, columns = GOLD[name]
    assert catalog.find("rewards", name)(completion, **columns) == 1.0


@pytest.mark.parametrize("completion", GARBAGE, ids=range(len(GARBAGE)))
def test_garbage_scores_nothing(reward: Callable[[str], float | None], completion: str) -> None:
    assert reward(completion) in (0.0, None)


@settings(max_examples=40, deadline=None)
@given(completion=st.text(max_size=60))
@pytest.mark.parametrize("name", ANSWERS)
def test_bounded_on_any_text(name: str, completion: str) -> None:
    value = catalog.find("rewards", name)(completion, **GOLD[name][1])
    assert value is None or 0.0 <= value <= 1.0


@settings(max_examples=40, deadline=None)
@given(num_tokens=st.integers(0, 10**9), completion=st.text(max_size=60) | st.sampled_from(GARBAGE))
@pytest.mark.parametrize("name", SHAPING)
def test_shaping_is_a_bounded_penalty(name: str, num_tokens: int, completion: str) -> None:
    function = catalog.find("rewards", name)
    read = RewardInputs.of(name, function).required
    offered = {"num_tokens": num_tokens, "completion": completion}
    assert -1.0 <= function(**{key: offered[key] for key in read}) <= 0.0
    gold, columns = GOLD[name]
    assert function(**columns | ({"completion": gold} if "completion" in read else {})) == 0.0
