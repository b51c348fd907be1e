from typing import Any

import pytest

from posttrain.config.schema import SourceSettings
from posttrain.data.examples import Example
from posttrain.data.formats import BadRowError, RowFormat
from posttrain.errors import DataError

U, A, U2, A2 = (
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": "two"},
    {"role": "user", "content": "three"},
    {"role": "assistant", "content": "four"},
)
B = {"role": "assistant", "content": "worse"}


def example(kind: str, row: dict[str, Any], **settings: Any) -> Example:
    return RowFormat.of(SourceSettings(path="x", **settings), kind).example(row, "x#0")


def test_demonstrations() -> None:
    plain = example("demonstrations", {"prompt": "one", "completion": "two"})
    assert (plain.prompt, plain.completion) == ("one", "two")
    conversation = example("demonstrations", {"messages": [U, {**A, "tool_calls": None}, U2, A2]})
    assert (conversation.prompt, conversation.completion) == ((U,), (A, U2, A2))
    text = example("demonstrations", {"text": "all of it"})
    assert (text.prompt, text.completion) == ("", "all of it")
    mixed = example("demonstrations", {"prompt": [U], "completion": "two"})
    assert (mixed.prompt, mixed.completion) == ((U,), (A,))


def test_prompts() -> None:
    assert example("prompts", {"prompt": "one"}).prompt == "one"
    assert example("prompts", {"messages": [U, A, U2]}).prompt == (U, A, U2)
    with_answer = example("prompts", {"messages": [U, A, U2, A2]})
    assert (with_answer.prompt, with_answer.completion) == ((U,), (A, U2, A2))
    assert example("prompts", {"prompt": "one", "completion": "two"}, chat=True).completion == (A,)


def test_preferences() -> None:
    plain = example("preferences", {"prompt": "one", "chosen": "two", "rejected": "worse"})
    assert (plain.prompt, plain.chosen, plain.rejected) == ("one", "two", "worse")
    explicit = {"prompt": [U], "chosen": [A], "rejected": [B]}
    implicit = {"chosen": [U, A], "rejected": [U, B]}
    both = {"prompt": "one", "chosen": [U, A], "rejected": [U, B]}
    for row in (explicit, implicit, both, {**implicit, "prompt": [U]}):
        pair = example("preferences", row)
        assert (pair.prompt, pair.chosen, pair.rejected) == ((U,), (A,), (B,))
    longer = example("preferences", {"chosen": [U, A, U2, A2], "rejected": [U, A, U2, B]})
    assert (longer.prompt, longer.chosen, longer.rejected) == ((U, A, U2), (A2,), (B,))


@pytest.mark.parametrize("label", [True, 1, "True", "1", False, 0, "false"])
def test_unpaired_preferences(label: Any) -> None:
    desirable = label in (True, 1, "True", "1")
    plain = example("preferences", {"prompt": "one", "completion": "two", "label": label})
    assert (plain.prompt, plain.chosen, plain.rejected) == ("one", *(("two", None) if desirable else (None, "two")))
    talk = example("preferences", {"prompt": [U], "text": [A], "label": label}, columns={"completion": "text"})
    assert (talk.prompt, talk.chosen, talk.rejected) == ((U,), *(((A,), None) if desirable else (None, (A,))))
    assert plain.completion is None


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "one", "completion": "two", "label": "good"}, "column 'label' must be true or false, got"),
        ({"prompt": "one", "completion": "two", "label": None}, "column 'label' must be true or false"),
        ({"prompt": "one", "label": True}, "column 'completion' is missing"),
        ({"prompt": "one", "chosen": "two", "label": True}, "column 'rejected' is missing"),
    ],
)
def test_bad_unpaired_preferences(row: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRowError, match=message):
        example("preferences", row)


@pytest.mark.parametrize(("reward", "expected"), [(1, 1.0), (0.5, 0.5), (None, None), ("0.25", 0.25), ("", None)])
def test_trajectories(reward: Any, expected: float | None) -> None:
    row = {"prompt": "one", "completion": "two", "score": reward}
    trajectory = example("trajectories", row, columns={"reward": "score"})
    assert trajectory.completion == "two"
    assert trajectory.columns["reward"] == expected
    assert example("trajectories", {"messages": [U, A], "reward": reward}).completion == (A,)


