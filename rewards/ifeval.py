"""IFEval (arXiv 2311.07911): whether a completion follows every verifiable instruction of its prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from posttrain.reward.graded import Measured
from posttrain.reward.instructions import follows, loosened


def ifeval(
    completion: str,
    instruction_id_list: Sequence[str],
    kwargs: Sequence[Mapping[str, Any]],
    *,
    loose: bool = False,
    share: bool = False,
) -> Measured:
    """1.0 where all instructions are followed, else 0.0; share: the share that is (dense, for training).

    instruction_id_list, kwargs: names and arguments, as the published data has them. loose: an instruction counts as
    followed where a variant of the completion follows it: without its first or last line, without asterisks. It needs
    the package langdetect for instructions about languages. Counted beside the value are prompts and instructions,
    strictly and loosely, as section 2.2 defines the four accuracies.
    """
    asked = list(zip(instruction_id_list, kwargs, strict=True))
    strict = [follows(completion, name, own) for name, own in asked]
    variants = loosened(completion)
    loosely = [any(follows(one, name, own) for one in variants) for name, own in asked]
    counted = loosely if loose else strict
    value = sum(counted) / len(counted) if share else float(all(counted))
    return Measured(
        value,
        {
            "prompts, strict": (int(all(strict)), 1),
            "instructions, strict": (sum(strict), len(strict)),
            "prompts, loose": (int(all(loosely)), 1),
            "instructions, loose": (sum(loosely), len(loosely)),
        },
    )
