"""A critic in the update: splits, warm-up, clipping, recorded values, finite differences, whole runs."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.overrides import TorchFunctionMode

from posttrain.algorithms import load
from posttrain.batch import Source, TokenBatch, TokenSequence
from posttrain.config.schema import CriticSettings, ModelSettings, TokenizerSettings, TrainingSettings
from posttrain.data.collate import collate
from posttrain.estimator import reduce
from posttrain.estimator.outcomes import Outcome, TokenScored
from posttrain.estimator.scores import ScoreTerm
from posttrain.models.critic import Critic
from posttrain.models.load import load_model
from posttrain.models.policy import Policy
from posttrain.models.tokenizer import load_tokenizer
from posttrain.rows import Layout
from posttrain.trainer.optimizer import make_optimizer, make_schedule
from posttrain.trainer.step import Updater, row_options, score
from tests.trainer.processes import Run, run_ranks

_REWARD = '''
"""A reward that every completion gets a different one of."""

def varied(completion: str) -> float:
    """Between 0 and 1; solved where it is 1."""
    return sum(map(ord, completion)) % 3 / 2
'''


class Double(TorchFunctionMode):
    """Keeps in float64 what architectures compute in float32 (norms)."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        narrows = func is torch.Tensor.float or (func is torch.Tensor.to and torch.float32 in args)
        return args[0] if narrows and args[0].dtype == torch.float64 else func(*args, **(kwargs or {}))


def _sequences(num_groups: int, seed: int) -> list[TokenSequence]:
    """Groups of 4 rollouts of one prompt, some in two turns, with rewards, recorded logprobs and values."""
    draw = random.Random(seed)
    found = []
    for group in range(num_groups):
        prompt = [draw.randrange(5, 60) for _ in range(draw.randrange(1, 9))]
        for index in range(4):
            own = [True] * draw.randrange(1, 6) + [False, True] * draw.randrange(2)
            ids = prompt + [draw.randrange(5, 60) for _ in own]
            numbers = [[draw.gauss(-4, 0.2) for action in own if action] for _ in range(2)]
            found.append(
                TokenSequence(
                    token_ids=tuple(ids),
                    action_mask=(False,) * len(prompt) + tuple(own),
                    source=Source.ROLLOUTS,
                    group=group,
                    reward=float(index % 2),
                    solved=index % 2 == 1,
                    behavior_logprobs=tuple(numbers[0]),
                    old_logprobs=tuple(numbers[1]),
                    old_values=tuple(draw.gauss(0.3, 0.5) for action in own if action),
                )
            )
    return found


def _policy(tiny_recipe: dict[str, Any], reading: Any) -> Policy:
    settings = ModelSettings(config=tiny_recipe["model"]["config"], dtype="float64")
    model = load_model(settings, load_tokenizer(TokenizerSettings(path="characters"), settings), seed=0)
    critic = Critic(model, reading)
    with torch.no_grad():
        critic.head.weight.normal_(generator=torch.Generator().manual_seed(0))
    return Policy(model, critic=critic)


def _updater(
    tiny_recipe: dict[str, Any], name: str, budget: int = 100_000, critic: CriticSettings | None = None, **changes: Any
) -> Updater:
    from accelerate import Accelerator

    training = TrainingSettings(learning_rate=1e-2, steps=10, **changes)
    critic = critic or CriticSettings(learning_rate=1e-2)
    algorithm = load(name)
    policy = _policy(tiny_recipe, algorithm.plan.critic)
    optimizer = make_optimizer(policy, training, critic)
    schedule = make_schedule(optimizer, training, critic)
    accelerator = Accelerator(cpu=True)
    return Updater(algorithm, policy, optimizer, schedule, accelerator, budget, training.max_grad_norm, critic)


def _weights(module: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()]).clone()


EACH = pytest.mark.parametrize("name", ["ppo", "oreal"])


@EACH
@pytest.mark.parametrize(("layout", "rounding"), [("padded", 1e-10), ("packed", 1e-7), ("shared", 1e-7)])
def test_micro_batches_and_order_do_not_change_the_update(
    tiny_recipe: dict[str, Any], name: str, layout: Layout, rounding: float
) -> None:
    # Norms within are in float32, and what is left out at the end of packed rows changes how they round.
    sequences = _sequences(num_groups=4, seed=3)
    shuffled = random.Random(1).sample(sequences, len(sequences))
    whole = _updater(tiny_recipe, name, epsilon=1e-2)  # Adam's division would blow up the rounding of tiny gradients
    whole.policy.layout = whole.policy.critic.layout = layout
    before = _weights(whole.policy)
    whole(sequences)
    assert (_weights(whole.policy.model) - before[: len(_weights(whole.policy.model))]).abs().max() > 1e-4
    assert (_weights(whole.policy.critic) - before[-len(_weights(whole.policy.critic)) :]).abs().max() > 1e-4
    for budget, data in [(20, sequences), (64, shuffled)]:
        split = _updater(tiny_recipe, name, budget, epsilon=1e-2)
        split.policy.layout = split.policy.critic.layout = layout
        split(data)
        torch.testing.assert_close(_weights(split.policy), _weights(whole.policy), rtol=0, atol=rounding)


