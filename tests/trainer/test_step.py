"""Promise 2: the same gradient under every split, and the same parameters after a step."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import pytest
import torch

from posttrain.algorithms import load
from posttrain.batch import Source, TokenSequence
from posttrain.config.schema import ModelSettings, TokenizerSettings, TrainingSettings
from posttrain.models.load import load_model
from posttrain.models.policy import Policy
from posttrain.models.tokenizer import load_tokenizer
from posttrain.trainer.optimizer import make_optimizer, make_schedule
from posttrain.trainer.step import Updater, score


def _sequences(num_groups: int, seed: int) -> list[TokenSequence]:
    """Groups of 3 rollouts and a demonstration, lengths 4-20, some solved, one ungraded."""
    generator = random.Random(seed)
    sequences = []
    for group in range(num_groups):
        for index in range(4):
            length, prompt = generator.randrange(4, 20), generator.randrange(1, 4)
            demonstration = index == 3
            reward = None if demonstration or (group, index) == (1, 1) else float(generator.random() < 0.4 * group)
            sequences.append(
                TokenSequence(
                    token_ids=tuple(generator.randrange(5, 60) for _ in range(length)),
                    action_mask=tuple(position >= prompt for position in range(length)),
                    source=Source.DEMONSTRATIONS if demonstration else Source.ROLLOUTS,
                    group=group,
                    reward=reward,
                    solved=reward == 1.0,
                )
            )
    return sequences


def _updater(tiny_recipe: dict[str, Any], algorithm: str, budget: int, **settings: Any) -> Updater:
    from accelerate import Accelerator

    training = TrainingSettings(learning_rate=1e-2, steps=10)
    model_settings = ModelSettings(config=tiny_recipe["model"]["config"], dtype="float64")
    tokenizer = load_tokenizer(TokenizerSettings(path="characters"), model_settings)
    policy = Policy(load_model(model_settings, tokenizer, seed=0))
    optimizer = make_optimizer(policy, training)
    accelerator = Accelerator(cpu=True)
    return Updater(
        load(algorithm, **settings), policy, optimizer, make_schedule(optimizer, training), accelerator, budget, 0.0
    )


def _parameters(updater: Updater) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in updater.policy.parameters()])


@pytest.mark.parametrize("algorithm", ["hpt", "grpo", "reinforce", "sft"])
def test_micro_batches_and_order_do_not_change_the_update(tiny_recipe: dict[str, Any], algorithm: str) -> None:
    settings = {"kl_weight": 0.0} if algorithm == "grpo" else {}
    sequences = _sequences(num_groups=4, seed=3)
    shuffled = random.Random(1).sample(sequences, len(sequences))
    whole = _updater(tiny_recipe, algorithm, 100_000, **settings)
    before = _parameters(whole)
    whole(sequences)
    assert (_parameters(whole) - before).abs().max() > 1e-4
    for budget, data in [(20, sequences), (64, shuffled), (100_000, shuffled)]:
        split = _updater(tiny_recipe, algorithm, budget, **settings)
        split(data)
        torch.testing.assert_close(_parameters(split), _parameters(whole), rtol=0, atol=1e-10)


def _broken(sequence: TokenSequence, number: int) -> list[TokenSequence]:
    """The same episode as two sequences: the second has the first's actions in its prompt."""
    cut = sequence.num_tokens - sequence.num_actions // 2
    own = dataclasses.replace(sequence, trajectory=number)
    rest = tuple(action and position >= cut for position, action in enumerate(sequence.action_mask))
    first = dataclasses.replace(own, token_ids=own.token_ids[:cut], action_mask=own.action_mask[:cut])
    return [first, dataclasses.replace(own, action_mask=rest)]


