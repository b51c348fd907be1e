"""The tables that `posttrain eval` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.markup import escape
from rich.table import Table

from posttrain.evaluation.evaluation import Evaluation
from posttrain.evaluation.paired import Comparison


def results_table(results: Sequence[Evaluation]) -> Table:
    """A line a benchmark: rate and interval, and beside them what did not count; below it, its parts."""
    most = max(result.samples for result in results)
    optional = {
        f"pass@{most}": most > 1,
        f"maj@{most}": any(result.majority is not None for result in results),
        "no answer": any(result.num_unextracted is not None for result in results),
        "unanswered": any(result.num_unanswered for result in results),
    }
    heads = ["benchmark", "n", "pass rate", "95 % interval", *(head for head, shown in optional.items() if shown)]
    table = _table([*heads, "ungraded", "cut off", "tokens", "seconds"])
    lines = [line for result in results for line in ((result.benchmark, result), *_parts(result))]
    for name, result in lines:
        if result.num_ungraded == len(result.completions):
            table.add_row(escape(name), str(result.n), "all ungraded")
            continue
        low, high = result.interval
        cells = {
            f"pass@{most}": f"{result.pass_at[most]:.1%}" if most in result.pass_at else "",
            f"maj@{most}": "" if result.majority is None else f"{result.majority:.1%}",
            "no answer": "" if result.num_unextracted is None else str(result.num_unextracted),
            "unanswered": str(result.num_unanswered),
        }
        table.add_row(
            escape(name),
            str(result.n) if result.samples == 1 else f"{result.n} x {result.samples}",
            f"{result.pass_rate:.1%}",
            f"{low:.1%}-{high:.1%}",
            *(cells[head] for head, shown in optional.items() if shown),
            str(result.num_ungraded),
            str(result.num_truncated),
            f"{result.num_tokens:,}",
            f"{result.seconds:.1f}" if name == result.benchmark else "",
        )
    return table


def _parts(result: Evaluation) -> list[tuple[str, Evaluation]]:
    return [(f"  {name}", part) for name, part in result.parts.items()]


def comparison_table(found: Mapping[str, Comparison], first: str, second: str) -> Table:
    """A line a benchmark: both rates over the common items, their difference, and who solves what alone."""
    table = _table(
        ["benchmark", "n", first, second, "difference", "95 % interval", "p", "test", f"only {first}", f"only {second}"]
    )
    for name, one in found.items():
        low, high = one.interval
        rates = (f"{rate:.1%}" for rate in one.rates)
        spread = f"{low:+.1%} to {high:+.1%}"
        alone = str(len(one.only_first)), str(len(one.only_second))
        row = [escape(name), str(len(one.common)), *rates, f"{one.difference:+.1%}", spread, f"{one.p_value:.3g}"]
        table.add_row(*row, one.test, *alone)
    return table


def _table(heads: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False)
    for head in heads:
        is_name = head == "benchmark"
        table.add_column(escape(head), justify="left" if is_name else "right", overflow="fold", no_wrap=not is_name)
    return table
