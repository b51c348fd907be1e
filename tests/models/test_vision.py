"""Pictures in the forward pass: as transformers' own model computes ids and pixels of one sequence, in any layout."""

from __future__ import annotations

import copy
import io
import random
from base64 import b64decode
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from posttrain.batch import Source, TokenSequence
from posttrain.config.schema import LoraSettings, ModelSettings, TokenizerSettings
from posttrain.data.collate import collate
from posttrain.errors import RecipeError, UserError
from posttrain.models.critic import Critic
from posttrain.models.export import save_model
from posttrain.models.load import load_model
from posttrain.models.lora import add_lora
from posttrain.models.policy import Policy
from posttrain.models.quantised import is_quantised, plain
from posttrain.models.tokenizer import load_tokenizer
from posttrain.picture import Picture
from posttrain.rows import Layout, rotary_positions
from tests.vision import QWEN3_VL, QWEN25_VL, picture, tiny_vision

LAYOUTS: tuple[Layout, ...] = ("padded", "packed", "shared")
FAMILIES = {"qwen3_vl": QWEN3_VL, "qwen2_5_vl": QWEN25_VL}


def sequence(model: Any, parts: Sequence[str | int | tuple[bool, int]], group: int = 0) -> TokenSequence:
    """A sequence of images, and of so many random letters: (True, n) as actions, n as context."""
    generator = random.Random(repr(parts))
    ids: list[int] = []
    mask: list[bool] = []
    pictures = []
    for part in parts:
        if isinstance(part, str):
            pictures.append(Picture(len(ids), *model.images.grid(part), part))
            added, acts = [model.images.placeholder] * pictures[-1].num_tokens, False
        else:
            acts, number = part if isinstance(part, tuple) else (False, part)
            source = generator if acts else random.Random(number)
            added = [source.randrange(6, 90) for _ in range(number)]
        ids += added
        mask += [acts] * len(added)
    return TokenSequence(tuple(ids), tuple(mask), Source.ROLLOUTS, group, pictures=tuple(pictures))


def several(model: Any) -> list[TokenSequence]:
    """One image, two of them, none; two that share a beginning with an image, one whose image is another."""
    first, second, third = picture(1), picture(2, 3, 2), picture(3, 1, 4)
    return [
        sequence(model, [5, first, 4, (True, 6)]),
        sequence(model, [5, first, 4, (True, 3), second, 2, (True, 4), third]),
        sequence(model, [7, (True, 5)]),
        sequence(model, [9, third, 3, (True, 5)], 1),
        sequence(model, [9, third, 3, (True, 8)], 1),
        sequence(model, [9, picture(4, 1, 4), 3, (True, 8)], 1),
        sequence(model, [first, 1, second, 6, (True, 2)], 2),
    ]


def as_transformers_does(model: Any, one: TokenSequence) -> Tensor:
    """The logprobs of the actions by the model's own forward, given what its processor makes of the images."""
    from PIL import Image

    ids = torch.tensor([one.token_ids])
    inputs: dict[str, Any] = {}
    if one.pictures:
        images = [Image.open(io.BytesIO(b64decode(each.image.split(",")[1]))) for each in one.pictures]
        made = model.images.processor(images=images, return_tensors="pt")
        inputs = {"pixel_values": made["pixel_values"], "image_grid_thw": made["image_grid_thw"]}
        inputs["mm_token_type_ids"] = (ids == model.config.image_token_id).int()
    model.base_model.rope_deltas = None
    logits = model(input_ids=ids, use_cache=False, **inputs).logits[0, :-1].float()
    logprobs = torch.log_softmax(logits, -1).gather(1, ids[0, 1:, None])[:, 0]
    return logprobs[torch.tensor(one.action_mask[1:])]


