"""Images in conversations and episodes: spans that stay whole, and what is sampled after them."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from posttrain.batch import Source, TokenSequence
from posttrain.config.schema import EpisodeSettings
from posttrain.data.chat import encode_context, encode_demonstration, encode_prompt, encode_text, render, stop_token_ids
from posttrain.data.collate import collate
from posttrain.data.examples import Example
from posttrain.environments import Observation, shown, told
from posttrain.errors import DataError, UserError
from posttrain.models.policy import Policy
from posttrain.models.tokenizer import character_tokenizer
from posttrain.picture import Picture
from posttrain.rollout.collector import Collector
from posttrain.rollout.conversation import Conversation
from posttrain.rollout.engine import Request, Sampling
from posttrain.rollout.records import as_record, from_record, to_json
from posttrain.rollout.sequences import rollout_sequences
from posttrain.rollout.transformers_engine import TransformersEngine
from posttrain.trajectory import Group
from tests.vision import QWEN3_VL, QWEN25_VL, Slides, picture, tiny_vision

MODEL, TOKENIZER = tiny_vision()
STOPS = stop_token_ids(TOKENIZER)
PAD, START, END = map(TOKENIZER.convert_tokens_to_ids, ("<|image_pad|>", "<|vision_start|>", "<|vision_end|>"))


def processed(messages: Any, images: list[str]) -> dict[str, Any]:
    """What transformers' own parts make of a conversation: a placeholder a cell, pixels, grids, kinds of tokens."""
    from posttrain.images import opened

    found = MODEL.images.processor(images=[opened(one) for one in images], return_tensors="pt")
    text = render(messages, TOKENIZER, generation_prompt=True)
    for grid in found["image_grid_thw"].tolist():
        text = text.replace("<|image_pad|>", "<cell>" * (grid[0] * grid[1] * grid[2] // 4), 1)
    ids = torch.tensor([encode_text(text.replace("<cell>", "<|image_pad|>"), TOKENIZER)])
    kinds = (ids == PAD).int()
    values = {"pixel_values": found["pixel_values"], "image_grid_thw": found["image_grid_thw"]}
    return {"input_ids": ids, "mm_token_type_ids": kinds, "attention_mask": torch.ones_like(ids)} | values


def test_an_image_is_a_span_of_its_cells() -> None:
    image = picture(1, 2, 3)
    context = encode_context(shown(image, "what is it"), TOKENIZER)
    (one,) = context.pictures
    assert context.token_ids[one.start - 1] == START and context.token_ids[one.stop] == END
    assert context.token_ids[one.start : one.stop] == (PAD,) * 6 and context.token_ids.count(PAD) == 6
    assert (one.height, one.width, one.image) == (2, 3, image)
    assert torch.tensor([context.token_ids]).equal(processed(shown(image, "what is it"), [image])["input_ids"])
    same = ({"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "what is it"}]},)
    assert encode_context(same, TOKENIZER) == context


def test_what_is_no_image_or_cannot_be_read_is_named() -> None:
    with pytest.raises(DataError, match=r"an image in a message is 'screen.png'; allowed: a data URI"):
        encode_context(shown("screen.png", "look"), TOKENIZER)
    with pytest.raises(DataError, match=r"cannot be read"):
        encode_context(shown("data:image/png;base64,aGVsbG8=", "look"), TOKENIZER)
    with pytest.raises(DataError, match=r"has 1 images, its text as the chat template writes it 2"):
        encode_context(shown(picture(1), "a <|image_pad|> in the text"), TOKENIZER)
    with pytest.raises(DataError, match=r"the model reads text alone"):
        encode_context(shown(picture(1), "look"), character_tokenizer(images=True))
    with pytest.raises(DataError, match=r"an image where only text can be read"):
        encode_prompt(shown(picture(1), "look"), TOKENIZER)


@pytest.mark.parametrize(("history", "kept"), [(None, [1, 2, 3]), (1, [2, 3]), (0, [3])])
def test_earlier_images_stay_or_go_with_their_turns(history: int | None, kept: list[int]) -> None:
    talk = Conversation((), history)
    talk.start(Observation(({"role": "system", "content": "look"}, *shown(picture(1), "slide"))))
    for turn in (2, 3):
        context = talk.encode(TOKENIZER)
        talk.sampled(context, (*encode_text("next", TOKENIZER), TOKENIZER.eos_token_id))
        talk.add("next", shown(picture(turn), "slide"))
    found = talk.encode(TOKENIZER)
    assert [one.image for one in found.pictures] == [picture(number) for number in kept]
    assert found == encode_context(talk.messages, TOKENIZER)
    assert all(found.token_ids[one.start : one.stop] == (PAD,) * one.num_tokens for one in found.pictures)


def test_a_turn_after_another_image_does_not_go_on_from_it() -> None:
    """The texts go on from each other, the images do not: what was sampled after another image is not taken over."""
    talk = Conversation(())
    talk.start(Observation(shown(picture(1), "slide")))
    talk.sampled(talk.encode(TOKENIZER), (*encode_text("next", TOKENIZER), TOKENIZER.eos_token_id))
    talk.add("next", told("more"))
    talk.prompt = shown(picture(2), "slide")
    assert talk.encode(TOKENIZER) == encode_context(talk.messages, TOKENIZER)
    assert [one.image for one in talk.encode(TOKENIZER).pictures] == [picture(2)]


@pytest.mark.parametrize("config", [QWEN3_VL, QWEN25_VL], ids=["qwen3_vl", "qwen2_5_vl"])
def test_greedy_completions_are_those_of_transformers(config: dict[str, Any]) -> None:
    """Of prompts of several lengths at once, with no, one and two images, one of them twice."""
    model, tokenizer = tiny_vision(config)
    one, two = picture(1, 2, 3), picture(2, 3, 1)
    asked: list[tuple[Any, list[str]]] = [
        (shown(one, "what"), [one]),
        ((*shown(two, "first"), {"role": "assistant", "content": "ok"}, *shown(one, "and this")), [two, one]),
        (told("nothing to see here"), []),
        (shown(one, "what"), [one]),
        (shown(two, "what"), [two]),
    ]
    contexts = [encode_context(messages, tokenizer) for messages, _ in asked]
    engine = TransformersEngine(model, dtype="float32", batch_tokens=4096)
    sampling = Sampling(max_tokens=12, stop_token_ids=stop_token_ids(tokenizer), temperature=0.0)
    completions = engine.generate([Request(one.token_ids, 0, one.pictures) for one in contexts], sampling)
    blind = engine.generate([Request(one.token_ids, 0) for one in contexts], sampling)
    for (messages, images), completion in zip(asked, completions, strict=True):
        inputs = processed(messages, images) if images else {"input_ids": torch.tensor([contexts[2].token_ids])}
        model.base_model.rope_deltas = None
        expected = model.generate(**inputs, max_new_tokens=12, do_sample=False, eos_token_id=sorted(STOPS))
        assert completion.token_ids == tuple(expected[0, inputs["input_ids"].shape[1] :].tolist())
    assert any(a.logprobs != b.logprobs for a, b in zip(completions[:2], blind[:2], strict=True))
    assert completions[2].token_ids == blind[2].token_ids


def play(num: int = 6, **limits: Any) -> Group:
    engine = TransformersEngine(MODEL, dtype="float32", batch_tokens=4096)
    sampling = Sampling(max_tokens=5, stop_token_ids=STOPS)
    made = Collector(engine, Slides(), None, TOKENIZER, sampling, limits=EpisodeSettings(**limits))
    (group,) = made.collect([Example("row", told("play"))], num, seed=4)
    return group


@pytest.mark.parametrize("history", [None, 1, 0])
def test_what_was_sampled_is_what_the_trainer_scores(history: int | None) -> None:
    group = play(max_turns=4, history_turns=history)
    sequences: list[TokenSequence] = []
    for number, one in enumerate(group.trajectories):
        assert one.error is None and len(one.turns) == 4
        sequences += rollout_sequences(one, 0, number)
    assert max(len(one.pictures) for one in sequences) == (4 if history is None else history + 1)
    for one in sequences:
        for span in one.pictures:
            assert one.token_ids[span.start : span.stop] == (PAD,) * span.num_tokens
            assert not any(one.action_mask[span.start : span.stop])
    policy = Policy(MODEL)
    sampled = torch.tensor([value for one in sequences for value in one.behavior_logprobs or ()])
    for layout in ("padded", "packed", "shared"):
        policy.layout = layout
        with torch.no_grad():
            scored = policy(collate(sequences, layout=layout)).logprobs
        torch.testing.assert_close(scored, sampled, rtol=0, atol=2e-5)


def test_a_record_holds_each_image_once() -> None:
    (one, *_) = play(1, max_turns=4).trajectories
    written = to_json(as_record(one))
    assert len(one.turns) == 4 and from_record(json.loads(written)) == one
    for image in {each.image for turn in one.turns for each in turn.pictures}:
        assert written.count(image) == 1 + (image in to_json(list(one.prompt)))
    before = json.loads(written)
    del before["images"]
    for turn in before["turns"]:
        del turn["pictures"]
    assert from_record(before).turns == tuple(replace(turn, pictures=()) for turn in one.turns), "of an older version"


def test_a_demonstration_has_its_images() -> None:
    ask = (*shown(picture(1), "first"), {"role": "assistant", "content": "ok"}, *shown(picture(2), "second"))
    (encoded,) = encode_demonstration(ask[:1], (*ask[1:], {"role": "assistant", "content": "done"}), TOKENIZER)
    assert [one.image for one in encoded.pictures] == [picture(1), picture(2)]
    context = encode_context(ask, TOKENIZER)
    assert encoded.pictures == context.pictures and encoded.token_ids[: len(context.token_ids)] == context.token_ids
    actions = [token for token, acts in zip(encoded.token_ids, encoded.action_mask, strict=True) if acts]
    assert TOKENIZER.decode(actions) == "ok<|end|>done<|end|>"


def test_a_guide_that_reads_no_images_says_so() -> None:
    from posttrain.models.action_values import ActionValues
    from posttrain.rollout.guide import ValueGuide

    engine = TransformersEngine(MODEL, dtype="float32", guide=ValueGuide(ActionValues(MODEL, 0.1), 1.0))
    context = encode_context(shown(picture(1), "look"), TOKENIZER)
    with pytest.raises(UserError, match="reads text alone"):
        engine.generate([Request(context.token_ids, 0, context.pictures)], Sampling(4, STOPS))


def test_a_picture_is_left_out_whole() -> None:
    from posttrain.algorithms.sft import sft
    from posttrain.trainer.step_data import StepMaker

    span = Picture(4, 2, 3, picture(1))
    ids = (*range(6, 10), *(PAD,) * 6, *range(6, 10))
    mask = (False, True, True, True, *(False,) * 6, True, True, True, True)
    whole = TokenSequence(ids, mask, Source.DEMONSTRATIONS, 0, pictures=(span,))
    for limit, kept, pictures in ((12, 12, (span,)), (10, 10, (span,)), (9, 4, ()), (5, 4, ()), (4, 4, ())):
        cut = StepMaker(sft(), TOKENIZER, limit, paired=False)._cut(whole)
        assert (cut.num_tokens, cut.pictures, len(cut.action_mask)) == (kept, pictures, kept)
