"""The reward model as the trainer sees it: rows in, scores of each action token out.

It is a sequence classification model of transformers: a decoder under a linear head without a bias, whose scores at a
completion's last token are what such a model says of the whole. Here they are read at every action token.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from posttrain.config.hub import hub_reachable
from posttrain.errors import UserError
from posttrain.models.shared_rows import hidden_states
from posttrain.rows import Layout, Rows


class TokenScores(NamedTuple):
    """Of each action token: values [A], or [K, A] where there are K scores, and maybe its last hidden state [H, A]."""

    values: Tensor
    hidden: Tensor | None = None


class Scorer(nn.Module):
    """A classifier (`.model`) that scores action tokens; it stands where `Policy` does for a policy.

    All its work happens in `forward`, so that wrappers for data parallelism see it. gives_hidden: hidden states too.
    """

    critic: None = None
    teacher: None = None
    whole = True

    def __init__(self, model: Any, *, gives_hidden: bool = False) -> None:
        super().__init__()
        self.model = model
        self.gives_hidden = gives_hidden
        self.layout: Layout = getattr(model, "row_layout", "padded")

    @property
    def head(self) -> Any:
        """The linear layer that is read directly."""
        return self.model.score

    def forward(self, rows: Rows) -> TokenScores:
        """Scores in float32, or float64 as the model is, which autocast does not round; rows collated whole."""
        hidden, rows = hidden_states(self.model.get_decoder(), rows, self.layout)
        assert rows.action_index is not None
        own = hidden.index_select(0, rows.action_index)
        kind = torch.float64 if own.dtype == torch.float64 else torch.float32
        with torch.autocast(own.device.type, enabled=False):
            values = self.head.weight.to(kind) @ own.to(kind).T
        return TokenScores(values[0] if len(values) == 1 else values, own.to(kind).T if self.gives_hidden else None)


def classifier_of(model: Any, names: Sequence[str], reading: str = "last") -> Any:
    """The decoder of a causal language model, the same tensors, under a head for the scores `names` that starts at 0.

    reading: which tokens speak of a completion (`estimator.plan.Plan`), kept in the config as `reward_reading`.
    UserError where transformers has no sequence classification model of its architecture.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING as CLASSIFIERS

    config = copy.deepcopy(model.config)
    config.num_labels = len(names)
    config.reward_reading = reading
    config.id2label = dict(enumerate(names))
    config.label2id = {name: number for number, name in enumerate(names)}
    prefix = model.base_model_prefix
    classifier: Any = None
    if type(config) in CLASSIFIERS:
        with torch.device("meta"):
            classifier = CLASSIFIERS[type(config)]._from_config(config)
    if not isinstance(getattr(classifier, "score", None), nn.Linear) or classifier.base_model_prefix != prefix:
        raise UserError(
            f"model: {type(model).__name__} (model_type {config.model_type!r}) cannot become a reward model: "
            "transformers has no sequence classification model of it with a head `score`"
        )
    setattr(classifier, prefix, getattr(model, prefix))
    weight = model.get_input_embeddings().weight
    classifier.score = nn.Linear(classifier.score.in_features, len(names), False, weight.device, weight.dtype)
    nn.init.zeros_(classifier.score.weight)
    classifier.row_layout = getattr(model, "row_layout", "padded")
    return classifier.train(model.training)


def pad_apart(classifier: Any, tokenizer: Any, stop_ids: frozenset[int]) -> None:
    """Give tokenizer and classifier a padding token that no completion ends with.

    transformers reads a classifier at the last token that is not padding; where padding is the end-of-sequence token it
    would read before the end. Where every special token may end a completion there is no padding token: then the
    classifier takes one sequence at a time.
    """
    if tokenizer.pad_token_id in stop_ids:
        others = (one for one in tokenizer.all_special_tokens if tokenizer.convert_tokens_to_ids(one) not in stop_ids)
        tokenizer.pad_token = next(others, None)
    classifier.config.pad_token_id = tokenizer.pad_token_id


def load_classifier(path: str, dtype: str = "auto") -> Any:
    """The sequence classification model at `path`, a directory or hub id, on the CPU in eval mode.

    UserError where there is none that can be read at every token, such as a language model without a head `score`.
    """
    from transformers import AutoModelForSequenceClassification

    kind = "auto" if dtype == "auto" else getattr(torch, dtype)
    local = Path(path).expanduser().is_dir()
    try:
        model, info = AutoModelForSequenceClassification.from_pretrained(
            path, dtype=kind, output_loading_info=True, local_files_only=not local and not hub_reachable()
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"reward model {path!r}: cannot be loaded: {next(iter(str(error).splitlines()), '')}"
        ) from error
    if info["missing_keys"] or not isinstance(getattr(model, "score", None), nn.Linear) or model.score.bias is not None:
        lacking = ", ".join(sorted(info["missing_keys"])[:3]) or "a linear head `score` without a bias"
        raise UserError(
            f"reward model {path!r} lacks {lacking}; allowed: a sequence classification model, as in a "
            "reward model's run final/"
        )
    return model.eval()