@pytest.fixture(params=FAMILIES)
def config(request: pytest.FixtureRequest) -> dict[str, Any]:
    return FAMILIES[request.param]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_logprobs_are_those_of_transformers(config: dict[str, Any], layout: Layout) -> None:
    model, _ = tiny_vision(config)
    assert model.row_layout == "shared"
    sequences = several(model)
    policy = Policy(model)
    policy.layout = layout
    with torch.no_grad():
        expected = torch.cat([as_transformers_does(model, one) for one in sequences])
        found = policy(collate(sequences, layout=layout)).logprobs
        blind = policy(collate([replace(one, pictures=()) for one in sequences], layout=layout)).logprobs
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert (blind - expected).abs().max() > 1e-2, "the images make no difference"


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("frozen", [True, False])
def test_gradients_are_those_of_transformers(config: dict[str, Any], frozen: bool, layout: Layout) -> None:
    model, _ = tiny_vision(config, freeze_vision=frozen)
    sequences = several(model)
    weights = torch.linspace(-1, 1, sum(one.num_actions for one in sequences))
    (torch.cat([as_transformers_does(model, one) for one in sequences]) * weights).sum().backward()
    expected = {name: one.grad for name, one in model.named_parameters()}
    model.zero_grad()
    policy = Policy(model)
    policy.layout = layout
    (policy(collate(sequences, layout=layout)).logprobs * weights).sum().backward()
    tower = {name for name in expected if ".visual." in name}
    assert all((expected[name] is None) == frozen for name in tower if "patch_embed" in name or "merger" in name)
    for name, parameter in model.named_parameters():
        if expected[name] is None:
            assert parameter.grad is None
        else:
            scale = float(expected[name].abs().max())
            torch.testing.assert_close(parameter.grad, expected[name], rtol=0, atol=1e-5 * max(scale, 1.0), msg=name)


def test_a_shared_beginning_with_its_images_is_computed_once() -> None:
    model, _ = tiny_vision()
    sequences = several(model)
    rows = collate(sequences, layout="shared")
    assert len(rows.pictures) == 6, "of nine that are read, two are in beginnings that are there once, one is unread"
    assert rows.input_ids.shape[1] < collate(sequences, layout="packed").input_ids.shape[1]
    assert int((rows.input_ids == model.images.placeholder).sum()) == sum(one.num_tokens for one in rows.pictures)


def test_a_sampled_placeholder_is_a_token_like_any_other() -> None:
    model, _ = tiny_vision()
    one = sequence(model, [5, picture(1), 4, (True, 6)])
    place = len(one.token_ids) - 3
    ids = (*one.token_ids[:place], model.images.placeholder, *one.token_ids[place + 1 :])
    with torch.no_grad():
        plain, odd = (Policy(model)(collate([s])).logprobs for s in (one, replace(one, token_ids=ids)))
    torch.testing.assert_close(plain[:3], odd[:3])
    assert odd.isfinite().all() and not torch.equal(plain[3:], odd[3:])


def test_positions_of_text_and_cells() -> None:
    """Worked by hand after arXiv 2409.12191, sec. 2.1: a grid of 2 x 3 after two tokens, and two more."""
    time, row, column = rotary_positions(10, [Picture(2, 2, 3, "")]).tolist()
    assert time == [0, 1, 2, 2, 2, 2, 2, 2, 5, 6]
    assert row == [0, 1, 2, 2, 2, 3, 3, 3, 5, 6]
    assert column == [0, 1, 2, 3, 4, 2, 3, 4, 5, 6]


def test_a_critic_reads_the_pictures_and_leaves_the_tower_alone() -> None:
    model, _ = tiny_vision(freeze_vision=False)
    policy = Policy(model, critic=Critic(model, "state"))
    assert policy.critic is not None
    torch.nn.init.ones_(policy.critic.head.weight)
    one = sequence(model, [5, picture(1), 4, (True, 6)])
    (other,) = (replace(one, pictures=tuple(each._replace(image=picture(9)) for each in one.pictures)),)
    values = [policy(collate([each])).values for each in (one, other)]
    assert (values[0] - values[1]).abs().max() > 1e-3
    values[0].sum().backward()
    assert all(parameter.grad is None for parameter in model.parameters())
    assert policy.critic.head.weight.grad is not None


