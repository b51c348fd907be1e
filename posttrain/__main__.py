"""The command line: a function below for each command, as `posttrain --help` lists them.

Exit status: 0 done; 2 a mistake in what the user gave (one message, no traceback); 1 a failure of the run; 128 + the
signal's number where a signal stopped it. Heavy packages are imported by the command that needs them.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import astuple
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from posttrain.errors import RunError, UserError

app = typer.Typer(
    help="Post-train language models. A recipe (YAML) goes in; a plain Hugging Face model and a report come out.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

RecipeArgument = Annotated[str, typer.Argument(help="A recipe file, or a name that `posttrain list recipes` shows.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Values of the recipe to change, as key=value: training.steps=100")
]


class Format(StrEnum):
    """How `explain` prints."""

    TEXT = "text"
    JSON = "json"
    LATEX = "latex"


class Kind(StrEnum):
    """What `list` lists."""

    ALGORITHMS = "algorithms"
    REWARDS = "rewards"
    ENVIRONMENTS = "environments"
    BENCHMARKS = "benchmarks"
    RECIPES = "recipes"
    PARTS = "parts"


class DataKind(StrEnum):
    """What the rows are that `curate` reads."""

    PROMPTS = "prompts"
    DEMONSTRATIONS = "demonstrations"
    PREFERENCES = "preferences"
    TRAJECTORIES = "trajectories"


class LabelKind(StrEnum):
    """What the rows are that `calibrate` reads."""

    PREFERENCES = "preferences"
    TRAJECTORIES = "trajectories"
    STEPS = "steps"


class OverSteps(StrEnum):
    """How a process reward model's probabilities of steps become one."""

    MIN = "min"
    LAST = "last"
    MEAN = "mean"
    PRODUCT = "product"


class Baseline(StrEnum):
    """What a trajectory's reward is compared with: the mean of its prompt's, or nothing."""

    GROUP = "group"
    NONE = "none"


@app.command()
def train(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    output: Annotated[Path | None, typer.Option(help="Run directory; default runs/RECIPE.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint in the output.")] = False,
) -> None:
    """Train a model as a recipe says. Also: accelerate launch -m posttrain train RECIPE."""
    from posttrain.config.load import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    from posttrain.trainer import train as run

    received = run(loaded, output or Path("runs") / loaded.name, resume=resume)
    if received is not None:
        raise typer.Exit(128 + received)


@app.command("eval")
def evaluate(
    benchmarks: Annotated[
        str | None, typer.Argument(help="One benchmark, or several with commas; or results to compare.")
    ] = None,
    settings: Annotated[list[str] | None, typer.Argument(help="Its settings, as key=value; or other results.")] = None,
    model: Annotated[
        str | None, typer.Option(help="A model or adapter (directory, hub id), or http://HOST/v1.")
    ] = None,
    model_name: Annotated[str | None, typer.Option(help="Which model of the server at http://HOST/v1.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests to that server at a time.")] = 32,
    responses: Annotated[Path | None, typer.Option(help="Grade this file of completions, without a model.")] = None,
    data: Annotated[Path | None, typer.Option(help="A local file instead of the hub's copy.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many items.")] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="Completions per item.")] = None,
    engine: Annotated[str, typer.Option(help="transformers or vllm.")] = "transformers",
    value_weight: Annotated[float, typer.Option(min=0, help="Of the Q beside a model of ilql, in sampling.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the results here.")] = None,
    output: Annotated[Path | None, typer.Option(help="Keep completions here (default: runs/eval/MODEL).")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Play again what is there.")] = False,
    compare: Annotated[bool, typer.Option("--compare", help="Compare two files of results: A.json B.json.")] = False,
    html: Annotated[Path | None, typer.Option(help="With --compare: write a page of the items that differ.")] = None,
    harness: Annotated[str | None, typer.Option(help="lm-eval: run its tasks in place of our benchmarks.")] = None,
    tasks: Annotated[str | None, typer.Option(help="Its tasks, with commas.")] = None,
    include_path: Annotated[Path | None, typer.Option(help="A directory with further tasks of it.")] = None,
    apply_chat_template: Annotated[bool, typer.Option("--apply-chat-template", help="As the harness's.")] = False,
    num_fewshot: Annotated[int | None, typer.Option(min=0, help="As the harness's.")] = None,
) -> None:
    """Evaluate a model on benchmarks, with confidence intervals; or compare two results item by item."""
    from posttrain.evaluation.command import run_comparison, run_evaluations
    from posttrain.evaluation.model import NamedModel

    named = None if model is None else NamedModel(model, engine, model_name, concurrency, value_weight)
    if harness is not None:
        from posttrain.evaluation.harness import run_harness

        run_harness(
            harness, tasks.split(",") if tasks else [], named, include_path=include_path, chat=apply_chat_template,
            num_fewshot=num_fewshot, limit=limit, seed=seed, json_file=json_file,
        )  # fmt: skip
        return
    if benchmarks is None:
        raise UserError("eval: no benchmark is named; `posttrain list benchmarks` shows them")
    if compare:
        run_comparison([Path(benchmarks), *map(Path, settings or [])], html)
        return
    run_evaluations(
        benchmarks.split(","), settings or [], model=named, responses=responses, data=data, limit=limit,
        samples=samples, seed=seed, json_file=json_file, output=output, fresh=fresh,
    )  # fmt: skip