@EACH
def test_in_warm_up_the_policy_does_not_change_at_all(tiny_recipe: dict[str, Any], name: str) -> None:
    sequences = _sequences(num_groups=3, seed=0)
    critic = CriticSettings(learning_rate=1e-2, warmup_steps=2)
    updater = _updater(tiny_recipe, name, critic=critic, weight_decay=0.5)
    start, second = _weights(updater.policy.model), _weights(updater.policy.critic)
    for step in range(2):
        metrics = updater(sequences, step)
        assert metrics["grad_norm"] > 0
        assert (metrics["learning_rate"], metrics["critic_learning_rate"]) == (0.0, 1e-2)
        torch.testing.assert_close(_weights(updater.policy.model), start, rtol=0, atol=0)
        assert (_weights(updater.policy.critic) - second).abs().max() > 1e-4
    known = set(updater.policy.critic.parameters())
    assert all(updater.optimizer.state.get(p) is None for p in updater.policy.parameters() if p not in known)
    assert updater(sequences, 2)["learning_rate"] == 1e-2
    assert (_weights(updater.policy.model) - start).abs().max() > 1e-4


def test_the_gradients_are_clipped_apart(tiny_recipe: dict[str, Any]) -> None:
    sequences = _sequences(num_groups=3, seed=0)
    found = []
    for limit in (0.0, 1e-12):
        critic = CriticSettings(learning_rate=1e-2, max_grad_norm=limit)
        updater = _updater(tiny_recipe, "ppo", critic=critic, epsilon=1.0)
        second = _weights(updater.policy.critic)
        norms = updater(sequences)
        moved = float((_weights(updater.policy.critic) - second).abs().max())
        found.append((norms["grad_norm"], norms["critic_grad_norm"], _weights(updater.policy.model), moved))
    assert found[0][:2] == found[1][:2]
    torch.testing.assert_close(found[0][2], found[1][2], rtol=0, atol=0)
    assert found[0][3] > 1e-5
    assert found[1][3] < 1e-9


@EACH
def test_the_critics_scores_are_recorded(tiny_recipe: dict[str, Any], name: str) -> None:
    updater = _updater(tiny_recipe, name)
    sequences = [dataclasses.replace(one, old_values=None) for one in _sequences(num_groups=3, seed=0)]
    scored = score(updater.policy, sequences, "old_logprobs", 40, updater.accelerator)
    with torch.no_grad():
        for one in scored:
            expected = updater.policy(collate([one], whole=True))
            torch.testing.assert_close(torch.tensor(one.old_values, dtype=torch.float64), expected.values)
            torch.testing.assert_close(torch.tensor(one.old_logprobs, dtype=torch.float64), expected.logprobs)
    alone = score(updater.policy, sequences, "old_values", 40, updater.accelerator)
    assert [one.old_values for one in alone] == [one.old_values for one in scored]
    assert [one.old_logprobs for one in alone] == [one.old_logprobs for one in sequences]


@EACH
def test_finite_differences(tiny_recipe: dict[str, Any], name: str) -> None:
    """The update's gradient is that of the objective's own value where nothing clips and ratios are exact."""
    settings: dict[str, dict[str, Any]] = {"ppo": {"clip_low": 0.99, "clip_high": 50.0, "value_clip": 0.0}, "oreal": {}}
    algorithm = load(name, **settings[name])
    policy = _policy(tiny_recipe, algorithm.plan.critic)
    policy.train()
    sequences = _sequences(num_groups=2, seed=2)
    batch = algorithm.prepare(TokenBatch.from_sequences(sequences, torch.float64))
    counts = algorithm.counts(batch)
    rows = collate(sequences, **row_options(policy))

    def value() -> torch.Tensor:
        """The loss whose gradient the estimator is: `current` denominators are log pi, k3 is the penalty itself."""
        scored = policy(rows)
        with_policy = batch.replace(logprobs=scored.logprobs, entropy=scored.entropy, values=scored.values)
        totals, _ = algorithm.totals(with_policy)
        losses = []
        for index, term in enumerate(algorithm.terms):
            if term.name not in ("policy", "kl") or name == "ppo":
                losses.append(totals[index])
                continue
            on = with_policy.broadcast(batch.coefficients[index])
            difference = batch.old_logprobs - scored.logprobs
            own = batch.advantages[index] * scored.logprobs if term.name == "policy" else -torch.expm1(difference)
            own = own + difference if term.name == "kl" else own
            losses.append(-(on * own).sum())
        return reduce(torch.stack(losses), counts)

    def loss() -> torch.Tensor:
        scored = policy(rows)
        made = batch.replace(logprobs=scored.logprobs, entropy=scored.entropy, values=scored.values)
        return reduce(algorithm.totals(made)[0], counts)

    parameters = list(policy.parameters())
    with Double():
        gradient = torch.autograd.grad(loss(), parameters)
    generator = torch.Generator().manual_seed(1)
    way = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
    slope = float(sum((g * w).sum() for g, w in zip(gradient, way, strict=True)))
    ends = []
    with torch.no_grad(), Double():
        for step in (1e-6, -2e-6):
            for parameter, direction in zip(parameters, way, strict=True):
                parameter.add_(step * direction)
            ends.append(float(value()))
    assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(slope, rel=1e-5)


