"""`posttrain eval --harness lm-eval`: the tasks of lm-evaluation-harness, run by our engines."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from posttrain import table
from posttrain.errors import MissingDependencyError, RecipeError, UnknownNameError, did_you_mean
from posttrain.evaluation.model import NamedModel, open_model

HARNESSES = ("lm-eval",)


def run_harness(
    name: str,
    tasks: Sequence[str],
    model: NamedModel | None,
    *,
    include_path: Path | None = None,
    chat: bool = False,
    num_fewshot: int | None = None,
    limit: int | None = None,
    seed: int = 0,
    json_file: Path | None = None,
) -> dict[str, Any]:
    """Run `tasks` (names, patterns as mmlu_*) of the harness `name` with `model`; print its table, return its results.

    include_path: a directory with further tasks (YAML). chat: ask in the chat template. num_fewshot: None is the task's
    own. limit: only the first so many items of each task. seed: of what is drawn at a temperature. json_file: written
    with the harness's results and samples. UserError before the weights are loaded where a name is wrong.
    """
    _check(name, tasks, model, include_path, json_file)
    assert model is not None
    manager, found = _find(tasks, include_path)
    from lm_eval.evaluator import simple_evaluate  # type: ignore[import-untyped]
    from lm_eval.utils import handle_non_serializable  # type: ignore[import-untyped]

    from posttrain.evaluation.harness_model import EngineLM

    results: dict[str, Any] = simple_evaluate(
        model=EngineLM(open_model(model, seed), seed),
        tasks=found,
        task_manager=manager,
        num_fewshot=num_fewshot,
        limit=limit,
        apply_chat_template=chat,
    )
    print(table.render(("task", "n", "metric", "value", "standard error"), list(_rows(results))))
    if json_file is not None:
        written = {"model": model.title, "seed": seed} | results
        text = json.dumps(written, indent=2, ensure_ascii=False, default=handle_non_serializable)
        json_file.write_text(text + "\n")
    return results


def _rows(results: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """A line a task (or group of them) and metric; a filter of the responses is named with the metric."""
    for task, found in (results["results"] | results.get("groups", {})).items():
        counts = results["n-samples"].get(task, {})
        for key, value in found.items():
            metric, _, filtered = key.partition(",")
            if isinstance(value, float) and not metric.endswith("_stderr"):
                error = found.get(f"{metric}_stderr,{filtered}")
                shown = f"{error:.4f}" if isinstance(error, float) else ""
                name = metric if filtered in ("none", "") else f"{metric} ({filtered})"
                yield task, str(counts.get("effective", "")), name, f"{value:.4f}", shown


def _check(
    name: str, tasks: Sequence[str], model: NamedModel | None, include_path: Path | None, json_file: Path | None
) -> None:
    """RecipeError, MissingDependencyError for what does not fit together."""
    if name not in HARNESSES:
        raise RecipeError(f"--harness {name!r}: not a harness; {did_you_mean(name, HARNESSES)}")
    if not tasks:
        raise RecipeError("--harness lm-eval: --tasks is missing; allowed: names of its tasks with commas")
    if model is None:
        raise RecipeError("--harness lm-eval: --model is missing; allowed: a model directory or a hub id")
    model.check()
    if model.is_endpoint:
        raise RecipeError(
            f"--harness lm-eval: {model.path} gives no tokens; allowed: a model directory or hub id, or lm-eval's own "
            "local-chat-completions"
        )
    if include_path is not None and not include_path.is_dir():
        raise RecipeError(f"--include-path {include_path}: no such directory")
    if json_file is not None and not json_file.absolute().parent.is_dir():
        raise RecipeError(f"--json {json_file}: there is no directory {json_file.absolute().parent}")
    if importlib.util.find_spec("lm_eval") is None:
        raise MissingDependencyError("--harness lm-eval: lm-eval is not installed; pip install 'posttrain[lm-eval]'")


def _find(tasks: Sequence[str], include_path: Path | None) -> tuple[Any, list[str]]:
    """The harness's manager of tasks, and the names that it knows; UnknownNameError for one that it does not.

    Its own thousands of tasks are indexed (seconds) only where `include_path` does not hold all that is asked for.
    """
    from lm_eval.tasks import TaskManager  # type: ignore[import-untyped]

    own = None if include_path is None else str(include_path)
    if own is not None:
        manager = TaskManager(include_path=own, include_defaults=False)
        if all(manager.match_tasks([task]) for task in tasks):
            return manager, manager.match_tasks(list(tasks))
    manager = TaskManager(include_path=own)
    for task in tasks:
        if not manager.match_tasks([task]):
            near = did_you_mean(task, manager.all_tasks).partition("allowed: ")[0]
            raise UnknownNameError(f"--tasks {task}: lm-eval has no such task; {near}`lm-eval ls tasks` lists them")
    return manager, manager.match_tasks(list(tasks))
