from posttrain.data.examples import Example, Examples
from posttrain.data.held_out import question, without


def test_the_last_message_counts_without_case_and_spacing() -> None:
    conversation = ({"role": "system", "content": "be terse"}, {"role": "user", "content": "What  is\n2 + 2?"})
    assert question(conversation) == question("what is 2 + 2?")


def test_what_is_evaluated_is_left_out() -> None:
    rows = [Example(f"x#{i}", prompt=f"Word {i % 4}") for i in range(8)]
    examples = Examples("x", len(rows), rows.__getitem__, num_skipped=1, first_problem="x:9")
    kept = without(examples, [Example("e#0", prompt="word  2"), Example("e#1", prompt="other")])
    assert [example.id for example in kept] == ["x#0", "x#1", "x#3", "x#4", "x#5", "x#7"]
    assert kept.num_skipped == 1
    assert len(without(examples, [])) == 8
