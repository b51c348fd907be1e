"""The commands as a user types them: what they print, and exit status 2 with one message for a mistake."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from posttrain import __main__

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def posttrain(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs a command in this process; returns status, stdout and stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["posttrain", *arguments])
        with pytest.raises(SystemExit) as stopped:
            __main__.main()
        captured = capsys.readouterr()
        return int(stopped.value.code or 0), captured.out, captured.err

    return run


# What is typed wrong, and what the message must offer. Overrides go through the same checks as the file.
MISTAKES = [
    ("training.learing_rate=1e-3", "learning_rate"),
    ("training.step=10", "steps"),
    ("training.steps=0", "above 0"),
    ("training.steps=ten", "integer"),
    ("training.schedule=cosin", "cosine"),
    ("training.learning_rate=-1", "at least 0"),
    ("training.warmup_steps=50", "training.steps"),
    ("training.mixed_precision=bf-16", "bf16"),
    ("rollout.temprature=0.7", "temperature"),
    ("rollout.temperature=0", "above 0"),
    ("rollout.group_size=1", "at least 2"),
    ("rollout.top_p=1.5", "at most 1"),
    ("rollout.engine=vlm", "transformers"),
    ("rolout.max_tokens=5", "rollout"),
    ("algorithm.name=hpd", "hpt"),
    ("algorithm.gates=1", "gate"),
    ("algorithm.gate=often", "integer"),
    ("algorithm.gate=4", "at most 3"),
    ("rewards.0.name=regex_mach", "regex_match"),
    ("rewards.0.hole=true", "whole"),
    ("demonstrations.0.path=nowhere.jsonl", "nowhere.jsonl"),
    ("demonstrations.0.config.dataset=chain_sums", "chain_sum"),
    ("model.config.hiden_size=8", "hidden_size"),
    ("model.path=some/where", "config"),
    ("evaluation.name=gsm9k", "gsm8k"),
    ("checkpoint.keep=0", "above 0"),
    ("preferences.0.path=pairs.jsonl", "preferences"),
    ("seed=1.5", "integer"),
    ("tracking.trackers=[tensorbord]", "tensorboard"),
]


@pytest.mark.parametrize(("override", "offered"), MISTAKES, ids=[override for override, _ in MISTAKES])
def test_a_mistake_is_one_message_and_status_2(
    posttrain: Command,
    tiny_recipe: dict[str, Any],
    write_recipe: Callable[..., Path],
    tmp_path: Path,
    override: str,
    offered: str,
) -> None:
    output = tmp_path / "run"
    status, _, message = posttrain("train", str(write_recipe(tiny_recipe)), override, "--output", str(output))
    assert status == 2
    assert offered in message
    assert override.split("=", maxsplit=1)[0].rsplit(".", maxsplit=1)[-1] in message
    assert "Traceback" not in message
    assert not (output / "metrics.jsonl").exists()


def test_the_same_mistake_in_a_file_names_its_line(
    posttrain: Command, tiny_recipe: dict[str, Any], write_recipe: Callable[..., Path]
) -> None:
    tiny_recipe["training"]["learing_rate"] = 1e-3
    path = write_recipe(tiny_recipe)
    line = next(n for n, text in enumerate(path.read_text().splitlines(), 1) if "learing_rate" in text)
    status, _, message = posttrain("train", str(path))
    assert status == 2
    assert f"{path}:{line}" in message


def test_a_mistake_is_found_before_anything_heavy_is_imported(
    tiny_recipe: dict[str, Any], write_recipe: Callable[..., Path]
) -> None:
    code = (
        "import sys; sys.argv = ['posttrain', 'train', sys.argv[1], 'training.step=3']\n"
        "from posttrain.__main__ import main\n"
        "try:\n    main()\nexcept SystemExit as stopped:\n"
        "    heavy = {'transformers', 'accelerate', 'datasets'} & set(sys.modules)\n"
        "    sys.exit(f'{stopped.code} {sorted(heavy)}')\n"
    )
    command = [sys.executable, "-c", code, str(write_recipe(tiny_recipe))]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.stderr.splitlines()[-1] == "2 []"


@pytest.mark.parametrize("arguments", [["--help"], ["list", "rewards"], ["list", "recipes"]])
def test_help_and_lists_import_nothing_heavy(arguments: list[str]) -> None:
    code = (
        f"import sys; sys.argv = ['posttrain', *{arguments!r}]\n"
        "from posttrain.__main__ import main\n"
        "try:\n    main()\nexcept SystemExit as stopped:\n    assert not stopped.code\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize("kind", ["algorithms", "rewards", "environments", "benchmarks", "recipes", "parts"])
def test_list(posttrain: Command, kind: str) -> None:
    expected = {
        "algorithms": "hpt",
        "rewards": "gsm8k",
        "environments": "single_turn",
        "benchmarks": "math500",
        "recipes": "quickstart_hpt",
        "parts": "solved_gate",
    }
    status, printed, _ = posttrain("list", kind)
    assert status == 0
    assert expected[kind] in printed


@pytest.mark.parametrize("columns", [80, 120, 200])
@pytest.mark.parametrize("kind", ["algorithms", "parts"])
def test_lists_fit_the_terminal_and_cut_no_word(
    posttrain: Command, monkeypatch: pytest.MonkeyPatch, kind: str, columns: int
) -> None:
    whole = set(posttrain("list", kind)[1].split())
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(columns))
    printed = posttrain("list", kind)[1]
    table, _, note = printed.partition("\n\n")
    assert max(map(len, printed.splitlines())) <= columns
    assert set(table.split()) <= whole
    assert ("likelihood" in note) == (kind == "algorithms" and columns < 200)


def test_explain_an_algorithm_and_a_recipe(
    posttrain: Command, tiny_recipe: dict[str, Any], write_recipe: Callable[..., Path]
) -> None:
    assert "clip(low=0.1" in posttrain("explain", "grpo", "clip_low=0.1")[1]
    status, printed, _ = posttrain("explain", str(write_recipe(tiny_recipe)))
    assert status == 0
    assert "4 prompts x 4 completions = 16 a step" in printed
    assert posttrain("explain", "hpt", "--format", "json")[1].startswith("{")
    assert r"\begin{align}" in posttrain("explain", "hpt", "--format", "latex")[1]


def test_rollout_prints_episodes(
    posttrain: Command, tiny_recipe: dict[str, Any], write_recipe: Callable[..., Path]
) -> None:
    status, printed, _ = posttrain("rollout", str(write_recipe(tiny_recipe)), "--count", "2")
    assert status == 0
    assert printed.count("reward 0 (regex_match 0)") == 2
    assert "user: " in printed


def test_doctor_measures_a_recipes_noise(
    posttrain: Command, tiny_recipe: dict[str, Any], write_recipe: Callable[..., Path]
) -> None:
    status, printed, _ = posttrain("doctor", "--recipe", str(write_recipe(tiny_recipe)), "--steps", "1", "seed=3")
    assert status == 0
    assert "Learning rate 0 for 1 steps: 16 sequences" in printed


def test_serve_takes_recipes_and_models(posttrain: Command, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    for words, expected in (
        (("nowhere.yaml",), "nowhere.yaml"),
        ((str(tmp_path), "training.steps=1"), "'training.steps=1' changes a recipe, and"),
        ((str(tmp_path),), "no readable config.json there"),
    ):
        status, _, said = posttrain("serve", *words, "--tensor-parallel-size", "2")
        assert status == 2 and expected in said, said


def test_doctor_names_versions(posttrain: Command) -> None:
    status, printed, _ = posttrain("doctor")
    assert status == 0
    assert '"transformers":' in printed
    assert '"browser (Chromium)":' in printed