@app.command()
def calibrate(
    model: Annotated[str, typer.Argument(help="A reward model: the final/ of its run, or a hub id.")],
    source: Annotated[str, typer.Argument(help="Held-out data: a file, a hub dataset, reasoning_gym or a run.")],
    settings: Annotated[list[str] | None, typer.Argument(help="The source's, as in a recipe: chat=true")] = None,
    kind: Annotated[LabelKind, typer.Option(help="What its rows are.")] = LabelKind.PREFERENCES,
    score: Annotated[str | None, typer.Option(help="Which of the model's scores, where it has several.")] = None,
    over_steps: Annotated[OverSteps, typer.Option(help="How chances of steps become one.")] = OverSteps.MIN,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
) -> None:
    """Say how often a reward model is right on held-out data, and whether its probabilities are, with intervals."""
    from posttrain.curation.curate import source_settings
    from posttrain.evaluation.calibrate import calibrate as run

    given = source_settings(source, settings or [])
    print(run(model, given, kind.value, score=score, over_steps=over_steps.value, json_file=json_file).text())


@app.command()
def rollout(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    count: Annotated[int, typer.Option(min=1, help="How many episodes.")] = 3,
) -> None:
    """Play and print episodes with their rewards, without training."""
    from posttrain.config.load import load_recipe

    loaded = load_recipe(recipe, overrides or [], stop_at_warnings=False)
    from posttrain.trainer.play import play

    play(loaded.recipe, count)


