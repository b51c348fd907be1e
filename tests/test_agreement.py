"""scripts/agreement: gold answers and their perturbations, and recorded verdicts, on answers made here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "agreement.py"

ANSWERS = [
    "5",
    "-\\frac{3}{7}",
    "1,250",
    "0.0000672",
    "\\left( 3, \\frac{\\pi}{2} \\right)",
    "2\\sqrt{13}",
    "x=5",
    "y = 2x + 3",
    "(-\\infty, 2) \\cup (3, \\infty)",
    "6 - 5i",
    "\\text{Evelyn}",
    "2516_8",
    "15\\mbox{ cm}^2",
    "\\begin{pmatrix} -1/3 \\\\ 2/3 \\end{pmatrix}",
    "1,-2",
    "0",
]
"""One of each form that MATH-500 has."""


def agreement(graded: str, file: Path, rows: list[dict[str, Any]]) -> tuple[int, str]:
    file.write_text("\n".join(json.dumps(row) for row in rows))
    done = subprocess.run([sys.executable, str(SCRIPT), graded, str(file)], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_gold_answers_score_and_twenty_perturbations_do_not(tmp_path: Path) -> None:
    status, said = agreement("math500", tmp_path / "rows.jsonl", [{"answer": answer} for answer in ANSWERS])
    assert status == 0, said
    lines = [line for line in said.splitlines() if " of " in line]
    assert len(lines) == 21
    for line in lines:
        right, _, count = line.partition(" graded ")[0].split()[-3:]
        assert right == count, line


def test_recorded_verdicts(tmp_path: Path) -> None:
    said = {"is_correct": True, "solution": "2 + 2 = <<2+2=4>>4\nA: 4"}
    wrong = {"is_correct": False, "solution": "2 + 2 = 5\nA: 5"}
    row = {"question": "2 + 2?", "ground_truth": "It is 4.\nA: 4", "small": wrong, "large": said}
    status, text = agreement("gsm8k", tmp_path / "rows.jsonl", [row])
    assert (status, "agreement: 2 of 2" in text) == (0, True), text
    status, text = agreement("gsm8k", tmp_path / "rows.jsonl", [row | {"small": wrong | {"is_correct": True}}])
    assert status == 1
    assert "recorded True, graded 0.0 (no error):" in text
    assert "agreement: 1 of 2, 50.00%" in text
