from posttrain.data.examples import Example, Examples
from posttrain.data.held_out import apart, question


def test_the_last_message_counts_without_case_and_spacing() -> None:
    conversation = ({"role": "system", "content": "be terse"}, {"role": "user", "content": "What  is\n2 + 2?"})
    assert question(conversation) == question("what is 2 + 2?")


def test_what_is_evaluated_is_left_out() -> None:
    rows = [Example(f"x#{i}", prompt=f"Word {i % 4}") for i in range(8)]
    examples = Examples("x", len(rows), rows.__getitem__, num_skipped=1, first_problem="x:9")
    kept, close = apart(examples, [Example("e#0", prompt="word  2"), Example("e#1", prompt="other")])
    assert [example.id for example in kept] == ["x#0", "x#1", "x#3", "x#4", "x#5", "x#7"]
    assert kept.num_skipped == 1
    assert close == []
    assert len(apart(examples, [])[0]) == 8


ASKED = "A train leaves the station at nine and drives sixty miles an hour; when has it driven two hundred miles?"


def test_the_question_itself_counts_without_the_instructions_of_the_benchmark() -> None:
    rows = [Example("x#0", prompt=ASKED), Example("x#1", prompt="Another one?")]
    examples = Examples("x", len(rows), rows.__getitem__)
    item = Example("e#0", prompt=f"Think. {ASKED} Put it in a box.", columns={"problem": ASKED})
    kept, close = apart(examples, [item])
    assert [example.id for example in kept] == ["x#1"]
    assert close == []


def test_what_comes_close_is_named_and_stays() -> None:
    paraphrase = "Leaving at nine, a train does sixty miles each hour. At what time has it covered two hundred?"
    rows = [Example(f"x#{i}", prompt=text) for i, text in enumerate((paraphrase, f"Solve this. {ASKED}", "No."))]
    examples = Examples("x", len(rows), rows.__getitem__)
    kept, close = apart(examples, [Example("e#0", prompt="Boxed: " + ASKED, columns={"problem": ASKED})])
    assert len(kept) == 3
    assert close == ["x#1"]
