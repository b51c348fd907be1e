"""The conversation of one episode as the policy reads it: messages, and the exact tokens that it continues.

Each turn's prompt is what the chat template makes of all messages. Where that begins with the text of the turn before
and what was sampled then, the earlier tokens are kept as they were and only the new text is tokenised; where the
template rewrites earlier turns, or `history_turns` drops them, the prompt is tokenised anew and begins a new training
sequence (`rollout.sequences`). A conversation that is told anew at every turn (`Step.anew`) goes on in the same way
from the longest of all its earlier turns; where its tokens are given, these are the prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from posttrain.data.chat import encode_context, encode_text, render
from posttrain.environments import Observation
from posttrain.images import place
from posttrain.picture import Context, images_of, moved
from posttrain.trajectory import Message, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Conversation:
    """What was said so far. history_turns: how many of its earlier turns the policy sees; None: all.

    aside: messages for the next turn alone; `add` forgets them. given_ids: the tokens of the prompt, where they were
    given with it.
    """

    def __init__(self, prompt: Prompt, history_turns: int | None = None) -> None:
        self.prompt = prompt
        self.tools: Sequence[Mapping[str, Any]] = ()
        self.aside: tuple[Message, ...] = ()
        self._history_turns = history_turns
        self._turns: list[tuple[Message, ...]] = []
        self.given_ids: tuple[int, ...] | None = None
        self._earlier: tuple[_Sampled, ...] = ()
        self._sampled: tuple[_Sampled, ...] = ()

    def start(self, observation: Observation) -> None:
        """Begin with what reset said, or again with what a step says in place of all before it."""
        self.prompt, self.tools, self.given_ids = observation.messages, observation.tools, observation.prompt_ids
        self.aside, self._turns, self._earlier = (), [], self._sampled

    def sampled(self, context: Context, completion_ids: Sequence[int]) -> None:
        """Remember the exact tokens of a turn, and the pictures among them; call it before `add`."""
        messages = self.messages
        if self.given_ids is None and not isinstance(messages, str):
            self._sampled = (*self._earlier, _Sampled(messages, self.tools, context, tuple(completion_ids)))

    def add(self, said: str, answer: Sequence[Message]) -> None:
        """The policy's text of a turn, or what stands in its place, and what the environment answered."""
        self.aside = ()
        self._turns.append(({"role": "assistant", "content": said}, *answer))

    @property
    def messages(self) -> Prompt:
        """What the policy reads next: the opening, and the turns that it still sees."""
        if isinstance(self.prompt, str) or not (self._turns or self.aside):
            return self.prompt
        num_hidden = 0 if self._history_turns is None else max(len(self._turns) - self._history_turns, 0)
        opening = self.prompt
        if num_hidden:  # of the last hidden turn only the answer is seen, in place of the first observation
            opening = (*(self.prompt[:-1] or self.prompt), *self._turns[num_hidden - 1][1:])
        return (*opening, *(message for turn in self._turns[num_hidden:] for message in turn), *self.aside)

    def encode(self, tokenizer: PreTrainedTokenizerBase) -> Context:
        """The tokens of `messages`, those of earlier turns as they were sampled where the text goes on from them.

        And the pictures among them, each a span of tokens: an earlier one is kept or dropped with its message.
        """
        if self.given_ids is not None:
            return Context(self.given_ids)
        messages = self.messages
        if isinstance(messages, str) or not self._sampled:
            return encode_context(messages, tokenizer, self.tools)
        text = render(messages, tokenizer, generation_prompt=True, tools=self.tools)
        images = images_of(messages)
        fitting = [one for one in self._sampled if images[: len(one.images)] == one.images]
        known = [(len(said), one) for one in fitting if text.startswith(said := one.text(tokenizer))]
        if not known:
            return place(encode_text(text, tokenizer), images, tokenizer)
        length, before = max(known, key=lambda one: one[0])
        added = place(encode_text(text[length:], tokenizer), images[len(before.images) :], tokenizer)
        ids = before.context.token_ids + before.completion_ids
        return Context(ids + added.token_ids, before.context.pictures + moved(added.pictures, len(ids)))


@dataclass
class _Sampled:
    """A turn as it was sampled: what the policy had read, its tokens, and those of the completion."""

    messages: Sequence[Message]
    tools: Sequence[Mapping[str, Any]]
    context: Context
    completion_ids: tuple[int, ...]
    _text: str | None = None

    @property
    def images(self) -> list[str]:
        """The images that the policy had read."""
        return [one.image for one in self.context.pictures]

    def text(self, tokenizer: PreTrainedTokenizerBase) -> str:
        """All of it, as the template writes it and the policy wrote it."""
        if self._text is None:
            said = tokenizer.decode(list(self.completion_ids), skip_special_tokens=False)
            self._text = render(self.messages, tokenizer, generation_prompt=True, tools=self.tools) + said
        return self._text
