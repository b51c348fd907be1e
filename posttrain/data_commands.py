"""The commands that make and filter data: the second half of the command line."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()

RecipeArgument = Annotated[str, typer.Argument(help="A recipe file, or a name that `posttrain list recipes` shows.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Values of the recipe to change, as key=value: training.steps=100")
]


class DataKind(StrEnum):
    """What the rows are that `curate` reads."""

    PROMPTS = "prompts"
    DEMONSTRATIONS = "demonstrations"
    PREFERENCES = "preferences"
    TRAJECTORIES = "trajectories"


class Baseline(StrEnum):
    """What a trajectory's reward is compared with: the mean of its prompt's, or nothing."""

    GROUP = "group"
    NONE = "none"


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
    noise: Annotated[
        float, typer.Option(min=0, max=1, help="Share of turns that are any action instead, by chance.")
    ] = 0.0,
) -> None:
    """Write demonstrations by an environment's own expert, on the tasks of a recipe."""
    from posttrain.config.load import load_recipe
    from posttrain.curation.record import record as run

    print(run(load_recipe(recipe, overrides or [], stop_at_warnings=False).recipe, count, output, noise).text())


@app.command()
def explore(
    recipe: Annotated[str, typer.Argument(help="A recipe with prompts and an environment that lists its actions.")],
    demonstrations: Annotated[str, typer.Option(help="A file as `posttrain record` writes it.")],
    overrides: Overrides = None,
    count: Annotated[int, typer.Option(min=1, help="Episodes to play, the recipe's prompts in turn.")] = 1000,
    output: Annotated[Path, typer.Option(help="The .jsonl or .parquet file to write.")] = Path("found.jsonl"),
) -> None:
    """Explore what resembles demonstrations, and write the episodes that succeed as more of them."""
    from posttrain.config.load import load_recipe
    from posttrain.curation.explore import explore as run

    loaded = load_recipe(recipe, overrides or [], stop_at_warnings=False).recipe
    print(run(loaded, demonstrations, count, output).text())


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


@app.command()
def watch(
    source: Annotated[str, typer.Argument(help="Demonstrations; with --model: rows {observations: [text, ...]}.")],
    output: Annotated[Path, typer.Argument(help="The .jsonl or .parquet file to write.")],
    model: Annotated[str | None, typer.Option(help="What names the actions: a directory or hub id.")] = None,
    engine: Annotated[str, typer.Option(help="transformers or vllm.")] = "transformers",
    max_tokens: Annotated[int, typer.Option(min=1, help="Of an action.")] = 64,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Rows that teach which action leads from one observation to the next; with --model, actions for recordings."""
    from posttrain.curation.demonstrate import Writer
    from posttrain.curation.watch import label, transitions

    if model is None:
        print(f"{transitions(source, output):,} rows")
    else:
        writer = Writer(model, engine=engine, temperature=0.0, max_tokens=max_tokens, seed=seed)
        print(label(Path(source), output, writer).text())


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
