"""The studies that `scripts/science` runs: trains every arm at every seed, prints the tables, writes Markdown and JSON.

scripts/science hpt --seeds 0,1,2      one study
scripts/science all                    all of them
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
PLUGINS = HERE / "studies"
FOLDER = Path("runs/science")


def _seeds(text: str) -> list[int]:
    """0,1,2 as numbers."""
    seeds = text.split(",")
    if not all(seed.isdigit() for seed in seeds) or len(set(seeds)) < len(seeds):
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed; allowed: different whole numbers, as in 0,1,2")
    return [int(seed) for seed in seeds]


def main() -> None:
    """Run the studies asked for."""
    # Before posttrain is imported, here and in the processes started below: where the tasks' rewards lie.
    os.environ["POSTTRAIN_PATH"] = os.pathsep.join(filter(None, [str(PLUGINS), os.environ.get("POSTTRAIN_PATH")]))
    from studies.catalogue import STUDIES
    from studies.runner import run_study
    from studies.table import Results, write_section

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=[*STUDIES, "all"])
    parser.add_argument(
        "--seeds", type=_seeds, default="0,1,2", help="seeds below 100; from 100 on other items are held out"
    )
    parser.add_argument("--json", type=Path, help="also write every figure there")
    parser.add_argument(
        "--markdown", type=Path, default=FOLDER / "science.md", help="the file whose sections are renewed"
    )
    parser.add_argument("--processes", type=int, default=2, help="runs side by side")
    arguments = parser.parse_args()
    order = [study.title for study in STUDIES.values()]
    written = []
    for name in STUDIES if arguments.study == "all" else [arguments.study]:
        results = Results(STUDIES[name], run_study(STUDIES[name], arguments.seeds, FOLDER, arguments.processes))
        section = results.markdown()
        print(f"\n{section}\n", flush=True)
        arguments.markdown.parent.mkdir(parents=True, exist_ok=True)
        write_section(arguments.markdown, results.study.title, section, order)
        written.append(results.to_json())
        (FOLDER / f"{name}.json").write_text(json.dumps(written[-1], indent=2) + "\n")
        if arguments.json:
            arguments.json.write_text(json.dumps({"studies": written}, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
