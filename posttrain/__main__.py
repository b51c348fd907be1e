"""The command line: a function below for each command, as `posttrain --help` lists them.

Exit status: 0 done; 2 a mistake in what the user gave (one message, no traceback); 1 a failure of the run; 128 + the
signal's number where a signal stopped it. Heavy packages are imported by the command that needs them.
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
from collections.abc import Sequence
from dataclasses import astuple
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from posttrain import data_commands
from posttrain.data_commands import Overrides, RecipeArgument
from posttrain.errors import RunError, UserError

app = typer.Typer(
    help="Post-train language models. A recipe (YAML) goes in; a plain Hugging Face model and a report come out.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


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


app.add_typer(data_commands.app)


def main() -> None:
    """Run the command line; mistakes and failures become one message and an exit status."""
    # bitsandbytes, which transformers imports, would warn of a kernel that it does without.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
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