@pytest.mark.parametrize("algorithm", ["hpt", "gspo", "srft", "reinforce_pp"])
def test_a_broken_episode_makes_the_same_update(tiny_recipe: dict[str, Any], algorithm: str) -> None:
    """However its sequences fall into micro-batches, and with a policy that has moved since it was sampled."""
    settings = {"kl_weight": 0.0} if algorithm == "reinforce_pp" else {}
    whole = _updater(tiny_recipe, algorithm, 100_000, **settings)
    generator = random.Random(2)
    sequences = [
        dataclasses.replace(one, old_logprobs=tuple(old + generator.gauss(0, 0.05) for old in one.old_logprobs or ()))
        for one in score(whole.policy, _sequences(4, seed=3), "old_logprobs", 64, whole.accelerator)
    ]
    broken = []
    for number, one in enumerate(sequences):
        halves = _broken(one, number)
        old, cut = one.old_logprobs or (), halves[0].num_actions
        broken += [
            dataclasses.replace(half, old_logprobs=part)
            for half, part in zip(halves, (old[:cut], old[cut:]), strict=True)
        ]
    before = _parameters(whole)
    whole(sequences)
    assert (_parameters(whole) - before).abs().max() > 1e-4
    for budget in (20, 64, 100_000):
        split = _updater(tiny_recipe, algorithm, budget, **settings)
        split(broken)  # its rows are others, and the optimiser magnifies rounding where a gradient is almost 0
        torch.testing.assert_close(_parameters(split), _parameters(whole), rtol=0, atol=1e-6)


def test_old_logprobs_of_an_unchanged_policy_change_nothing(tiny_recipe: dict[str, Any]) -> None:
    sequences = _sequences(num_groups=4, seed=5)
    plain, scored = (_updater(tiny_recipe, "hpt", 64) for _ in range(2))
    plain(sequences)
    scored(score(scored.policy, sequences, "old_logprobs", 64, scored.accelerator))
    torch.testing.assert_close(_parameters(scored), _parameters(plain), rtol=0, atol=1e-10)


def test_a_step_without_a_gradient_is_still_a_step(tiny_recipe: dict[str, Any]) -> None:
    updater = _updater(tiny_recipe, "grpo", 64, kl_weight=0.0)
    equal = [dataclasses.replace(s, reward=1.0) for s in _sequences(num_groups=2, seed=0)]
    before = _parameters(updater)
    metrics = updater(equal)
    assert metrics["num_pruned"] == len(equal)
    assert metrics["grad_norm"] == 0
    torch.testing.assert_close(_parameters(updater), before, rtol=0, atol=0)


@pytest.mark.parametrize("algorithm", ["rloo", "kto", "sft"])
def test_a_step_without_a_sequence_changes_nothing(tiny_recipe: dict[str, Any], algorithm: str) -> None:
    updater = _updater(tiny_recipe, algorithm, 64)
    before = _parameters(updater)
    metrics = updater([])
    assert (metrics["num_sequences"], metrics["grad_norm"], metrics["skipped"]) == (0, 0, 0)
    torch.testing.assert_close(_parameters(updater), before, rtol=0, atol=0)


def test_a_gradient_that_is_not_finite_skips_the_step(tiny_recipe: dict[str, Any]) -> None:
    updater = _updater(tiny_recipe, "reinforce", 64)
    sequences = _sequences(num_groups=2, seed=0)
    sequences[0] = dataclasses.replace(sequences[0], reward=float("inf"))
    before = _parameters(updater)
    metrics = updater(sequences)
    assert metrics["skipped"] == 1
    torch.testing.assert_close(_parameters(updater), before, rtol=0, atol=0)
    assert updater(_sequences(num_groups=3, seed=0))["skipped"] == 0
    assert (_parameters(updater) - before).abs().max() > 1e-4


def test_a_skipped_step_is_not_remembered(tiny_recipe: dict[str, Any]) -> None:
    updater = _updater(tiny_recipe, "red", 64)
    updater(_sequences(num_groups=3, seed=0))
    before = dict(updater.memory)
    assert before
    weights = next(updater.policy.parameters())
    good = weights.detach().clone()
    with torch.no_grad():
        weights.fill_(float("nan"))
    assert updater(_sequences(num_groups=3, seed=0))["skipped"] == 1
    assert updater.memory == before
    with torch.no_grad():
        weights.copy_(good)
    assert updater(_sequences(num_groups=3, seed=0))["skipped"] == 0
