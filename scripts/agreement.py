"""How graders agree with what is known: recorded verdicts on real solutions, and answers that are wrong on purpose.

scripts/agreement gsm8k FILE      rewards/gsm8k on model solutions with their correctness, one JSON object a line:
                                  {"ground_truth": text, MODEL: {"solution": text, "is_correct": bool}, ...}
scripts/agreement math500 FILE    rewards/math_answer on MATH-500 (rows with "answer"): each gold answer grades itself
                                  1.0, and each of 20 perturbations of it 0.0

Every disagreement is printed. Exit status 1 where fewer than 99.5 % agree, or where a perturbation scores.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from posttrain.reward import Grader, RewardSpec
from posttrain.trajectory import StopReason, Trajectory, Turn

LEAST_AGREEMENT = 0.995
_DIGIT = re.compile(r"[0-9]")


def _digit_changed(gold: str, place: int) -> str | None:
    """The gold answer with one digit, the first or the last, one higher."""
    found = [match.start() for match in _DIGIT.finditer(gold)]
    if not found:
        return None
    at = found[place]
    return f"{gold[:at]}{(int(gold[at]) + 1) % 10}{gold[at + 1 :]}"


def _number(gold: str) -> bool:
    return re.fullmatch(r"-?[0-9]+", gold) is not None


PERTURBATIONS: dict[str, Callable[[str, str], str | None]] = {
    "one more": lambda gold, other: f"{gold} + 1",
    "a thousandth more": lambda gold, other: f"{gold} + 0.001",
    "negated": lambda gold, other: f"-({gold})" if gold != "0" else None,
    "doubled": lambda gold, other: f"2 \\cdot ({gold})" if gold != "0" else None,
    "a tenth": lambda gold, other: f"\\frac{{{gold}}}{{10}}" if gold != "0" else None,
    "times i": lambda gold, other: f"({gold}) i" if gold != "0" else None,
    "times a power": lambda gold, other: f"{gold} \\cdot 2^{{2^{{5}}}}" if gold != "0" else None,
    "first digit": lambda gold, other: _digit_changed(gold, 0),
    "last digit": lambda gold, other: _digit_changed(gold, -1),
    "one digit more": lambda gold, other: f"{gold}7" if gold[-1].isdigit() else f"7{gold}",
    "list, gold first": lambda gold, other: f"{gold}, 98765",
    "list, gold last": lambda gold, other: f"98765, {gold}",
    "one or the other": lambda gold, other: f"{gold} \\text{{ or }} 98765",
    "two boxes": lambda gold, other: f"{gold}}} or \\boxed{{98765",
    "another answer": lambda gold, other: other,
    "only a thought": lambda gold, other: f"}}<think>\\boxed{{{gold}}}</think> I do not know.{{",
    "other digits": lambda gold, other: other_digits(gold) if _DIGIT.search(gold) else None,
    "empty box": lambda gold, other: "",
    "not a number": lambda gold, other: "nan",
    "infinite": lambda gold, other: "\\infty",
}
"""Name -> what is boxed in place of the gold answer, made of it and another problem's; None where it would be right."""


def other_digits(text: str) -> str:
    """The text in digits of another alphabet (full width), which int() reads as the same number."""
    return text.translate({ord("0") + digit: chr(0xFF10 + digit) for digit in range(10)})


def perturbed(answers: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """(perturbation, gold answer, completion) for all answers, in order; of an equation, the right side is changed."""
    for index, gold in enumerate(answers):
        left, sign, right = gold.rpartition("=")
        other = next(one for one in [*answers[index + 1 :], *answers, "98765"] if one.rpartition("=")[2] != right)
        for name, make in PERTURBATIONS.items():
            wrong = make(_without_unit(right.strip()), other)
            if wrong is not None:
                yield name, gold, f"We get \\boxed{{{left}{sign}{wrong}}}."


def _without_unit(answer: str) -> str:
    """The answer without the unit at its end: a grader that ignores units takes another one for none."""
    return re.sub(r"\s*\\(?:text|mbox)\{ [^{}]*\}(?:\^[0-9])?$", "", answer)


def played(completion: str, answer: str) -> Trajectory:
    """A trajectory that says `completion`, its row's column `answer`."""
    turn = Turn((), (), (), StopReason.STOP, 0, completion)
    return Trajectory("item", 0, "", {"answer": answer}, (turn,))


def _graded(reward: str, trajectories: Sequence[Trajectory]) -> None:
    with Grader([RewardSpec(reward)], workers=2) as grader:
        start = time.perf_counter()
        grader.grade(trajectories)
        seconds = time.perf_counter() - start
    print(f"{len(trajectories)} graded in {seconds:.1f} s, the workers' start among them; failed: {grader.failures}")


def gsm8k(rows: Sequence[dict[str, Any]]) -> bool:
    """Compare with the recorded verdicts; whether enough agree."""
    known = [
        (row["ground_truth"], made["solution"], made["is_correct"])
        for row in rows
        for made in row.values()
        if isinstance(made, dict)
    ]
    trajectories = [played(solution, gold) for gold, solution, _ in known]
    _graded("gsm8k", trajectories)
    agreeing = 0
    for trajectory, (gold, solution, correct) in zip(trajectories, known, strict=True):
        agreeing += trajectory.solved is bool(correct)
        if trajectory.solved is not bool(correct):
            print(f"recorded {correct}, graded {trajectory.reward} ({trajectory.error or 'no error'}):")
            print(f"    gold {gold[-60:]!r}, solution {solution[-120:]!r}")
    print(f"agreement: {agreeing} of {len(known)}, {agreeing / len(known):.2%}; asked for: {LEAST_AGREEMENT:.1%}")
    return agreeing >= LEAST_AGREEMENT * len(known)


def math500(rows: Sequence[dict[str, Any]]) -> bool:
    """Grade every gold answer by itself and its perturbations; whether all of them are as they should be."""
    answers = [str(row["answer"]) for row in rows]
    cases = [("gold", gold, f"We get \\boxed{{{gold}}}.") for gold in answers] + list(perturbed(answers))
    trajectories = [played(completion, gold) for _, gold, completion in cases]
    _graded("math_answer", trajectories)
    right: Counter[str] = Counter()
    for trajectory, (name, gold, completion) in zip(trajectories, cases, strict=True):
        right[name] += trajectory.reward == float(name == "gold")
        if trajectory.reward != float(name == "gold"):
            print(f"{name}: graded {trajectory.reward} ({trajectory.error or 'no error'}): {completion!r} for {gold!r}")
    count = Counter(name for name, _, _ in cases)
    for name, number in count.items():
        print(f"{name:<20} {right[name]} of {number} graded {float(name == 'gold')}")
    return right == count


def main() -> None:
    """Run one comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("graded", choices=("gsm8k", "math500"))
    parser.add_argument("file", type=Path, help="JSON lines, or a JSON list")
    arguments = parser.parse_args()
    text = arguments.file.read_text()
    rows = json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in text.splitlines()]
    sys.exit(0 if {"gsm8k": gsm8k, "math500": math500}[arguments.graded](rows) else 1)


if __name__ == "__main__":
    main()
