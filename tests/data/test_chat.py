from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.text import Text
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GenerationConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from posttrain.data.chat import (
    Encoded,
    check_supervision,
    coloured_sample,
    encode_demonstration,
    encode_prompt,
    stop_token_ids,
)
from posttrain.errors import DataError
from posttrain.models.tokenizer import character_tokenizer

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# As Qwen3: an assistant turn before the last user message loses its reasoning, a later one shows it, empty or not.
QWEN3 = """
{%- set ns = namespace(last=-1) %}
{%- for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
{%- for m in messages %}
{%- set content = m.content %}
{%- set thought = '' %}
{%- if m.role == 'assistant' and '</think>' in content %}
{%- set thought = content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}
{%- set content = content.split('</think>')[-1].lstrip('\\n') %}
{%- endif %}
{{- '<|im_start|>' + m.role + '\\n' }}
{%- if m.role == 'assistant' and loop.index0 > ns.last %}{{- '<think>\\n' + thought + '\\n</think>\\n\\n' }}{% endif %}
{{- content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}"""
# As Phi-3: the whole conversation ends with a second stop token, which is no turn's terminator.
PHI3 = CHATML.replace("{% if add_generation_prompt %}", "{% if not add_generation_prompt %}{{ eos_token }}{% else %}")


@pytest.fixture(scope="module")
def bpe() -> PreTrainedTokenizerBase:
    return byte_level_bpe()


def byte_level_bpe(**settings: Any) -> PreTrainedTokenizerBase:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator(["the cat sat on the mat\n\n the answer is user assistant"] * 20, trainer)
    backend.add_special_tokens([AddedToken(t, special=True) for t in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")])
    settings = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "chat_template": CHATML, **settings}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **settings)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def show(encoded: Encoded, tokenizer: PreTrainedTokenizerBase) -> str:
    """The sequence's text, with [actions] bracketed."""
    text, inside = "", False
    for token, action in zip(encoded.token_ids, encoded.action_mask, strict=True):
        text += ("[" if action and not inside else "]" if inside and not action else "") + tokenizer.decode([token])
        inside = action
    return text + ("]" if inside else "")


def test_characters_exactly() -> None:
    tokenizer = character_tokenizer()
    (encoded,) = encode_demonstration([user("1+1")], (assistant("2"), user("2+2"), assistant("4")), tokenizer)
    shown = "<|user|>1+1<|end|><|assistant|>[2<|end|>]<|user|>2+2<|end|><|assistant|>[4<|end|>]"
    assert show(encoded, tokenizer) == shown
    check_supervision([encoded], tokenizer, stop_token_ids(tokenizer))


def test_turns_before_the_completion_are_context() -> None:
    tokenizer = character_tokenizer()
    (encoded,) = encode_demonstration((user("a"), assistant("b"), user("c")), (assistant("d"),), tokenizer)
    assert show(encoded, tokenizer).endswith("b<|end|><|user|>c<|end|><|assistant|>[d<|end|>]")


def test_byte_level_bpe_with_pad_as_eos(bpe: PreTrainedTokenizerBase) -> None:
    prompt, completion = (user("the cat"),), (assistant("\n sat <|endoftext|> é"), user("on"), assistant("the mat"))
    (encoded,) = encode_demonstration(prompt, completion, bpe)
    turns = "[\n sat <|endoftext|> é<|im_end|>]\n<|im_start|>user\non<|im_end|>\n<|im_start|>assistant\n"
    whole = f"<|im_start|>user\nthe cat<|im_end|>\n<|im_start|>assistant\n{turns}[the mat<|im_end|>]"
    assert bpe.decode(encoded.token_ids) == whole.replace("[", "").replace("]", "")
    actions = [token for token, action in zip(encoded.token_ids, encoded.action_mask, strict=True) if action]
    assert bpe.decode(actions) == "\n sat <|endoftext|> é<|im_end|>the mat<|im_end|>"
    assert encoded.token_ids[: len(encode_prompt(prompt, bpe))] == encode_prompt(prompt, bpe)
    check_supervision([encoded], bpe, stop_token_ids(bpe))


PLAIN = st.text(st.characters(codec="utf-8", exclude_characters="<"), max_size=8)
"""Text without special tokens, such as <pad>, which a tokenizer takes for one token wherever it finds them."""


@given(st.lists(st.tuples(PLAIN, PLAIN), min_size=1, max_size=3))
@settings(max_examples=80, deadline=None)
def test_each_turn_continues_its_own_prompt(rounds: list[tuple[str, str]]) -> None:
    tokenizer = character_tokenizer()
    messages = [message for question, answer in rounds for message in (user(question), assistant(answer))]
    sequences = encode_demonstration(messages[:1], tuple(messages[1:]), tokenizer)
    check_supervision(sequences, tokenizer, stop_token_ids(tokenizer))
    (sequence,) = sequences
    for index, (_, answer) in enumerate(rounds):
        prompt = encode_prompt(tuple(messages[: 2 * index + 1]), tokenizer)
        turn = tokenizer(answer + "<|end|>").input_ids
        end = len(prompt) + len(turn)
        assert sequence.token_ids[:end] == (*prompt, *turn)
        assert not sequence.action_mask[len(prompt) - 1]
        assert all(sequence.action_mask[len(prompt) : end])
    assert sum(sequence.action_mask) == sum(len(answer) + 1 for _, answer in rounds)


