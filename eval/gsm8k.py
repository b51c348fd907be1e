"""GSM8K (arXiv 2110.14168): grade-school word problems, 1,319 in the test split."""

from __future__ import annotations

from posttrain.config.schema import SourceSettings
from posttrain.evaluation.benchmark import Benchmark
from posttrain.reward import RewardSpec

TEMPLATE = "{question}\nPlease reason step by step, and put your final answer within \\boxed{{}}."


def gsm8k(
    *,
    data: str | None = None,
    template: str = TEMPLATE,
    system: str | None = None,
    chat: bool = True,
    temperature: float = 0.0,
    top_p: float = 1.0,
    max_tokens: int = 1024,
) -> Benchmark:
    """The test split of the hub's openai/gsm8k, or a local file `data` with its columns `question` and `answer`.

    Solved where the completion's final number is the gold one. template: makes the prompt of the row's columns. chat:
    ask in the tokenizer's chat template; system: a system message.
    """
    return Benchmark(
        name="gsm8k",
        source=SourceSettings(
            path=data or "openai/gsm8k",
            name=None if data else "main",
            split="train" if data else "test",
            template=template,
            system=system,
            chat=chat,
        ),
        rewards=(RewardSpec("gsm8k"),),
        temperature=temperature,
        top_p=top_p,
        max_tokens=max_tokens,
    )