def test_a_token_model_trained_on_outcomes_finds_the_decisive_token(tiny_recipe: dict[str, Any]) -> None:
    """Completions of six tokens are solved where they hold token 40: no other label, and weights on that token."""
    critic = _policy(tiny_recipe, "action").critic.float()
    optimizer = torch.optim.Adam(critic.parameters(), lr=3e-3)
    term, draw = ScoreTerm(), random.Random(0)

    def completions() -> tuple[TokenBatch, torch.Tensor]:
        """Pairs, the second of each solved; and where it was decided."""
        made = []
        for index in range(48):
            tokens = [draw.randrange(10, 40) for _ in range(6)]
            tokens[draw.randrange(2, 5)] = 40 if index % 2 else 10
            mask = (False, *(True,) * 6)
            made.append(TokenSequence((5, *tokens), mask, Source.ROLLOUTS, 0, reward=index % 2, solved=index % 2 == 1))
        rows = collate(made, layout="padded", whole=True)
        return TokenBatch.from_sequences(made).replace(values=critic(rows)), (rows.action_ids == 40).view(-1, 6)

    for _ in range(50):
        optimizer.zero_grad()
        batch, _ = completions()
        (term.total(batch, *term.prepare(batch))[0] / term.count(batch)).backward()
        optimizer.step()
    batch, decisive = completions()
    scored = TokenScored(Outcome(), prefix=False)(batch.replace(old_values=batch.values.detach())).view(-1, 6)
    before = (torch.cumsum(decisive, 1) == 0) & decisive.any(1, keepdim=True)
    assert scored[decisive].mean() > 0.5
    assert scored[decisive].mean() > 2 * scored[before].mean()


def _recipe(tiny_recipe: dict[str, Any], write_recipe: Callable[..., Path], directory: Path, name: str) -> Path:
    (directory / "rewards").mkdir()
    (directory / "rewards" / "varied.py").write_text(_REWARD)
    tiny_recipe["prompts"] = tiny_recipe.pop("demonstrations")
    tiny_recipe |= {"rewards": [{"name": "varied"}], "algorithm": {"name": name}}
    tiny_recipe["critic"] = {"learning_rate": 1e-3, "warmup_steps": 1}
    tiny_recipe["training"] |= {"steps": 3, "prompts_per_step": 3, "weight_decay": 0.1}
    return write_recipe(tiny_recipe)


def _run(recipe: Path, output: Path, num_ranks: int) -> list[dict[str, float]]:
    if num_ranks == 1:
        Run(recipe, output).finish()
    else:
        run_ranks(recipe, output, num_ranks=num_ranks)
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


@EACH
def test_a_run_on_one_rank_and_on_two(
    name: str, tiny_recipe: dict[str, Any], write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = _recipe(tiny_recipe, write_recipe, tmp_path, name)
    weights = []
    for num_ranks in (1, 2):
        output = tmp_path / f"ranks_{num_ranks}"
        metrics = _run(recipe, output, num_ranks)
        assert metrics[0]["critic_grad_norm"] > 0
        assert (metrics[0]["learning_rate"], metrics[1]["learning_rate"]) == (0.0, 1e-3)
        assert ("value/explained_variance" if name == "ppo" else "token_model/cross_entropy") in metrics[0]
        final = load_file(output / "final" / "model.safetensors")
        assert not any("critic" in key for key in final)
        assert sorted(p.name for p in output.iterdir() if p.name.startswith("final")) == ["final"]
        weights.append(load_file(output / "checkpoints" / "step_3" / "model.safetensors"))
    assert any(key.startswith("critic.") for key in weights[0])
    for key, values in weights[0].items():
        torch.testing.assert_close(weights[1][key], values, rtol=1e-4, atol=1e-5)