def test_a_saved_model_reads_images_as_before(tmp_path: Path) -> None:
    from transformers import AutoImageProcessor, AutoModelForImageTextToText

    model, tokenizer = tiny_vision()
    sequences = several(model)
    with torch.no_grad():
        expected = Policy(model)(collate(sequences)).logprobs
    for number, directory in enumerate((tmp_path / "once", tmp_path / "again")):
        save_model(model, tokenizer, directory)
        processor = AutoImageProcessor.from_pretrained(directory, backend="pil")
        assert processor.merge_size == 2 and processor.patch_size == 4
        plain = AutoModelForImageTextToText.from_pretrained(directory)
        assert torch.equal(plain.lm_head.weight, model.lm_head.weight), number
        settings = ModelSettings(path=str(directory))
        tokenizer = load_tokenizer(TokenizerSettings(), settings)
        model = load_model(settings, tokenizer, seed=0)
        assert tokenizer.images.placeholder == model.config.image_token_id
        with torch.no_grad():
            torch.testing.assert_close(Policy(model)(collate(sequences)).logprobs, expected, rtol=0, atol=1e-6)


def test_an_adapter_stays_out_of_a_frozen_tower() -> None:
    model, _ = tiny_vision()
    add_lora(model, LoraSettings(rank=2), seed=0)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained and not [name for name in trained if ".visual." in name]
    model, _ = tiny_vision(freeze_vision=False)
    add_lora(model, LoraSettings(rank=2), seed=0)
    assert [name for name, one in model.named_parameters() if one.requires_grad and ".visual." in name]


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs bitsandbytes: posttrain[quantization]")
def test_a_quantised_model_reads_images_with_its_tower_as_it_was(tmp_path: Path) -> None:
    config = copy.deepcopy(QWEN3_VL)
    config["text_config"] |= {"hidden_size": 64, "intermediate_size": 128}
    config["vision_config"]["out_hidden_size"] = 64
    base, tokenizer = tiny_vision(config)
    settings = ModelSettings(path=str(save_model(base, tokenizer, tmp_path / "base")), quantization="nf4")
    model = load_model(settings, load_tokenizer(TokenizerSettings(), settings), seed=0)
    quantised = [
        name for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear) and is_quantised(layer)
    ]
    assert len(quantised) == 7 * 3 and not [name for name in quantised if "visual" in name or "lm_head" in name]
    rows = collate(several(model))
    with torch.no_grad():
        exact, rounded, whole = (Policy(one)(rows).logprobs for one in (base, model, plain(model)))
    torch.testing.assert_close(whole, rounded, rtol=0, atol=1e-5)
    assert 1e-4 < (exact - rounded).abs().max() < 0.5


def test_mistakes_are_named() -> None:
    text = {"model_type": "qwen3", **{k: v for k, v in QWEN3_VL["text_config"].items() if k != "rope_parameters"}}
    settings = ModelSettings(config=text, freeze_vision=True)
    tokenizer = load_tokenizer(TokenizerSettings(path="characters"), settings)
    with pytest.raises(RecipeError, match=r"model.freeze_vision is True, and Qwen3ForCausalLM reads no images"):
        load_model(settings, tokenizer, seed=0)
    blind = load_model(ModelSettings(config=text), tokenizer, seed=0)
    sees, _ = tiny_vision()
    with pytest.raises(UserError, match="reads text alone, and the sequences have pictures"):
        Policy(blind)(collate([sequence(sees, [5, picture(1), 4, (True, 6)])]))
    with pytest.raises(RecipeError, match=r"model.config.vision_config.dept: unknown key .*'depth'"):
        tiny_vision(QWEN3_VL | {"vision_config": {"dept": 2}})
