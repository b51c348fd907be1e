"""`posttrain eval`: from names of benchmarks and a model to a table and a JSON file."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from posttrain import catalog, reward
from posttrain.catalog.members import locate
from posttrain.config.overrides import apply
from posttrain.config.tree import COMMAND_LINE, Node
from posttrain.data.examples import Example
from posttrain.errors import RecipeError
from posttrain.evaluation.benchmark import Benchmark
from posttrain.evaluation.compare import compare, write_page
from posttrain.evaluation.evaluation import Evaluation
from posttrain.evaluation.model import NamedModel, open_model
from posttrain.evaluation.responses import grade_responses
from posttrain.evaluation.runner import evaluate, load_items, make_grader
from posttrain.evaluation.samples import Samples
from posttrain.evaluation.table import comparison_table, results_table

_PLAIN_WIDTH = 200


def run_evaluations(
    names: Sequence[str],
    settings: Sequence[str] = (),
    *,
    model: NamedModel | None = None,
    responses: Path | None = None,
    data: Path | None = None,
    limit: int | None = None,
    samples: int | None = None,
    seed: int = 0,
    json_file: Path | None = None,
    output: Path | None = None,
    fresh: bool = False,
) -> list[Evaluation]:
    """Evaluate a model on the benchmarks `names`; print a table.

    settings: `key=value`, for every benchmark that is named. responses: a file of completions of one benchmark, in
    place of a model. data: a local file in place of the hub's copy, for one benchmark. json_file: written with the
    figures and every completion, and no times: the same evaluation writes the same file. output: where completions are
    kept as they come, so that the same command goes on after a kill; fresh: play again what is there. UserError before
    the weights are loaded where a name, a setting, a file or the model is wrong.
    """
    _check(names, model, responses, json_file)
    benchmarks = _benchmarks(names, settings, data, samples)
    items = [list(load_items(benchmark, limit)) for benchmark in benchmarks]
    if responses is not None:
        with make_grader(benchmarks[0]) as grader:
            results = [grade_responses(benchmarks[0], items[0], responses, grader)]
    else:
        assert model is not None
        model = model.resolved()
        files = [_samples_file(one, model, seed, output, fresh) for one in benchmarks]
        results = _played(benchmarks, items, files, model, seed)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _PLAIN_WIDTH)
    console.print(results_table(results))
    for result in results:
        if result.measures:
            shown = ", ".join(f"{name} {share:.1%}" for name, share in result.measures.items())
            console.print(f"{result.benchmark}: {shown}", markup=False, soft_wrap=True)
        if result.num_ungraded:
            console.print(
                f"{result.benchmark}: {result.num_ungraded} ungraded, the first because: {result.first_error}",
                markup=False,
                soft_wrap=True,
            )
    if json_file is not None:
        content = {
            "model": None if model is None else model.title,
            "seed": seed,
            "evaluations": [result.to_json() for result in results],
        }
        json_file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    return results


def run_comparison(files: Sequence[Path], page: Path | None = None) -> None:
    """Print how two files of results compare, item by item; write it as a page where one is named."""
    if len(files) != 2:
        raise RecipeError(f"--compare takes two files of `posttrain eval --json FILE`; {len(files)} given")
    first, second = files
    found = compare(first, second)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _PLAIN_WIDTH)
    console.print(comparison_table(found, first.stem, second.stem))
    if page is not None:
        write_page(page, first, second)
        console.print(f"page: {page}", markup=False, soft_wrap=True)


def _check(names: Sequence[str], model: NamedModel | None, responses: Path | None, json_file: Path | None) -> None:
    """RecipeError for options that do not fit together."""
    if (model is None) == (responses is None):
        raise RecipeError("an evaluation needs --model DIR_OR_HUB_ID_OR_URL, or --responses FILE, and not both")
    if responses is not None and len(names) > 1:
        raise RecipeError(f"--responses {responses}: it is of one benchmark, and {len(names)} are named")
    if responses is not None and not responses.is_file():
        raise RecipeError(f"--responses {responses}: no such file")
    if model is not None:
        model.check()
    if json_file is not None and not json_file.absolute().parent.is_dir():
        raise RecipeError(f"--json {json_file}: there is no directory {json_file.absolute().parent}")


def _played(
    benchmarks: Sequence[Benchmark],
    items: Sequence[list[Example]],
    files: Sequence[Samples],
    model: NamedModel,
    seed: int,
) -> list[Evaluation]:
    """Each benchmark by the model, its completions written to its file."""
    opened = open_model(model, seed)
    results = []
    for benchmark, rows, file in zip(benchmarks, items, files, strict=True):
        if file.num_completions:
            print(
                f"{benchmark.name}: {file.num_completions:,} completions are in {file.path}; --fresh plays them again"
            )
        with make_grader(benchmark) as grader, _progress(benchmark.name) as on_progress:
            result = evaluate(
                benchmark,
                opened.engine,
                opened.tokenizer,
                grader,
                items=rows,
                seed=seed,
                stop_ids=opened.stop_ids,
                samples_file=file,
                on_progress=on_progress,
            )
        results.append(result)
    return results


def _samples_file(benchmark: Benchmark, model: NamedModel, seed: int, output: Path | None, fresh: bool) -> Samples:
    """The file of this benchmark by this model: any change of either, or of how it is graded, is another file."""
    graders = sorted(Path(reward.__file__).parent.glob("*.py"))
    code = [Path(__file__).parent / "runner.py", *graders, *(locate("rewards", one.name) for one in benchmark.rewards)]
    asked = asdict(replace(benchmark, prepare=None))
    identity = {
        "benchmark": json.loads(json.dumps(asked, default=repr)),
        **model.identity(),
        "seed": seed,
        "grading": [hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in code],
    }
    home = output or Path("runs/eval") / re.sub(r"[^\w.-]+", "-", model.title.strip("/"))
    found = Samples(home, benchmark.name, identity)
    if fresh:
        found.forget()
    return found


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


@contextmanager
def _progress(name: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal, nothing elsewhere."""
    console = Console(file=sys.stderr)
    columns = (TextColumn(name), MofNCompleteColumn(), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
