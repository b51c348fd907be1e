"""The scorer of the reasoning-gym dataset that a prompt came from."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from posttrain.errors import RecipeError
from posttrain.reward import Graded

_RUNS_THE_ANSWER = frozenset(
    {
        "binary_matrix",
        "countdown",
        "intermediate_integration",
        "n_queens",
        "polynomial_multiplication",
        "puzzle24",
        "simple_integration",
        "spiral_matrix",
        "string_insertion",
    }
)
_REFUSED = {
    "game_of_life_halting": "its scorer gives full marks to any text where the right answer is False",
    "complex_arithmetic": "its scorer gives full marks to 'nan'",
    "coin_flip": "its scorer gives full marks to '0' (it compares beginnings of numbers)",
}
_RAISED_BY_WRONG_ANSWERS: dict[str, tuple[type[Exception], ...]] = {
    "prime_factorization": (ValueError,),
    "boxnet": (TypeError, AttributeError),
    "game_of_life": (KeyError,),
}


def reasoning_gym(
    completion: str, entry: Mapping[str, Any], *, strict: bool = True, allow_code_execution: bool = False
) -> float:
    """The dataset's own score of the answer: 1.0 or 0.0 where `strict`, else its partial credit in [0, 1].

    entry: the item as reasoning-gym generated it (question, answer, metadata with source_dataset). The answer is the
    text in the completion's last <answer></answer>, else the whole completion; one with digits of another alphabet,
    which int() reads, is wrong. RecipeError for a dataset whose scorer pays wrong answers, and, unless
    `allow_code_execution`, for one whose scorer runs the answer as code.
    """
    name = str(entry["metadata"]["source_dataset"])
    _check(name, allow_code_execution)
    from reasoning_gym.utils import extract_answer

    answer = extract_answer(completion)
    answer = completion.strip() if answer is None else answer
    if any(one.isdecimal() and not one.isascii() and one not in str(entry.get("answer")) for one in answer):
        return Graded(0.0, answer)
    try:
        score = float(_dataset(name).score_answer(answer, entry))
    except _RAISED_BY_WRONG_ANSWERS.get(name, ()):
        score = 0.0
    return Graded(score >= 1.0 if strict else score, answer or None)


def warm_up() -> None:
    """Import reasoning-gym (about a second), so that the first call's deadline does not pay for it."""
    import reasoning_gym  # noqa: F401


@cache
def _dataset(name: str) -> Any:
    from reasoning_gym import create_dataset

    return create_dataset(name)


def _check(name: str, allow_code_execution: bool) -> None:
    if name in _REFUSED:
        raise RecipeError(f"reasoning_gym: the dataset '{name}' cannot be a reward: {_REFUSED[name]}")
    if name in _RUNS_THE_ANSWER and not allow_code_execution:
        raise RecipeError(
            f"reasoning_gym: the scorer of '{name}' runs the model's answer as code; allowed only with "
            "allow_code_execution: true on the reward, on a machine that you can afford to lose"
        )
