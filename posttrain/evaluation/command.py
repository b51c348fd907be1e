"""`posttrain eval`: from names of benchmarks and a model to a table and a JSON file."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from posttrain import catalog
from posttrain.config.overrides import apply
from posttrain.config.schema import ModelSettings, RolloutSettings, TokenizerSettings
from posttrain.config.tree import COMMAND_LINE, Node
from posttrain.errors import RecipeError, did_you_mean
from posttrain.evaluation.benchmark import Benchmark
from posttrain.evaluation.evaluation import Evaluation
from posttrain.evaluation.runner import evaluate, load_items, make_grader
from posttrain.rollout.engines import check_engine, make_engine

ENGINES = ("transformers", "vllm")
_PLAIN_WIDTH = 200


def run_evaluations(
    names: Sequence[str],
    settings: Sequence[str] = (),
    *,
    model: str,
    data: Path | None = None,
    limit: int | None = None,
    samples: int | None = None,
    engine: str = "transformers",
    seed: int = 0,
    json_file: Path | None = None,
) -> list[Evaluation]:
    """Evaluate the model at `model` (a directory or a hub id) on the benchmarks `names`; print a table.

    settings: `key=value`, for every benchmark that is named. data: a local file in place of the hub's copy, for one
    benchmark. json_file: written with the figures and every completion. UserError before the weights are loaded where
    a name, a setting, a file or the model is wrong.
    """
    if engine not in ENGINES:
        raise RecipeError(f"--engine {engine!r}: not an engine; {did_you_mean(engine, ENGINES)}")
    if json_file is not None and not json_file.absolute().parent.is_dir():
        raise RecipeError(f"--json {json_file}: there is no directory {json_file.absolute().parent}")
    benchmarks = _benchmarks(names, settings, data, samples)
    items = [list(load_items(benchmark, limit)) for benchmark in benchmarks]
    check_engine(engine)
    sampler, tokenizer, stop_ids = _load(model, engine, seed)
    results = []
    for benchmark, rows in zip(benchmarks, items, strict=True):
        with make_grader(benchmark) as grader, _progress(benchmark.name) as on_progress:
            result = evaluate(
                benchmark,
                sampler,
                tokenizer,
                grader,
                items=rows,
                seed=seed,
                stop_ids=stop_ids,
                on_progress=on_progress,
            )
        results.append(result)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _PLAIN_WIDTH)
    console.print(_table(results))
    for result in results:
        if result.num_ungraded:
            console.print(
                f"{result.benchmark}: {result.num_ungraded} ungraded, the first because: {result.first_error}",
                markup=False,
                soft_wrap=True,
            )
    if json_file is not None:
        content = {"model": model, "seed": seed, "evaluations": [result.to_json() for result in results]}
        json_file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    return results


def _benchmarks(
    names: Sequence[str], settings: Sequence[str], data: Path | None, samples: int | None
) -> list[Benchmark]:
    """The benchmarks with their settings; RecipeError, UnknownNameError."""
    names = [name.strip() for name in names]
    if data is not None and len(names) > 1:
        raise RecipeError(f"--data {data}: it is the file of one benchmark, and {len(names)} are named")
    values = apply(Node({}, COMMAND_LINE), settings).plain
    if data is not None:
        values["data"] = str(data)
    return [catalog.build("eval", name, values).with_samples(samples) for name in names]


def _load(model: str, engine: str, seed: int) -> tuple[Any, Any, frozenset[int]]:
    """The engine over the model's weights, the tokenizer, and the tokens that end a completion."""
    import torch

    from posttrain.data.chat import stop_token_ids
    from posttrain.models.load import check_model, load_model
    from posttrain.models.tokenizer import load_tokenizer
    from posttrain.rollout.weights import engine_dtype

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = str(engine_dtype("auto", device)).removeprefix("torch.")
    settings = ModelSettings.model_validate({"path": model, "dtype": dtype})
    check_model(settings)
    tokenizer = load_tokenizer(TokenizerSettings(), settings)
    loaded = load_model(settings, tokenizer, seed)
    stop_ids = stop_token_ids(tokenizer, loaded.generation_config)
    rollout = RolloutSettings.model_validate({"engine": engine, "dtype": dtype})
    return make_engine(rollout, loaded.to(device), device), tokenizer, stop_ids


@contextmanager
def _progress(name: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal, nothing elsewhere."""
    console = Console(file=sys.stderr)
    columns = (TextColumn(name), MofNCompleteColumn(), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _table(results: Sequence[Evaluation]) -> Table:
    most = max(result.samples for result in results)
    heads = ["benchmark", "n", "pass rate", "95 % interval", *([f"pass@{most}"] if most > 1 else [])]
    table = Table(box=None, pad_edge=False)
    for head in [*heads, "ungraded", "cut off", "seconds"]:
        is_name = head == "benchmark"
        table.add_column(head, justify="left" if is_name else "right", overflow="fold", no_wrap=not is_name)
    for result in results:
        low, high = result.interval
        table.add_row(
            escape(result.benchmark),
            str(result.n) if result.samples == 1 else f"{result.n} x {result.samples}",
            f"{result.pass_rate:.1%}",
            f"{low:.1%}-{high:.1%}",
            *([f"{result.pass_at[most]:.1%}" if most in result.pass_at else ""] if most > 1 else []),
            str(result.num_ungraded),
            str(result.num_truncated),
            f"{result.seconds:.1f}",
        )
    return table
