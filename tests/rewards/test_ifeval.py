"""IFEval's 25 instructions: for each, texts that follow it and texts that do not; and the four accuracies."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from posttrain import catalog
from posttrain.errors import UnknownNameError
from posttrain.evaluation.command import run_evaluations
from posttrain.reward.instructions import CHECKS, follows, loosened, sentences

AT_LEAST, LESS = {"relation": "at least"}, {"relation": "less than"}
ENGLISH = "the ducks are swimming on the lake behind our house"
SHOUTED = "I THINK THAT YOU WILL FIND WHAT YOU HAVE BEEN LOOKING FOR WITH THE HELP OF THIS BOOK"
CASES: list[tuple[str, dict[str, Any], list[str], list[str]]] = [
    ("keywords:existence", {"keywords": ["duck", "C++"]}, ["Ducks and c++"], ["Ducks and C", "C++"]),
    ("keywords:frequency", {"keyword": "duck", "frequency": 2} | AT_LEAST, ["Duck, duck"], ["Duck"]),
    ("keywords:frequency", {"keyword": "duck", "frequency": 2} | LESS, ["Duck", "Goose"], ["Duck, duck"]),
    ("keywords:forbidden_words", {"forbidden_words": ["duck"]}, ["Ducks"], ["A Duck!"]),
    (
        "keywords:letter_frequency",
        {"letter": "k", "let_frequency": 2, "let_relation": "at least"},
        ["Kayak"],
        ["Duck"],
    ),
    ("language:response_language", {"language": "de"}, ["Die Enten schwimmen auf dem See."], [ENGLISH]),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 3} | AT_LEAST,
        ["Dr. Who swims. He dives! Why?", "1. It is. 2. It was.\n3. It will be."],
        ["Mr. and Mrs. Duck of St. Ives paid 3.50 e.g. for U. S. bread. Yes."],
    ),
    (
        "length_constraints:number_paragraphs",
        {"num_paragraphs": 2},
        ["One\n***\ntwo", "***\nOne\n\n***\n\ntwo\n***"],
        ["One", "One\n***\n\n***\ntwo", "One\n\ntwo"],
    ),
    ("length_constraints:number_words", {"num_words": 3} | LESS, ["two words", "one-two"], ["now three words"]),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Ducks"},
        ['One.\n\n"Ducks," he said', "One.\n\nducks' ponds\n\n"],
        ["One.\n\nA duck", "One.\n\nDucks\n\nthree", "Ducks", "\n\nOne\n\nDucks"],
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, ["[a] and [b c]"], ["[a] and (b)"]),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, ["Yes.\nP.S. No", "p. s. no"], ["Yes. PS no"]),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, ["P.P.S. No"], ["P.S. No"]),
    (
        "detectable_format:number_bullet_lists",
        {"num_bullets": 2},
        ["* a\n - b", "Well\n* a\n* b"],
        ["* a", "**a**\n- b"],
    ),
    ("detectable_format:constrained_response", {}, ["Well: My answer is no."], ["My answer is perhaps.", "No."]),
    (
        "detectable_format:number_highlighted_sections",
        {"num_highlights": 2},
        ["*a* and *b c*", "**a** and *b*"],
        ["*a* and b", "** and **"],
    ),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "SECTION", "num_sections": 2},
        ["SECTION 1\na\nSECTION 2\nb"],
        ["SECTION 1\na", "SECTION a SECTION b"],
    ),
    ("detectable_format:json_format", {}, ['{"a": [1]}', '```json\n{"a": 1}\n```'], ["a", "{a: 1}", '{"a": 1} so']),
    ("detectable_format:title", {}, ["<<Ducks>>\nswim"], ["<Ducks>", "<< >>", "<<Du\ncks>>"]),
    ("combination:two_responses", {}, ["a\n******\nb", "******a******b"], ["a", "a******a", "a******b******c"]),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Why? "}, ["WHY? Because."], ["Because. Why?"]),
    ("startend:end_checker", {"end_phrase": "Any questions? "}, ['"So. any questions?"'], ["Any questions? None."]),
    ("startend:quotation", {}, [' "So." '], ['"So.', '"', "'So.'"]),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "at least"},
        ["NASA and WELL-KNOWN", "I AM here"],
        ["NASA and Esa"],
    ),
    (
        "change_case:english_capital",
        {},
        [SHOUTED],
        [ENGLISH, "DIE ENTEN SCHWIMMEN AUF DEM SEE HINTER DEM HAUS"],
    ),
    ("change_case:english_lowercase", {}, [ENGLISH], [ENGLISH.title()]),
    ("punctuation:no_comma", {}, ["one; two"], ["one, two"]),
]


def test_every_instruction_is_tried() -> None:
    assert {name for name, *_ in CASES} == set(CHECKS)
    assert len(CHECKS) == 25


@pytest.mark.parametrize(("name", "arguments", "good", "bad"), CASES)
def test_a_text_follows_or_does_not(name: str, arguments: dict[str, Any], good: list[str], bad: list[str]) -> None:
    padded = dict.fromkeys(("frequency", "keywords"), None) | arguments
    assert {text: follows(text, name, padded) for text in good} == dict.fromkeys(good, True)
    assert {text: follows(text, name, padded) for text in bad} == dict.fromkeys(bad, False)
    assert not follows(" \n", name, padded)


def test_unknown_instructions_are_named() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'punctuation:no_comma'"):
        follows("a", "punctuation:no_coma", {})


def test_variants_of_the_loose_accuracy() -> None:
    assert loosened("Sure:\n*a*\nb\nDone.") == [
        "Sure:\n*a*\nb\nDone.",
        "*a*\nb\nDone.",
        "Sure:\n*a*\nb",
        "*a*\nb",
        "Sure:\na\nb\nDone.",
        "a\nb\nDone.",
        "Sure:\na\nb",
        "a\nb",
    ]


def test_sentences_of_a_text() -> None:
    text = 'He said "Go!" Then (at 3.5 m) it fell... Dr. A. Duck left\nAnd then?'
    assert sentences(text) == ['He said "Go!"', "Then (at 3.5 m) it fell...", "Dr. A. Duck left\nAnd then?"]


def test_strict_loose_and_shared_values() -> None:
    ifeval = catalog.find("rewards", "ifeval")
    asked = (["detectable_format:json_format", "punctuation:no_comma"], [{}, {}])
    text = 'Here, as asked:\n{"a": 1}'
    assert ifeval(text, *asked) == 0.0
    assert ifeval(text, *asked, loose=True) == 1.0
    assert ifeval('no json "', *asked, share=True) == 0.5
    assert ifeval(text, *asked).counts == {
        "prompts, strict": (0, 1),
        "instructions, strict": (0, 2),
        "prompts, loose": (1, 1),
        "instructions, loose": (2, 2),
    }


def test_the_four_accuracies_stand_beside_the_score(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows: list[dict[str, Any]] = [
        {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]},
        {"instruction_id_list": ["punctuation:no_comma", "startend:quotation", "detectable_format:title"]},
    ]
    rows[1]["kwargs"] = [{"language": None}] * 3
    data, responses, file = tmp_path / "d.jsonl", tmp_path / "r.jsonl", tmp_path / "out.json"
    data.write_text("".join(json.dumps(row | {"prompt": f"p{i}", "key": i}) + "\n" for i, row in enumerate(rows)))
    said = ["Sure, yes:\nno", '"<<a>>", he said']
    data_rows = [{"question": f"p{i}", "response": text} for i, text in enumerate(said)]
    responses.write_text("".join(json.dumps(row) + "\n" for row in data_rows))
    (result,) = run_evaluations(["ifeval"], data=data, responses=responses, json_file=file)
    assert result.pass_rate == 0.0
    expected = {
        "prompts, strict": 0 / 2,
        "instructions, strict": 1 / 4,
        "prompts, loose": 1 / 2,
        "instructions, loose": 2 / 4,
    }
    assert result.measures == expected
    assert json.loads(file.read_text())["evaluations"][0]["measures"] == result.measures
    assert "ifeval: prompts, strict 0.0%, instructions, strict 25.0%, prompts, loose 50.0%" in capsys.readouterr().out
    assert Counter(one.solved for one in result.completions) == {False: 2}
