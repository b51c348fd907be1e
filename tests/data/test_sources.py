import csv
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from posttrain.config.schema import SourceSettings
from posttrain.data.examples import Examples
from posttrain.data.sources import load_source
from posttrain.errors import DataError

ROWS = [{"prompt": f"question {i}", "completion": f"answer {i}", "n": i} for i in range(5)]


def load(path: Path | str, kind: str = "demonstrations", **settings: Any) -> Examples:
    return load_source(SourceSettings(path=str(path), **settings), kind)


def jsonl(path: Path, *lines: Any) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".jsonl":
        return jsonl(path, *rows)
    if path.suffix == ".json":
        path.write_text(
            json.dumps(rows if path.stem == "list" else {"meta": {"a": [1]}, "data": rows, "z": 1}, indent=1)
        )
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "list.json", "data.json", "a.csv", "a.parquet"])
def test_every_kind_of_file(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, ROWS)
    examples = load(path)
    assert len(examples) == 5
    assert [example.prompt for example in examples] == [row["prompt"] for row in ROWS]
    assert examples[-1].completion == "answer 4"
    assert examples[1].id == f"{path}#1"
    assert str(examples[3].columns["n"]) == "3"
    assert [example.prompt for example in examples[1:3]] == ["question 1", "question 2"]
    assert examples.description == str(path)
    with pytest.raises(IndexError):
        examples[5]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"prompt": "a", "completion" "b"}', "not JSON: Expecting ':' delimiter at column 30"),
        ("[1]", "a row must be an object of columns, got list"),
        ('{"prompt": "a"}', "column 'completion' is missing; the row has 'prompt'"),
        ('{"prompt": "a", "completion": null}', "column 'completion' is null"),
        ('{"prompt": "a", "completion": ""}', "column 'completion' is empty"),
        ('{"prompt": "a", "completion": 3}', "column 'completion' must be text or a list of messages, got int: 3"),
        ('{"prompt": [{"rle": "user"}], "completion": "a"}', "message 0 has no role: {'rle': 'user'}"),
        ('{"prompt": [{"role": "user"}], "completion": "a"}', "message 0 has neither content"),
        ('{"prompt": ["hi"], "completion": "a"}', "message 0 must be an object with role and content: 'hi'"),
        ('{"prompt": [], "completion": "a"}', "must be a list of messages, got []"),
        (r'{"prompt": "\ud83d\ude00", "completion": "a\ud800"}', r"'\ud800' is half a character"),
    ],
)
def test_a_bad_row_is_named_or_skipped(tmp_path: Path, line: str, reason: str) -> None:
    path = jsonl(tmp_path / "a.jsonl", ROWS[0], "", line, ROWS[1])
    with pytest.raises(DataError) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}:3: ")
    assert reason in str(caught.value)
    examples = load(path, on_bad_row="skip")
    assert [example.id for example in examples] == [f"{path}#0", f"{path}#2"]
    assert examples.num_skipped == 1
    assert f"{path}:3: " in examples.description
    assert load(path, limit=1)[0].prompt == "question 0"


def test_bytes_that_are_not_text(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"prompt": "a", "completion": "b"}\n{"prompt": "\xff"}\n')
    with pytest.raises(DataError, match=r"a\.jsonl:2: not UTF-8 text"):
        load(path)


def test_places_in_other_files(tmp_path: Path) -> None:
    bad = [*ROWS[:2], {"prompt": "", "completion": "x", "n": 1}]
    with pytest.raises(DataError, match=r"list\.json:12: column 'prompt' is empty"):
        load(write(tmp_path / "list.json", bad))
    with pytest.raises(DataError, match=r"a\.csv:4: column 'prompt' is empty"):
        load(write(tmp_path / "a.csv", bad))
    with pytest.raises(DataError, match=r"a\.parquet: row 2: column 'prompt' is empty"):
        load(write(tmp_path / "a.parquet", bad))
    (tmp_path / "b.csv").write_text('prompt,completion\n"two\nlines",x\na,b,c\n')
    with pytest.raises(DataError, match=r"b\.csv:4: 3 columns where the header has 2"):
        load(tmp_path / "b.csv")


def test_files_that_cannot_be_parsed(tmp_path: Path) -> None:
    for name, content, message in [
        ("a.json", '[\n{"prompt": "a", "completion": "b"},\n{"a" 2}]', r"a\.json:3: not JSON"),
        ("b.json", '{"rows": []}', r'b\.json:1: not JSON: expected a list of rows, or \{"data"'),
        ("c.json", '[{"prompt": "a", "completion": "b"} {"b": 2}]', r"c\.json:1: not JSON: expected ','"),
        ("d.json", "[", r"d\.json:1: not JSON"),
        ("e.csv", "a,a\n1,2\n", r"e\.csv:1: two columns have the same name"),
        ("f.csv", 'a,b\n"1"x,2\n', r"f\.csv:2: not CSV"),
        ("g.parquet", "no", r"g\.parquet: not a Parquet file"),
        ("h.txt", "no", r"h\.txt: unknown kind of file '\.txt'"),
        ("i.jsonl", "\n\n", r"no usable rows in .*i\.jsonl; 0 bad rows"),
    ]:
        (tmp_path / name).write_text(content)
        with pytest.raises(DataError, match=message):
            load(tmp_path / name)
    jsonl(tmp_path / "trian.jsonl", ROWS[0])
    with pytest.raises(DataError, match=r"train\.jsonl: no such file.*did you mean 'trian\.jsonl'"):
        load(tmp_path / "train.jsonl")