def test_template_that_strips_reasoning_splits_the_episode() -> None:
    tokenizer = byte_level_bpe(chat_template=QWEN3)
    first, second = "<think>\nhm\n</think>\n\nthe cat", "<think>\nwell\n</think>\n\nthe mat"
    sequences = encode_demonstration((user("a"),), (assistant(first), user("b"), assistant(second)), tokenizer)
    start = "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"
    assert [tokenizer.decode(encoded.token_ids) for encoded in sequences] == [
        f"{start}{first}<|im_end|>",
        f"{start}the cat<|im_end|>\n<|im_start|>user\nb<|im_end|>\n<|im_start|>assistant\n{second}<|im_end|>",
    ]
    for encoded, turn in zip(sequences, (first, second), strict=True):
        actions = [token for token, action in zip(encoded.token_ids, encoded.action_mask, strict=True) if action]
        assert tokenizer.decode(actions) == f"{turn}<|im_end|>"
    check_supervision(sequences, tokenizer, stop_token_ids(tokenizer))


def test_second_stop_token_at_the_end_is_not_the_terminator() -> None:
    tokenizer = byte_level_bpe(chat_template=PHI3)
    (encoded,) = encode_demonstration((user("a"),), (assistant("b"), user("c"), assistant("d")), tokenizer)
    assert tokenizer.decode(encoded.token_ids).count("<|endoftext|>") == 0
    assert tokenizer.decode(encoded.token_ids).endswith("assistant\nd<|im_end|>")


def test_plain_text(bpe: PreTrainedTokenizerBase) -> None:
    (encoded,) = encode_demonstration("the cat", " sat", bpe)
    assert show(encoded, bpe) == "the cat[ sat<|endoftext|>]"
    (text,) = encode_demonstration("", "the mat", bpe)
    assert text.action_mask == (False,) + (True,) * (len(text.token_ids) - 1)
    assert bpe.decode(text.token_ids) == "the mat<|endoftext|>"
    check_supervision([encoded, text], bpe, stop_token_ids(bpe))


def test_plain_text_with_bos_in_front_and_eos_behind() -> None:
    tokenizer = byte_level_bpe(bos_token="<|im_start|>")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A <|endoftext|>",
        special_tokens=[(name, tokenizer.convert_tokens_to_ids(name)) for name in ("<|im_start|>", "<|endoftext|>")],
    )
    assert tokenizer.decode(tokenizer("the").input_ids) == "<|im_start|>the<|endoftext|>"
    assert tokenizer.decode(encode_prompt("the", tokenizer)) == "<|im_start|>the"
    assert tokenizer.decode(encode_prompt("", tokenizer)) == "<|im_start|>"
    (encoded,) = encode_demonstration("", "the", tokenizer)
    assert show(encoded, tokenizer) == "<|im_start|>[the<|endoftext|>]"
    assert tokenizer.decode(encode_prompt((user("a"),), tokenizer)).count("<|im_start|>") == 2


def test_stop_tokens(bpe: PreTrainedTokenizerBase) -> None:
    end, eos, start = (bpe.convert_tokens_to_ids(f"<|{name}|>") for name in ("im_end", "endoftext", "im_start"))
    assert stop_token_ids(bpe) == {eos, end}
    assert stop_token_ids(bpe, GenerationConfig(eos_token_id=start)) == {eos, end, start}
    assert stop_token_ids(bpe, GenerationConfig(eos_token_id=[start, eos])) == {eos, end, start}
    with pytest.raises(DataError, match="no token that ends a completion"):
        stop_token_ids(byte_level_bpe(eos_token=None, chat_template=None))


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (CHATML.replace("'<|im_start|>assistant\\n'", "'<|im_start|>assistant\\n<think>'"), "generation prompt begins"),
        (CHATML.replace("<|im_end|>", "END"), "without a special token"),
        (CHATML.replace("m.content", "''"), "leaves out the assistant's content"),
        ("{{ raise_exception('no way') }}", "fails on a conversation of user, assistant: no way"),
        (None, "has no chat template"),
    ],
)
def test_templates_that_cannot_be_trained_on(template: str | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        encode_demonstration((user("a"),), (assistant("b"),), byte_level_bpe(chat_template=template))


def test_mixed_prompt_and_completion(bpe: PreTrainedTokenizerBase) -> None:
    with pytest.raises(DataError, match="both be text or both be conversations"):
        encode_demonstration("a", (assistant("b"),), bpe)
    with pytest.raises(DataError, match="no eos token"):
        encode_demonstration("a", "b", byte_level_bpe(eos_token=None))


def test_check_supervision_shows_the_sample() -> None:
    tokenizer = character_tokenizer()
    ids = tuple(tokenizer("ab<|end|>").input_ids)
    stops = stop_token_ids(tokenizer)
    for mask, message in [
        ((False, False, False), "0% of the tokens are supervised\nab<|end|>"),
        ((True, True, True), "100% of the tokens are supervised\n«ab<|end|>»"),
        ((False, True, False), r"a turn ends with 'b' (token "),
        ((True, False, False), "nothing predicts it"),
    ]:
        with pytest.raises(DataError) as caught:
            check_supervision([Encoded(ids, mask)], tokenizer, stops)
        assert message in str(caught.value)
    with pytest.raises(DataError, match="nothing was encoded"):
        check_supervision([], tokenizer, stops)
    check_supervision([Encoded(ids, (False, True, True))], tokenizer, stops)


def test_coloured_sample_keeps_text_and_marks_actions() -> None:
    tokenizer = character_tokenizer()
    encoded = encode_demonstration((user("[red] x[0]"),), (assistant("[/dim] " + "y" * 3000),), tokenizer)
    text = Text.from_markup(coloured_sample(encoded, tokenizer, max_characters=100))
    assert text.plain.startswith("<|user|>[red] x[0]<|end|><|assistant|>[/dim] yyy")
    assert text.plain.endswith("yyy<|end|>")
    assert len(text.plain) < 250
    assert [span.style for span in text.spans] == ["dim", "green"]