@app.command()
def curate(
    source: Annotated[str, typer.Argument(help="A file, a hub dataset, reasoning_gym or, of trajectories, a run.")],
    output: Annotated[Path, typer.Argument(help="The .jsonl or .parquet file to write.")],
    settings: Annotated[
        list[str] | None, typer.Argument(help="The source's, as in a recipe: columns.prompt=question")
    ] = None,
    kind: Annotated[DataKind, typer.Option(help="What its rows are.")] = DataKind.PROMPTS,
    tokenizer: Annotated[str | None, typer.Option(help="Count characters per token of this one.")] = None,
    min_characters: Annotated[float | None, typer.Option(help="Fewest characters per token.")] = None,
    max_characters: Annotated[float | None, typer.Option(help="Most characters per token.")] = None,
    exact: Annotated[
        bool | None, typer.Option(help="Leave out exact duplicates; default: unless these are trajectories.")
    ] = None,
    near: Annotated[
        float | None,
        typer.Option(help="Leave out near duplicates from this overlap on; default: 0.8 among prompts, else 0, none."),
    ] = None,
    any_numbers: Annotated[bool, typer.Option("--any-numbers", help="Also where their numbers differ.")] = False,
    against: Annotated[
        list[str] | None, typer.Option(help="Leave out what a benchmark asks: NAME, NAME=FILE, or all; repeatable.")
    ] = None,
    ngram: Annotated[int, typer.Option(min=1, help="Words in a row that may not be shared with it.")] = 13,
    pass_rate_run: Annotated[
        str | None, typer.Option(help="A run whose rollouts say how often prompts are solved.")
    ] = None,
    pass_rate_column: Annotated[str | None, typer.Option(help="A column that says so.")] = None,
    min_pass_rate: Annotated[float, typer.Option(min=0, max=1)] = 0.0,
    max_pass_rate: Annotated[float, typer.Option(min=0, max=1)] = 1.0,
    buckets: Annotated[str, typer.Option(help="Bounds between buckets of pass rates.")] = "0.2,0.4,0.6,0.8",
    sample: Annotated[int | None, typer.Option(min=1, help="Draw so many trajectories, the better ones more.")] = None,
    beta: Annotated[float, typer.Option(help="Weights are exp(advantage / beta), at most 20.")] = 1.0,
    baseline: Annotated[Baseline, typer.Option(help="What a reward is compared with.")] = Baseline.GROUP,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Filter data (obfuscated text, duplicates, a benchmark's questions, pass rates) and report what was removed."""
    from posttrain.curation.asked import Filters, parse_buckets
    from posttrain.curation.curate import curate as run
    from posttrain.curation.curate import source_settings

    asked = Filters(
        tokenizer=tokenizer, min_characters=min_characters, max_characters=max_characters, exact=exact, near=near,
        any_numbers=any_numbers, against=tuple(against or ()), ngram=ngram, pass_rate_run=pass_rate_run,
        pass_rate_column=pass_rate_column, min_pass_rate=min_pass_rate, max_pass_rate=max_pass_rate,
        buckets=parse_buckets(buckets), sample=sample, beta=beta, baseline=baseline.value, seed=seed,
    )  # fmt: skip
    print(run(source_settings(source, settings or []), kind.value, output, asked).text())


@app.command()
def demonstrate(
    documents: Annotated[str, typer.Argument(help="A file or hub dataset with a text a row.")],
    output: Annotated[Path, typer.Argument(help="The .jsonl file of demonstrations to write.")],
    model: Annotated[str, typer.Option(help="The model that writes: a directory or hub id.")],
    settings: Annotated[list[str] | None, typer.Argument(help="The documents', as in a recipe.")] = None,
    template: Annotated[
        Path | None, typer.Option(help="A file with the prompt, {column} for what is in a document's column.")
    ] = None,
    engine: Annotated[str, typer.Option(help="transformers or vllm.")] = "transformers",
    samples: Annotated[int, typer.Option(min=1, help="Answers per document.")] = 1,
    temperature: Annotated[float, typer.Option(min=0)] = 0.7,
    max_tokens: Annotated[int, typer.Option(min=1, help="Of an answer.")] = 1024,
    action: Annotated[str | None, typer.Option(help="A regular expression that each action must match.")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Turn documents for people, such as tutorials, into demonstrations for agents, with a model."""
    from posttrain.curation.curate import source_settings
    from posttrain.curation.demonstrate import TEMPLATE, Writer
    from posttrain.curation.demonstrate import demonstrate as run

    writer = Writer(model, template or TEMPLATE, engine, samples, temperature, max_tokens, action, seed)
    print(run(source_settings(documents, settings or []), output, writer).text())


@app.command()
def record(
    recipe: Annotated[str, typer.Argument(help="A recipe with prompts and an environment.")],
    overrides: Overrides = None,
    count: Annotated[int, typer.Option(min=1, help="Tasks to play: the first of the recipe's prompts.")] = 100,
    output: Annotated[Path, typer.Option(help="The .jsonl or .parquet file to write.")] = Path("demonstrations.jsonl"),
) -> None:
    """Write demonstrations by an environment's own expert, on the tasks of a recipe."""
    from posttrain.config.load import load_recipe
    from posttrain.curation.record import record as run

    print(run(load_recipe(recipe, overrides or [], stop_at_warnings=False).recipe, count, output).text())


@app.command()
def search(
    recipe: Annotated[str, typer.Argument(help="A recipe with prompts and an environment.")],
    overrides: Overrides = None,
    count: Annotated[int, typer.Option(min=1, help="Tasks to search.")] = 32,
    output: Annotated[Path, typer.Option(help="The .jsonl or .parquet file to write.")] = Path("found.jsonl"),
    proposals: Annotated[int, typer.Option(min=1, help="Actions asked for after each plan.")] = 8,
    tries: Annotated[int, typer.Option(min=1, help="Plans tried for a task, at most.")] = 50,
    past: Annotated[str, typer.Option(help="memory_and_frequency or one_per_step.")] = "memory_and_frequency",
    future: Annotated[str, typer.Option(help="relative_position or nothing.")] = "relative_position",
) -> None:
    """Search plans that solve tasks (A*, ToolChain*) and write them as demonstrations."""
    from posttrain.config.load import load_recipe
    from posttrain.trainer.search import search_tasks

    loaded = load_recipe(recipe, overrides or [], stop_at_warnings=False).recipe
    print(search_tasks(loaded, count, output, proposals=proposals, tries=tries, past=past, future=future))


@app.command("label-steps")
def label_steps(
    recipe: RecipeArgument,
    output: Annotated[Path, typer.Argument(help="The .jsonl or .parquet file to write.")],
    overrides: Overrides = None,
    count: Annotated[int, typer.Option(min=1, help="How many of the recipe's prompts.")] = 100,
    samples: Annotated[int, typer.Option(min=1, help="Continuations from each step.")] = 8,
    hard: Annotated[bool, typer.Option("--hard", help="A step is right where any of them is solved.")] = False,
    separator: Annotated[str, typer.Option(help="What ends a step.")] = "\n",
) -> None:
    """Label the steps of a recipe's rollouts by how often rollouts that go on from there are solved."""
    from posttrain.config.load import load_recipe

    loaded = load_recipe(recipe, overrides or [], stop_at_warnings=False)
    from posttrain.trainer.label_steps import label_steps as run

    print(run(loaded.recipe, output, count=count, samples=samples, hard=hard, separator=separator).text())


@app.command()
def prefer(
    source: Annotated[str, typer.Argument(help="Recorded trajectories: a file, or a run's rollouts/.")],
    output: Annotated[Path, typer.Argument(help="The .jsonl or .parquet file of preferences to write.")],
    model: Annotated[str, typer.Option(help="The judge: a directory, hub id or endpoint's address.")],
    settings: Annotated[list[str] | None, typer.Argument(help="The source's, as in a recipe.")] = None,
    model_name: Annotated[str | None, typer.Option(help="Which of an endpoint's models.")] = None,
    template: Annotated[Path | None, typer.Option(help="A file with {prompt}, {first} and {second}.")] = None,
    pairs: Annotated[int, typer.Option(min=1, help="Pairs of each prompt.")] = 4,
    confidence: Annotated[float, typer.Option(help="Least chance of the preferred side, over both orders.")] = 0.75,
    engine: Annotated[str, typer.Option(help="transformers or vllm.")] = "transformers",
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Have a judge compare recorded trajectories of the same prompt, and write what it prefers as preferences."""
    from posttrain.curation.curate import source_settings
    from posttrain.curation.prefer import ModelJudge, judge_of
    from posttrain.curation.prefer import prefer as run
    from posttrain.evaluation.model import NamedModel

    judge = ModelJudge(NamedModel(model, engine, model_name), judge_of(template))
    given = source_settings(source, settings or [])
    print(run(given, output, judge, pairs_per_prompt=pairs, confidence=confidence, seed=seed, made_by=model).text())


@app.command("judge-data")
def judge_data(
    source: Annotated[str, typer.Argument(help="Preferences: a file or hub dataset.")],
    output: Annotated[Path, typer.Argument(help="The .jsonl or .parquet file of demonstrations to write.")],
    settings: Annotated[list[str] | None, typer.Argument(help="The source's, as in a recipe.")] = None,
    template: Annotated[Path | None, typer.Option(help="A file with {prompt}, {first} and {second}.")] = None,
) -> None:
    """Turn preferences into demonstrations of a judge that answers in words: both orders, to train with sft."""
    from posttrain.curation.curate import source_settings
    from posttrain.curation.judge_data import write_judge_rows
    from posttrain.curation.prefer import judge_of

    print(f"{write_judge_rows(source_settings(source, settings or []), output, judge_of(template)):,} demonstrations")


@app.command()
def regenerate(
    recipe: Annotated[str, typer.Argument(help="A recipe with a model, prompts, an environment and rewards.")],
    output: Annotated[Path, typer.Argument(help="The .jsonl or .parquet file of recorded dialogues to write.")],
    controller: Annotated[str, typer.Option(help="The model that reads dialogues and knows better.")],
    overrides: Overrides = None,
    count: Annotated[int, typer.Option(min=1, help="Tasks to play: the first of the recipe's prompts.")] = 100,
    turns: Annotated[int, typer.Option(min=1, help="Lines of each dialogue to propose another for.")] = 1,
    template: Annotated[
        Path | None, typer.Option(help="A file with the question, {dialogue}, {reward}, {turn} and {line} in it.")
    ] = None,
    temperature: Annotated[float, typer.Option(min=0, help="Of the controller.")] = 0.7,
    max_tokens: Annotated[int, typer.Option(min=1, help="Of a proposed line.")] = 256,
) -> None:
    """Play dialogues, have a model say in hindsight what would have been better, and play on from there."""
    from posttrain.config.load import load_recipe
    from posttrain.curation.hindsight import TEMPLATE, ModelController
    from posttrain.curation.hindsight import regenerate as run

    loaded = load_recipe(recipe, overrides or [], stop_at_warnings=False).recipe
    asked = ModelController(controller, template or TEMPLATE, temperature, max_tokens, loaded.seed)
    print(run(loaded, count, output, asked, turns=turns).text())


@app.command(context_settings={"ignore_unknown_options": True})
def serve(
    name: Annotated[str, typer.Argument(help="A recipe, or a model's directory or hub id.")],
    words: Annotated[
        list[str] | None, typer.Argument(help="Values of the recipe to change, as key=value, then flags of vLLM.")
    ] = None,
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    host: Annotated[str, typer.Option(help="Who may connect: the address to listen at.")] = "127.0.0.1",
) -> None:
    """Serve a replica with vLLM, for a recipe with `rollout: {mode: served, servers: [...]}`; trusted networks only."""
    from posttrain.rollout.serve import serve as run

    run(name, words or [], host=host, port=port)


@app.command()
def explain(
    name: Annotated[str, typer.Argument(help="A recipe or an algorithm.")],
    overrides: Overrides = None,
    format: Annotated[Format, typer.Option(help="How to print it.")] = Format.TEXT,
    launch: Annotated[
        Path | None, typer.Option(help="A launch file: print what it makes of a recipe's step instead.")
    ] = None,
    memory: Annotated[
        bool, typer.Option("--memory", help="Print the memory that a recipe needs instead, on a launch file's rank.")
    ] = False,
) -> None:
    """Print the resolved objective: formula, parts, every constant, normaliser."""
    if memory:
        from posttrain.trainer.launch_plan import read_launch
        from posttrain.trainer.memory import ONE_PROCESS, explain_memory

        ranks = ONE_PROCESS if launch is None else read_launch(launch)
        print(explain_memory(name, overrides or [], ranks, str(format)))
        return
    if launch is not None:
        from posttrain.trainer.launch_plan import explain_launch

        print(explain_launch(name, overrides or [], launch, str(format)))
        return
    from posttrain.trainer.explain import explain as explained

    print(explained(name, overrides or [], str(format)))


@app.command()
def report(run: Annotated[Path, typer.Argument(help="A run directory.")]) -> None:
    """Write RUN/report.html: curves, objective, counts, evaluations, rollouts to read."""
    from posttrain.evaluation.report import write_report

    print(write_report(run))


@app.command("list")
def list_members(
    kind: Kind,
    parity: Annotated[bool, typer.Option("--parity", help="Algorithms: gradients next to those of peers.")] = False,
) -> None:
    """List what recipes can name; algorithms with family, data, and the parts of their terms."""
    from posttrain import table

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    optional: Sequence[str] = ()
    if parity and kind is not Kind.ALGORITHMS:
        raise UserError(f"--parity compares algorithms with peers, and {kind} have none; allowed: list algorithms")
    if kind is Kind.ALGORITHMS:
        from posttrain.algorithms import overview

        header = overview.PARITY_HEADER if parity else overview.HEADER
        rows = overview.parity() if parity else [astuple(row) for row in overview.rows()]
        optional = () if parity else ("likelihood", "mask", "denominator", "advantage")
    elif kind is Kind.PARTS:
        from posttrain.estimator.assemble import overview as parts

        header, rows, optional = ("role", "name", "constants", "what it is"), list(parts()), ("constants",)
    else:
        from posttrain import catalog

        members = catalog.members("eval" if kind is Kind.BENCHMARKS else kind)
        header, rows = ("name", "what it is"), [(member.name, member.summary) for member in members]
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    print(table.render(header, rows, width, optional))


@app.command()
def doctor(
    overrides: Overrides = None,
    recipe: Annotated[
        str | None, typer.Option(help="Run it with learning rate 0: how far are sampler and trainer apart?")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Of the recipe.")] = 3,
) -> None:
    """Say what this machine has; with a recipe, the noise floor between its sampler and its trainer."""
    if recipe is None:
        from posttrain.doctor import examine

        print(json.dumps(examine(), indent=2))
        return
    from posttrain.config.load import load_recipe
    from posttrain.doctor import serving_lines
    from posttrain.trainer.noise import report as noise_report

    loaded = load_recipe(recipe, overrides or [])
    print(*serving_lines(loaded), sep="\n", end="", flush=True)
    print(noise_report(loaded.recipe, steps))


def main() -> None:
    """Run the command line; mistakes and failures become one message and an exit status."""
    try:
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except RunError as error:
        print(f"the run failed: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