def test_settings_that_do_not_apply_stop(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ROWS)
    for settings in ({"name": "main"}, {"split": "test"}, {"revision": "x"}, {"config": {"size": 1}}):
        with pytest.raises(DataError, match=f"{next(iter(settings))}: .*leave it out"):
            load(path, **settings)
    with pytest.raises(DataError, match="split: 'test' does not apply to reasoning_gym"):
        load("reasoning_gym", config={"dataset": "chain_sum"}, split="test")
    with pytest.raises(DataError, match="unknown kind of data 'demonstration', did you mean 'demonstrations'"):
        load(path, "demonstration")


def test_unreachable_hub_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("posttrain.data.sources.hub_reachable", lambda: False)
    with pytest.raises(DataError, match=r"no-such/dataset: no such file .* Hub cannot be reached.*\.jsonl"):
        load("no-such/dataset")
    with pytest.raises(DataError, match="a/b/c: no such file or directory"):
        load("a/b/c")


def test_dataset_of_the_hubs_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = [*ROWS, {"prompt": "", "completion": "", "n": 0}]
    (tmp_path / "set").mkdir()
    write(tmp_path / "set" / "train.parquet", rows)
    path = tmp_path / "set"
    examples = load(path)
    assert len(examples) == 6
    assert examples[4].prompt == "question 4"
    assert examples[4].id == f"{path}[train]#4"
    with pytest.raises(DataError, match=r"row 5: column 'prompt' is empty"):
        examples[5]
    skipping = load(path, on_bad_row="skip")
    assert (len(skipping), skipping.num_skipped) == (5, 1)
    assert len(load(path, limit=2)) == 2
    with pytest.raises(DataError, match=r"split tset\): cannot be loaded"):
        load(path, split="tset")


def test_reasoning_gym_rows() -> None:
    config = {"dataset": "chain_sum", "size": 100_000, "seed": 7, "min_terms": 2, "max_terms": 3}
    examples = load("reasoning_gym", config=config)
    assert len(examples) == 100_000
    example = examples[99_999]
    assert example == load("reasoning_gym", config=config)[99_999]
    assert example.id == "reasoning_gym/chain_sum(max_terms=3, min_terms=2, seed=7)#99999"
    assert example.prompt == ({"role": "user", "content": example.columns["question"]},)
    assert example.completion == ({"role": "assistant", "content": example.columns["answer"]},)
    assert set(example.columns) == {"question", "answer", "dataset", "entry"}
    json.dumps(dict(example.columns))
    templated = load("reasoning_gym", "prompts", config=config, template="{question} ?", system="Add.")[0]
    assert [message["role"] for message in templated.prompt] == ["system", "user"]
    assert templated.prompt[1]["content"].endswith(" ?")


def test_reasoning_gym_without_an_oracle() -> None:
    assert load("reasoning_gym", "prompts", config={"dataset": "rush_hour"})[0].completion is None
    with pytest.raises(DataError, match="row 0: column 'completion' is null"):
        load("reasoning_gym", config={"dataset": "rush_hour"})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "no reasoning-gym dataset 'None'"),
        ({"dataset": "chain_sun"}, "did you mean 'chain_sum'"),
        ({"dataset": "composite"}, "no reasoning-gym dataset 'composite'"),
        ({"dataset": "chain_sum", "min_term": 1}, "config.min_term: .* did you mean 'min_terms'"),
        ({"dataset": "chain_sum", "min_terms": 0}, "rejects .*min_terms must be positive"),
        ({"dataset": "chain_sum", "min_terms": "a"}, "rejects"),
        ({"dataset": "chain_sum", "size": "many"}, "config.size: must be an integer"),
        ({"dataset": "word_ladder"}, "PYTHONHASHSEED=0"),
    ],
)
def test_reasoning_gym_mistakes(config: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    with pytest.raises(DataError, match=message):
        load("reasoning_gym", config=config)


def test_unstable_dataset_with_a_fixed_hash_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    assert len(load("reasoning_gym", config={"dataset": "isomorphic_strings", "size": 3})) == 3


def test_reasoning_gym_makes_preferences_and_rewarded_trajectories() -> None:
    config = {"dataset": "chain_sum", "size": 6, "seed": 3, "min_terms": 2, "max_terms": 2}
    pairs = load_source(SourceSettings(path="reasoning_gym", config=config), "preferences")
    rows = load_source(SourceSettings(path="reasoning_gym", config=config), "trajectories")
    longer = load_source(SourceSettings(path="reasoning_gym", config={**config, "size": 90}), "preferences")
    assert len(pairs) == len(rows) == 6
    for index, (pair, row) in enumerate(zip(pairs, rows, strict=True)):
        assert pair.chosen == ({"role": "assistant", "content": pair.columns["answer"]},)
        assert pair.rejected == ({"role": "assistant", "content": pair.columns["wrong_answer"]},)
        assert pair.rejected != pair.chosen
        assert pair == longer[index], "an item is the same whatever the size"
        assert row.columns["reward"] == float(index % 2 == 0)
        assert row.completion == (pair.rejected if index % 2 else pair.chosen)


def test_a_dataset_in_which_nothing_is_wrong_makes_no_preferences() -> None:
    settings = SourceSettings(path="reasoning_gym", config={"dataset": "rush_hour", "size": 2})
    with pytest.raises(DataError, match=r"config\.dataset: of the 64 items after item 0 none has an answer"):
        load_source(settings, "preferences")
