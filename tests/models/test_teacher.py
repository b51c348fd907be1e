"""The teacher beside a policy: what it is loaded from, what it refuses, and that nothing trains or saves it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from posttrain.batch import Source, TokenSequence
from posttrain.config.schema import ModelSettings, TeacherSettings, TokenizerSettings
from posttrain.data.collate import collate
from posttrain.errors import UserError
from posttrain.estimator.distillation import ForwardKL, ReverseKL
from posttrain.models.load import load_model
from posttrain.models.policy import Policy, Teacher
from posttrain.models.teacher import check_teacher, load_teacher
from posttrain.models.tokenizer import load_tokenizer
from posttrain.rows import Layout

TINY: dict[str, Any] = {
    "model_type": "qwen3",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "tie_word_embeddings": True,
}
LARGER: dict[str, Any] = TINY | {"hidden_size": 48, "num_hidden_layers": 1, "tie_word_embeddings": False}
CAPPED: dict[str, Any] = {key: TINY[key] for key in TINY if "tie" not in key} | {
    "model_type": "gemma2",
    "sliding_window": 4,
    "final_logit_softcapping": 0.5,
}
CHARACTERS = TokenizerSettings(path="characters")


def made(config: dict[str, Any], seed: int, dtype: Any = "float64") -> Any:
    settings = ModelSettings(config=config, dtype=dtype)
    return load_model(settings, load_tokenizer(CHARACTERS, settings), seed)


@pytest.fixture
def tokenizer() -> Any:
    return load_tokenizer(CHARACTERS, ModelSettings(config=TINY))


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """A larger model, without a tokenizer."""
    made(LARGER, 5).save_pretrained(tmp_path / "teacher")
    return tmp_path / "teacher"


def sequences() -> list[TokenSequence]:
    """Two groups of rollouts that share their prompt."""
    generator = torch.Generator().manual_seed(3)
    found = []
    for group, temperature in ((0, 1.0), (1, 0.6)):
        prompt = torch.randint(6, 90, (7,), generator=generator).tolist()
        for length in (5, 2, 9):
            ids = (*prompt, *torch.randint(6, 90, (length,), generator=generator).tolist())
            mask = (*(False,) * 7, *(True,) * length)
            found.append(TokenSequence(tuple(ids), mask, Source.ROLLOUTS, group, temperature=temperature))
    return found


def logs(model: Any, sequence: TokenSequence, rows: int = 1 << 20) -> Tensor:
    """Log-probabilities of the next tokens at the sequence's actions, one row, no padding."""
    logits = model(torch.tensor([sequence.token_ids])).logits[0][:, :rows] / sequence.temperature
    return torch.log_softmax(logits, -1)[:-1][torch.tensor(sequence.action_mask[1:])]


@pytest.mark.parametrize("config", [LARGER, CAPPED, {"model_type": "gpt2", "n_embd": 32, "n_head": 4, "n_layer": 2}])
@pytest.mark.parametrize("layout", ["padded", "packed", "shared"])
@pytest.mark.parametrize("student", [TINY, CAPPED], ids=["plain", "capped"])
def test_equals_the_models_own_distributions(config: dict[str, Any], layout: Layout, student: dict[str, Any]) -> None:
    model, twin, other = made(student, 0), made(student, 0), made(config, 1)
    policy = Policy(model, Teacher(other, ReverseKL()), chunk_bytes=6000)
    scored = policy(collate(sequences(), layout=layout))
    pairs = [(logs(twin, sequence), logs(other, sequence).detach()) for sequence in sequences()]
    expected = torch.cat([(q.exp() * (q - p)).sum(-1) for q, p in pairs])
    assert scored.divergence is not None
    torch.testing.assert_close(scored.divergence, expected, rtol=1e-5, atol=1e-8)  # temperatures are float32
    scored.divergence.sum().backward()
    expected.sum().backward()
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-6)


def test_heads_of_different_sizes(tokenizer: Any) -> None:
    rows = len(tokenizer)
    for student_rows, teacher_rows in ((rows + 3, rows + 40), (rows + 40, rows)):
        model, other = (made(TINY | {"vocab_size": size}, 1) for size in (student_rows, teacher_rows))
        scored = Policy(model, Teacher(other, ForwardKL()))(collate(sequences()))
        common = min(student_rows, teacher_rows)
        pairs = [(logs(model, sequence, common), logs(other, sequence, common)) for sequence in sequences()]
        expected = torch.cat([(p.exp() * (p - q)).sum(-1) for q, p in pairs])
        torch.testing.assert_close(scored.divergence, expected, rtol=1e-5, atol=1e-8)


def test_nothing_trains_saves_or_moves_the_teacher(stored: Path, tokenizer: Any) -> None:
    teacher = load_teacher(TeacherSettings(path=str(stored), dtype="float64"), tokenizer, ForwardKL())
    policy, alone = Policy(made(TINY, 0), teacher), Policy(made(TINY, 0))
    assert [name for name, _ in policy.named_parameters()] == [name for name, _ in alone.named_parameters()]
    assert policy.state_dict().keys() == alone.state_dict().keys()
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())
    policy.train()
    assert not teacher.model.training
    policy(collate(sequences())).divergence.sum().backward()
    assert all(parameter.grad is None for parameter in teacher.model.parameters())


def test_nothing_is_measured_where_nothing_is_learnt() -> None:
    policy = Policy(made(TINY, 0), Teacher(made(LARGER, 1), ForwardKL()))
    with torch.no_grad():
        assert policy(collate(sequences())).divergence is None
    assert Policy(made(TINY, 0))(collate(sequences())).divergence is None


def test_loaded_in_its_own_type(stored: Path, tokenizer: Any) -> None:
    check_teacher(TeacherSettings(path=str(stored)))
    teacher = load_teacher(TeacherSettings(path=str(stored), dtype="bfloat16"), tokenizer, ForwardKL())
    assert teacher.model.dtype == torch.bfloat16
    scored = Policy(made(TINY, 0, "float32"), teacher)(collate(sequences()))
    exact = Policy(made(TINY, 0, "float32"), Teacher(made(LARGER, 5, "float32"), ForwardKL()))(collate(sequences()))
    assert scored.divergence.dtype == torch.float32
    torch.testing.assert_close(scored.divergence, exact.divergence, rtol=0.1, atol=1e-3)


def test_a_tokenizer_of_its_own_must_be_the_policys(stored: Path, tokenizer: Any) -> None:
    tokenizer.save_pretrained(stored)
    load_teacher(TeacherSettings(path=str(stored)), tokenizer, ForwardKL())
    tokenizer.add_tokens(["<extra>"])
    with pytest.raises(UserError, match=r"teacher\.path .*: 1 of the policy's 103 tokens .* id 102 is '<extra>'"):
        load_teacher(TeacherSettings(path=str(stored)), tokenizer, ForwardKL())


def test_mistakes_name_the_teacher(stored: Path, tmp_path: Path, tokenizer: Any) -> None:
    tokenizer.add_tokens(["<extra>", "<more>"])
    with pytest.raises(UserError, match=r"^teacher .* has embeddings for 102 tokens, the tokenizer has 104"):
        load_teacher(TeacherSettings(path=str(stored)), tokenizer, ForwardKL())
    for action in (check_teacher, lambda settings: load_teacher(settings, tokenizer, ForwardKL())):
        with pytest.raises(UserError, match=r"^teacher\.path .*: no such directory"):
            action(TeacherSettings(path=str(tmp_path / "nothing")))