def test_columns_template_system_and_chat() -> None:
    row = {"Q": "one", "answer": "two", "k": 0.5}
    renamed = example("demonstrations", row, columns={"prompt": "Q", "completion": "answer", "gold": "answer"})
    assert (renamed.prompt, renamed.completion) == ("one", "two")
    assert renamed.columns == {**row, "gold": "two"}
    templated = example("prompts", row, template="{{{Q}}} at {k:.2f}?", chat=True, system="Be good.")
    assert templated.prompt == (
        {"role": "system", "content": "Be good."},
        {"role": "user", "content": "{one} at 0.50?"},
    )
    assert example("prompts", {"prompt": "one"}, system="S").prompt[0] == {"role": "system", "content": "S"}


def test_columns_inside_objects_and_a_dropped_system_message() -> None:
    row = {
        "prompt": [{"role": "system", "content": "be terse"}, U],
        "target": [A],
        "reward_model": {"ground_truth": "2"},
    }
    columns = {"completion": "target", "answer": "reward_model.ground_truth"}
    kept = example("demonstrations", row, columns=columns)
    assert (kept.prompt, kept.completion, kept.columns["answer"]) == (tuple(row["prompt"]), (A,), "2")
    assert example("demonstrations", row, columns=columns, system="").prompt == (U,)
    with pytest.raises(BadRowError, match="did you mean 'ground_truth'"):
        example("demonstrations", row, columns={**columns, "answer": "reward_model.ground_thruth"})


@pytest.mark.parametrize(
    ("kind", "row", "settings", "reason"),
    [
        ("prompts", {"question": "a"}, {}, r"column 'prompt' \(or 'messages'\) is missing; the row has 'question'"),
        (
            "prompts",
            {"question": "a"},
            {"columns": {"prompt": "qestion"}},
            "no column 'qestion' .* did you mean 'question'",
        ),
        ("prompts", {"question": "a"}, {"template": "{qestion}"}, "column 'qestion' does not exist, did you mean"),
        ("prompts", {"q": None}, {"template": "{q}"}, "column 'q' is null"),
        ("prompts", {"prompt": [U, A]}, {}, "ends with an assistant message"),
        ("prompts", {"prompt": [{"role": "system", "content": "x"}, U]}, {"system": "y"}, "system message already"),
        ("demonstrations", {"messages": [U, U2]}, {}, "no assistant message"),
        ("demonstrations", {"messages": [A, U2, A2]}, {}, "no message before the first assistant message"),
        ("demonstrations", {"messages": [U, A, U2]}, {}, "the last message of a completion must be the assistant's"),
        ("demonstrations", {"prompt": [U], "completion": [U2]}, {}, "the first message of a completion"),
        ("demonstrations", {"text": "a"}, {"chat": True}, "the row has no prompt"),
        ("demonstrations", {"text": [U]}, {}, "column 'text' holds messages"),
        ("preferences", {"chosen": "a", "rejected": "b"}, {}, "column 'prompt' is missing"),
        ("preferences", {"prompt": "p", "chosen": "a", "rejected": "a"}, {}, "are the same"),
        ("preferences", {"prompt": "p", "chosen": "a", "rejected": [A]}, {}, "both be text or both be messages"),
        ("preferences", {"prompt": [U2], "chosen": [U, A], "rejected": [U, B]}, {}, "does not begin with the messages"),
        ("preferences", {"chosen": [U], "rejected": [U, A]}, {}, "the completion is empty"),
        ("trajectories", {"prompt": "a", "completion": "b"}, {}, "column 'reward' is missing"),
        (
            "trajectories",
            {"prompt": "a", "completion": "b", "reward": "high"},
            {},
            "must be a number or empty, got 'high'",
        ),
        (
            "trajectories",
            {"prompt": "a", "completion": "b", "reward": float("nan")},
            {},
            "finite number or null, got nan",
        ),
    ],
)
def test_bad_rows(kind: str, row: dict[str, Any], settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadRowError, match=reason):
        example(kind, row, **settings)


@pytest.mark.parametrize(("template", "reason"), [("no column", "names no column"), ("{a", "literal brace")])
def test_bad_templates(template: str, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        example("prompts", {"a": "b"}, template=template)
