"""`posttrain curate`: a source of data through filters, into a file and a report of what was removed and why."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from pydantic import ValidationError

from posttrain import catalog
from posttrain.config.overrides import apply
from posttrain.config.schema import SourceSettings
from posttrain.config.tree import COMMAND_LINE, Node
from posttrain.curation.asked import Filters
from posttrain.curation.contamination import read_questions
from posttrain.curation.filters import filters, load_characters_filter
from posttrain.curation.report import Report, step
from posttrain.curation.rows import rows_of
from posttrain.curation.written import check_output, write_rows
from posttrain.data import pass_rates
from posttrain.data.examples import Examples
from posttrain.data.sources import load_source
from posttrain.errors import RecipeError

REPORT = ".report.json"


def source_settings(path: str, settings: Sequence[str]) -> SourceSettings:
    """The source at `path` with `key=value` settings, as in a recipe; RecipeError for a mistake in them."""
    values = apply(Node({}, COMMAND_LINE), settings).plain
    for key, why in (("path", f"it is {path} already"), ("weight", "there is one source, and no mixture")):
        if key in values:
            raise RecipeError(f"{key}: {values[key]!r} has no meaning here: {why}; leave it out")
    try:
        return SourceSettings.model_validate({**values, "path": path})
    except ValidationError as error:
        allowed = SourceSettings.model_fields
        found = catalog.from_validation(error, lambda at, value: catalog.unknown_key(str(at[-1]), value, allowed))
        raise catalog.SettingsError(found) from error


def curate(source: SourceSettings, kind: str, output: Path, asked: Filters) -> Report:
    """Filter a source into `output` (.jsonl or .parquet), with the report in OUTPUT's name and .report.json beside it.

    The rows are written as they were read, so that a recipe reads them with the same settings of the source; those of
    trajectories as prompt, completion, reward, solved and stop_reason. Of duplicates the first stays. UserError before
    the source is read where the output or a filter cannot be used, and as `load_source` and `read_questions`.
    """
    asked = asked.of(kind)
    check_output(output)
    check_output(report_file := output.with_suffix(REPORT), (".json",))
    questions = read_questions(asked.against)
    characters = load_characters_filter(asked)
    examples = load_source(source, kind)
    rows = rows_of(examples, kind)
    report = Report(
        source=source.path,
        kind=kind,
        settings={"source": source.model_dump(exclude_defaults=True), "filters": asdict(asked)},
        rows_read=len(rows),
        bad_rows=examples.num_skipped,
        first_bad_row=examples.first_problem,
        unchecked={one.benchmark: one.unread for one in questions if one.unread is not None},
    )
    for name, apply_filter in filters(asked, kind, characters, questions, _pass_rates(asked, examples)):
        found = apply_filter(rows)
        done, rows = step(name, rows if found.rows is None else found.rows, found.removed, found.figures)
        report.steps.append(done)
    report.rows_written = len(rows)
    write_rows(output, [row.columns for row in rows])
    report_file.write_text(json.dumps(report.to_json(), indent=2, ensure_ascii=False) + "\n")
    return report


def _pass_rates(asked: Filters, examples: Examples) -> Mapping[str, float | None] | None:
    """The recorded pass rates by example; None where they are not asked for."""
    if asked.pass_rate_run is not None:
        rates = pass_rates.of_run(asked.pass_rate_run, examples)
    elif asked.pass_rate_column is not None:
        rates = pass_rates.of_column(asked.pass_rate_column, examples)
    else:
        return None
    return {example.id: rate for example, rate in zip(examples, rates, strict=True)}
