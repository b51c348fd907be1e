"""Answers graded per second by two workers, next to math-verify itself in a pool of two and to 1,000 a second.

The answers are made here: in every ten, seven plain numbers, as competitions have them, and three of other forms; half
of the completions are right. No answer comes twice, so that nothing is remembered from another.
"""

from __future__ import annotations

import logging
import multiprocessing
import random
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import psutil

from posttrain.reward import Grader, RewardSpec
from posttrain.trajectory import StopReason, Trajectory, Turn

Pairs = list[tuple[str, str]]
"""Gold answers, and completions."""

ASKED_PER_SECOND = 1000
FORMS = (
    r"\left( {a}, \frac{{\pi}}{{{b}}} \right)",
    r"{a}\sqrt{{{b}}}",
    r"x^2 + {a}x - {b}",
    r"[-{a}, {b})",
    r"{a}, -{b}",
    r"{a} - {b}i",
    r"\begin{{pmatrix}} {a} \\ -{b} \end{{pmatrix}}",
    r"y = {a}x + {b}",
    r"\frac{{{a}\pi}}{{{b}}}",
)


class Needed(NamedTuple):
    """Seconds of one call, on the wall's clock and on the processors'."""

    wall: float
    cpu: float


def answers(seed: int, count: int) -> Pairs:
    """Pairs of a gold answer and a completion that ends in it or in one next to it."""
    draw = random.Random(seed)
    made = []
    for number in range(count):
        a, b = draw.randrange(2, 99_999), draw.randrange(2, 99_999)
        form = draw.choice(FORMS) if draw.random() < 0.3 else draw.choice((r"{a}", r"\frac{{{a}}}{{{b}}}", r"{a}.5"))
        gold, beside = form.format(a=a, b=b), form.format(a=a + 1, b=b)
        said = "It follows from the sum of both sides. " * 20
        made.append((gold, f"{said}So the answer is \\boxed{{{gold if number % 2 else beside}}}."))
    return made


_WARM_UP = answers(-1, 800)


def rewards_benchmark(runs: int, count: int = 2000) -> list[dict[str, object]]:
    """A row for each comparison, over `count` answers."""
    numbers = [
        [(str(n), f"So it is {n + n % 2}.") for n in range(run * count, (run + 1) * count)] for run in range(runs)
    ]
    work = {"math_answer": [answers(run, count) for run in range(runs)], "gsm8k": numbers}
    asked = Needed(count / ASKED_PER_SECOND, 2 * count / ASKED_PER_SECOND)  # of two cores
    rows = []
    for reward, lists in work.items():
        ours = graded(reward, lists)
        rows.append(_row(f"{reward}, {count:,} answers, to 1,000 a second", ours, [asked] * runs, count))
        if reward == "math_answer":
            rows.append(_row(f"{reward}, {count:,} answers, to math-verify", ours, verified_alone(lists), count))
    return rows


def graded(reward: str, lists: Sequence[Pairs]) -> list[Needed]:
    """What each list takes the grader; RuntimeError unless every other answer is found right."""
    taken = []
    with Grader([RewardSpec(reward)], workers=2) as grader:
        grader.grade([_played(text, gold) for gold, text in _WARM_UP])  # until both workers are there
        for pairs in lists:
            trajectories = [_played(text, gold) for gold, text in pairs]
            taken.append(_needed(partial(grader.grade, trajectories)))
            solved = sum(one.solved is True for one in trajectories)
            if solved != len(pairs) // 2:
                raise RuntimeError(f"{solved} of {len(pairs)} answers are graded as right; half of them are")
    return taken


def verified_alone(lists: Sequence[Pairs]) -> list[Needed]:
    """What each list takes a pool of two, without deadlines and without a grader."""
    with multiprocessing.get_context("spawn").Pool(2, logging.disable, (logging.WARNING,)) as pool:
        pool.map(verified, [("1", "\\boxed{1}")] * 64)
        return [_needed(partial(pool.map, verified, pairs, 32)) for pairs in lists]


def verified(pair: tuple[str, str]) -> bool:
    """What math-verify's documentation shows, in a process without deadlines."""
    from math_verify import parse, verify

    gold, completion = pair
    return bool(
        verify(parse(f"${gold}$", parsing_timeout=None), parse(completion, parsing_timeout=None), timeout_seconds=None)
    )


def _played(text: str, answer: str) -> Trajectory:
    return Trajectory("item", 0, "", {"answer": answer}, (Turn((), (), (), StopReason.STOP, 0, text),))


def _needed(call: Callable[[], Any]) -> Needed:
    cpu, start = _processors(), time.perf_counter()
    call()
    return Needed(time.perf_counter() - start, _processors() - cpu)


def _processors() -> float:
    """Seconds of processors that this process and its children have used."""
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def _row(work: str, ours: Sequence[Needed], peer: Sequence[Needed], count: int) -> dict[str, object]:
    ratios = [theirs.wall / own.wall for own, theirs in zip(ours, peer, strict=True)]
    median = statistics.median(one.wall for one in ours)
    return {
        "work": work,
        "ours_seconds": median,
        "peer_seconds": statistics.median(one.wall for one in peer),
        "ratio": statistics.median(ratios),
        "target": 1.0,
        "ratios": ratios,
        "cpu_ratio": statistics.median(theirs.cpu / own.cpu for own, theirs in zip(ours, peer, strict=True)),
        "note": f"{count / median:,.0f} answers a second",
    }
