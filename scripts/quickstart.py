"""SFT, then HPT, on a tiny model: what `scripts/quickstart` runs. Interrupted, it goes on where it was."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

RUN = Path("runs/quickstart")
SUMMARY = RUN / "summary.json"


def main(overrides: list[str]) -> int:
    """Run both recipes with the overrides; print and write the summary."""
    if SUMMARY.exists():
        kept = next(path for n in range(1, 10_000) if not (path := RUN.with_name(f"quickstart-{n}")).exists())
        RUN.rename(kept)
        print(f"the former run is kept in {kept}")
    stages = [
        ("sft", ["quickstart_sft", *overrides]),
        ("hpt", ["quickstart_hpt", f"model={RUN / 'sft' / 'final'}", *overrides]),
    ]
    for name, arguments in stages:
        output = RUN / name
        if (output / "final").exists():
            continue
        resume = ["--resume"] if (output / "recipe.yaml").exists() else []
        command = ["train", *arguments, "--output", str(output), *resume]
        print(f"\n$ posttrain {' '.join(command)}", flush=True)
        status = subprocess.run([sys.executable, "-m", "posttrain", *command], check=False).returncode
        if status:
            return status
    summary = summarise()
    SUMMARY.write_text(json.dumps(summary, indent=2) + "\n")
    show(summary)
    return 0


def summarise() -> dict[str, dict[str, object]]:
    """The base model, and the model after each stage, on the held-out problems."""
    first, after_sft = _evaluations("sft")
    found = {"base": first, "sft": after_sft, "hpt": _evaluations("hpt")[1]}
    return {name: {key: row[key] for key in ("pass_rate", "n", "interval")} for name, row in found.items()}


def show(summary: dict[str, dict[str, object]]) -> None:
    """The table a newcomer sees last."""
    table = Table("model", "pass rate", "95 % interval", "n", title="held-out problems")
    for name, row in summary.items():
        low, high = row["interval"]  # type: ignore[misc]
        table.add_row(name, f"{row['pass_rate']:.1%}", f"{low:.1%} to {high:.1%}", str(row["n"]))
    console = Console(highlight=False)
    console.print(table)
    console.print(f"model   {RUN / 'hpt' / 'final'}\nreport  {RUN / 'hpt' / 'report.html'}\nfigures {SUMMARY}")


def _evaluations(stage: str) -> tuple[dict[str, object], dict[str, object]]:
    """The first and the last evaluation of a stage."""
    rows = [json.loads(line) for line in (RUN / stage / "evaluations.jsonl").read_text().splitlines()]
    return rows[0], rows[-1]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
