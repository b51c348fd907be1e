"""Our engines as a model of lm-evaluation-harness: the base class that it asks for, over an opened model.

Prompts, stop sequences and truncation are treated as by the harness's own `hf` model, so that the two agree.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from lm_eval.api.model import TemplateLM  # type: ignore[import-untyped]
from lm_eval.models.utils import (  # type: ignore[import-untyped]
    handle_stop_sequences,
    has_bos_prefix,
    normalize_gen_kwargs,
    postprocess_generated_text,
)
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window  # type: ignore[import-untyped]

from posttrain.data.chat import render
from posttrain.errors import RunError
from posttrain.evaluation.model import Opened
from posttrain.rollout.engine import Completion, Request, Sampling
from posttrain.rollout.seeds import derived_seed

DEFAULT_WINDOW = 2048
DEFAULT_MAX_TOKENS = 256

Encoded = tuple[object, list[int], list[int]]
"""What is asked, the context's tokens, the continuation's."""


class EngineLM(TemplateLM):  # type: ignore[misc]
    """The harness's view of `opened`; what is drawn at a temperature follows from `seed` and the prompt's number."""

    def __init__(self, opened: Opened, seed: int) -> None:
        super().__init__()
        self.engine, self.tokenizer, self.stop_ids = opened.engine, opened.tokenizer, opened.stop_ids
        self.seed = seed
        self.window = self.engine.window or DEFAULT_WINDOW

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        token: int = self.tokenizer.eos_token_id
        return token

    @property
    def prefix_token_id(self) -> int:
        """What a text without context continues: bos, else eos."""
        bos: int | None = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else bos

    @property
    def tokenizer_name(self) -> str:
        """For the harness's cache of requests."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation as text; DataError where the template fails."""
        return render(chat_history, self.tokenizer, generation_prompt=add_generation_prompt)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """The tokens of a text, with what the tokenizer puts in front unless it is there already."""
        if add_special_tokens is None:
            add_special_tokens = not has_bos_prefix(string, self.tokenizer.bos_token)
        ids: list[int] = self.tokenizer.encode(string, add_special_tokens=add_special_tokens)
        return ids

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """The text of each completion up to the first stop sequence; requests that sample alike go together."""
        alike: dict[Sampling, list[int]] = {}
        for number, request in enumerate(requests):
            alike.setdefault(self._sampling(request.args[1])[0], []).append(number)
        texts: dict[int, str] = {}
        for sampling, numbers in alike.items():
            room = max(1, self.window - sampling.max_tokens)
            asked = [self.tok_encode(requests[number].args[0])[-room:] for number in numbers]
            for number, made in zip(numbers, self._generate(asked, sampling, numbers), strict=True):
                context, fields = requests[number].args
                text = self.tokenizer.decode(list(made.token_ids), skip_special_tokens=True)
                texts[number] = postprocess_generated_text(text, self._sampling(fields)[1], None)
                self.cache_hook.add_partial("generate_until", (context, fields), texts[number])
        return [texts[number] for number in range(len(requests))]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of each whole text, in windows that predict every token once."""
        found = []
        for request in requests:
            (text,) = request.args
            windows = get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self.window, 1)
            found.append(sum(map(self._score, map(make_disjoint_window, windows))))
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), found[-1])
        return found

    def _loglikelihood_tokens(self, requests: Sequence[Encoded], **_: Any) -> list[tuple[float, bool]]:
        """Of each continuation, the log-likelihood, and whether greedy decoding gives it."""
        longest = max(len(continuation) for _, _, continuation in requests)
        greedy = Sampling(longest, frozenset(), temperature=0.0)
        room = max(1, self.window - longest)
        contexts = [context[-room:] for _, context, _ in requests]
        decoded = self._generate(contexts, greedy, range(len(requests)))
        found = []
        for (asked, context, continuation), made in zip(requests, decoded, strict=True):
            is_greedy = list(made.token_ids[: len(continuation)]) == continuation
            found.append((self._score((context, continuation)), is_greedy))
            self.cache_hook.add_partial("loglikelihood", asked, found[-1])
        return found

    def _score(self, pair: tuple[list[int], list[int]]) -> float:
        """The log-likelihood of a continuation after what the window holds of its context."""
        context, continuation = pair
        logprobs = self.engine.score([*context, *continuation][-self.window :])
        return sum(logprobs[-len(continuation) :])

    def _generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, numbers: Iterable[int]
    ) -> list[Completion]:
        requests = [
            Request(tuple(ids), derived_seed(self.seed, number)) for ids, number in zip(prompts, numbers, strict=True)
        ]
        made = self.engine.generate(requests, sampling)
        error = next((one.error for one in made if one.error is not None), None)
        if error is not None:
            raise RunError(f"lm-eval: {error}")
        return made

    def _sampling(self, fields: dict[str, Any]) -> tuple[Sampling, list[str]]:
        """How a request of the harness is sampled, and where its text stops."""
        asked = normalize_gen_kwargs(fields, DEFAULT_MAX_TOKENS)
        end = self.tokenizer.decode([self.eot_token_id], skip_special_tokens=False)
        sampling = Sampling(
            max_tokens=asked["max_gen_toks"],
            stop_token_ids=self.stop_ids,
            temperature=asked.get("temperature", 1.0) if asked["do_sample"] else 0.0,
            top_p=asked.get("top_p", 1.0),
            top_k=asked.get("top_k", 0),
        )
        return sampling, handle_stop_sequences(asked.get("until"), eos=end)
