"""lm-evaluation-harness on our engine: it agrees with our own benchmark, and with the harness's own model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrain.errors import UserError
from posttrain.evaluation.command import run_evaluations
from posttrain.evaluation.harness import run_harness
from posttrain.evaluation.model import NamedModel, Opened, open_model
from posttrain.rollout.transformers_engine import TransformersEngine

TASKS = {
    "letters": """
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
process_results: !function scoring.process_results
generation_kwargs: {until: [], max_gen_toks: 12, do_sample: false}
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
""",
    "until": """
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["q", "\\n"], max_gen_toks: 12, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
""",
    "choice": """
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: ["a", "bcd", "7 8"]
doc_to_target: 1
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
""",
    "likely": """
output_type: loglikelihood
doc_to_text: "{{question}}"
doc_to_target: "{{greedy}}"
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: perplexity, aggregation: perplexity, higher_is_better: false}
""",
    "rolling": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}]
""",
}
SCORING = """
def process_results(doc, results):
    return {"acc": float(doc["answer"] in results[0])}
"""
REWARD = '''
def holds(completion, answer):
    """Whether the answer stands in the completion."""
    return float(answer in completion)
'''
BENCHMARK = '''
from typing import Unpack

from posttrain.evaluation.asked import Asked, question_benchmark
from posttrain.reward import RewardSpec


def letters(**asked: Unpack[Asked]):
    """The same rows as the harness's task."""
    return question_benchmark("letters", "none", (RewardSpec("holds"),), asked, template="{problem}", max_tokens=12)
'''


@pytest.fixture(scope="module")
def opened(model: str) -> Opened:
    """The model in float32, so that the harness's own computes the same."""
    loaded, found = AutoModelForCausalLM.from_pretrained(model), open_model(NamedModel(model))
    return Opened(TransformersEngine(loaded, dtype="float32"), AutoTokenizer.from_pretrained(model), found.stop_ids)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory, opened: Opened) -> Path:
    """A directory of tasks over one local file; some of whose answers the model gives."""
    from posttrain.evaluation.harness_model import EngineLM

    directory = tmp_path_factory.mktemp("tasks")
    questions = [f"{number} + {number % 7} = ?" for number in range(24)]
    lm = EngineLM(opened, 0)
    said = lm._generate([lm.tok_encode(one) for one in questions], lm._sampling({"max_gen_toks": 12})[0], range(24))
    texts = [lm.tokenizer.decode(list(one.token_ids), skip_special_tokens=True) for one in said]
    rows = [
        {"question": one, "answer": text[3 if index % 3 else 0], "greedy": text[: 2 + index % 2], "text": one * 30}
        for index, (one, text) in enumerate(zip(questions, texts, strict=True))
    ]
    (directory / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (directory / "scoring.py").write_text(SCORING)
    for name, text in TASKS.items():
        files = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {directory / 'items.jsonl'}}}}}\n"
        (directory / f"{name}.yaml").write_text(f"task: {name}\n{files}test_split: test\n{text}")
    return directory


def test_both_harnesses_agree(model: str, tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind, name, text in (("rewards", "holds", REWARD), ("eval", "letters", BENCHMARK)):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / f"{name}.py").write_text(text)
    monkeypatch.setenv("POSTTRAIN_PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    file, named = tmp_path / "results.json", NamedModel(model)
    theirs = run_harness("lm-eval", ["letters"], named, include_path=tasks, chat=True, json_file=file)
    (ours,) = run_evaluations(["letters"], model=named, data=tasks / "items.jsonl")
    answers = [sample["resps"][0][0] for sample in theirs["samples"]["letters"]]
    assert [one.completion for one in ours.completions] == answers
    assert ours.n == 24
    assert 0 < ours.pass_rate < 1
    assert theirs["results"]["letters"]["acc,none"] == ours.pass_rate
    assert json.loads(file.read_text())["results"]["letters"]["acc,none"] == ours.pass_rate


def test_our_engine_agrees_with_the_harness_s_own_model(opened: Opened, model: str, tasks: Path) -> None:
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from posttrain.evaluation.harness_model import EngineLM

    own = HFLM(pretrained=AutoModelForCausalLM.from_pretrained(model), tokenizer=opened.tokenizer, batch_size=8)
    found: list[Any] = [
        simple_evaluate(
            model=lm,
            tasks=[*TASKS],
            task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
            bootstrap_iters=0,
        )
        for lm in (EngineLM(opened, 0), own)
    ]
    for name in TASKS:
        ours, theirs = ([one["filtered_resps"] for one in result["samples"][name]] for result in found)
        if name in ("letters", "until"):
            assert ours == theirs
        else:
            assert _numbers(ours) == pytest.approx(_numbers(theirs), abs=1e-3)
    assert 0 < found[0]["results"]["likely"]["acc,none"] < 1
    ours, theirs = ({name: _scores(result["results"][name]) for name in TASKS} for result in found)
    assert all(ours[name] == pytest.approx(theirs[name], rel=1e-4) for name in TASKS)


def _numbers(responses: list[Any]) -> list[float]:
    """Log-likelihoods and whether they are greedy, flat."""
    return [
        float(value) for one in responses for pair in one for value in (pair if isinstance(pair, tuple) else [pair])
    ]


def _scores(result: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in result.items() if name.endswith(",none") and "stderr" not in name}


@pytest.mark.parametrize(
    ("name", "tasks_", "options", "message"),
    [
        ("lm-evil", ["letters"], {}, "did you mean 'lm-eval'"),
        ("lm-eval", [], {}, "--tasks is missing"),
        ("lm-eval", ["letters"], {"include_path": Path("nowhere")}, "no such directory"),
        ("lm-eval", ["letters"], {"model": None}, "--model is missing"),
        ("lm-eval", ["letters"], {"model": NamedModel("http://127.0.0.1:9/v1")}, "gives no tokens"),
        ("lm-eval", ["letters"], {"json_file": Path("no/such/x.json")}, "no directory"),
    ],
)
def test_mistakes(name: str, tasks_: list[str], options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run_harness(name, tasks_, **({"model": NamedModel("unread")} | options))
