"""The policy as a judge: both orders averaged, the labels' own probabilities, and nothing to parse."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from posttrain.batch import TokenSequence
from posttrain.config.schema import ModelSettings, TokenizerSettings
from posttrain.data.chat import encode_prompt
from posttrain.data.questions import question
from posttrain.errors import DataError
from posttrain.estimator.pairing import Judge
from posttrain.models.load import load_model
from posttrain.models.policy import Policy
from posttrain.models.tokenizer import character_tokenizer, load_tokenizer
from posttrain.trainer.judge import judged
from posttrain.trainer.step import score
from posttrain.trajectory import Prompt, StopReason, Trajectory, Turn

TOKENIZER = character_tokenizer()
JUDGE = Judge("{prompt}~{first}~{second}~")
CHAT: Prompt = ({"role": "user", "content": "best letter?"},)


def group(*texts: str, prompt: Prompt = CHAT) -> list[Trajectory]:
    """One trajectory for each completion."""
    turns = [(Turn((1,), (2,), (-1.0,), StopReason.STOP, 0, text),) for text in texts]
    return [Trajectory("row", 0, prompt, {}, turns=turn) for turn in turns]


def letters(asked: Sequence[TokenSequence]) -> list[TokenSequence]:
    """A judge that finds a letter as good as its place in the alphabet, and likes whatever stands first by 0.7."""
    scored = []
    for sequence in asked:
        _, first, second, _ = TOKENIZER.decode(list(sequence.token_ids)).split("~")
        taken = TOKENIZER.decode([sequence.token_ids[-1]])
        quality = ord(first) + 0.7 if taken == "A" else ord(second)
        scored.append(replace(sequence, old_logprobs=(float(quality) - 100.0,)))
    return scored


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_both_orders_are_averaged() -> None:
    found = judged([group("d", "c", "d"), group("x"), [], group("b", "e")], JUDGE, TOKENIZER, letters)
    assert [len(chances) for chances in found] == [3, 1, 0, 2]
    one = (sigmoid(1.7) + 1 - sigmoid(-0.3)) / 2
    expected = [[0.5, one, 0.5], [1 - one, 0.5, 1 - one], [0.5, one, 0.5]]
    for row, wanted in zip(found[0], expected, strict=True):
        assert list(row) == pytest.approx(wanted, rel=1e-12)
    assert found[1] == [[0.5]]
    assert found[3][0][1] + found[3][1][0] == pytest.approx(1, abs=1e-15)
    assert found[3][0][1] < 0.1


def test_questions() -> None:
    assert question(JUDGE.template, CHAT, "a", "b") == ({"role": "user", "content": "best letter?~a~b~"},)
    assert question(JUDGE.template, "plain: ", "a", "b") == "plain: ~a~b~"
    longer = ({"role": "system", "content": "Be brief."}, *CHAT)
    (asked,) = question(Judge().template, longer, "a", "b")
    assert "Prompt: system: Be brief.\n\nuser: best letter?" in asked["content"]
    assert "Response A: a\n\nResponse B: b" in asked["content"]


def test_labels_that_the_tokenizer_cannot_tell_apart() -> None:
    with pytest.raises(DataError, match=r"judge_labels \('é', 'ü'\) are tokens"):
        judged([group("a", "b")], Judge(JUDGE.template, ("é", "ü")), TOKENIZER, letters)


def test_the_policys_own_probabilities(tiny_recipe: dict[str, Any]) -> None:
    from accelerate import Accelerator

    settings = ModelSettings(config=tiny_recipe["model"]["config"], dtype="float64")
    tokenizer = load_tokenizer(TokenizerSettings(path="characters"), settings)
    model = load_model(settings, tokenizer, seed=3)
    judge = Judge(labels=("first", "2"))
    texts = ("4", "5, I think", "")

    def scored(asked: Sequence[TokenSequence]) -> list[TokenSequence]:
        return score(Policy(model), asked, "old_logprobs", 2_000, Accelerator(cpu=True))

    (found,) = judged([group(*texts)], judge, tokenizer, scored)

    @torch.no_grad()
    def label(first: str, second: str, text: str) -> float:
        ids = encode_prompt(question(judge.template, CHAT, first, second), tokenizer)
        answer = tokenizer.encode(text, add_special_tokens=False)
        logprobs = model(torch.tensor([[*ids, *answer]])).logits[0].log_softmax(-1)
        return sum(float(logprobs[len(ids) - 1 + place, token]) for place, token in enumerate(answer))

    for i, one in enumerate(texts):
        for j, other in enumerate(texts):
            if i != j:
                ahead = sigmoid(label(one, other, "first") - label(one, other, "2"))
                behind = sigmoid(label(other, one, "first") - label(other, one, "2"))
                assert found[i][j] == pytest.approx((ahead + 1 - behind) / 2, rel=1e-6)
