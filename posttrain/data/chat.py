"""Messages to tokens and back to colours: the tokenizer's own chat template, with exact action masks.

For assistant turn k the template is rendered up to the turn with the generation prompt (the prefix) and once more with
the turn (the full text), which must begin with the prefix. Prefix and remainder are tokenised each on its own, so that
training meets the same token boundary as sampling, where the policy continues the prefix. Which tokens are actions
follows from these positions, never from token ids: the turn's tokens up to and including its terminator.

A sequence ends at its last terminator, as a sampled one does. What the template writes after a terminator is context of
the next turn. Where a later prefix does not begin with the text so far (templates that drop earlier reasoning), the
turn starts a sequence of its own, so that every turn is trained on the context it would be sampled in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from posttrain.data.examples import Completion
from posttrain.errors import DataError
from posttrain.images import place
from posttrain.picture import Context, Pictures, images_of, moved
from posttrain.trajectory import Message, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROBE = "posttrain-probe"

Tools = Sequence[Mapping[str, Any]]
"""JSON schemas of functions."""


@dataclass(frozen=True)
class Encoded:
    """A token sequence [T], which of its tokens are actions [T] (that at position 0 never is), and its pictures."""

    token_ids: tuple[int, ...]
    action_mask: tuple[bool, ...]
    pictures: Pictures = ()


@dataclass(frozen=True)
class TurnEnd:
    """What a template writes after an assistant's content: `text` up to and with the terminator, then `rest`."""

    text: str
    rest: str
    terminator: int


def encode_prompt(prompt: Prompt, tokenizer: PreTrainedTokenizerBase, tools: Tools = ()) -> tuple[int, ...]:
    """The tokens that a completion continues, where all is text; DataError as `encode_context`, and for an image."""
    context = encode_context(prompt, tokenizer, tools)
    if context.pictures:
        raise DataError("a conversation has an image where only text can be read")
    return context.token_ids


def encode_context(prompt: Prompt, tokenizer: PreTrainedTokenizerBase, tools: Tools = ()) -> Context:
    """The tokens that a completion continues, with a span of them for each image.

    A conversation is rendered with the generation prompt. Plain text is tokenised as it is, with what the tokenizer
    puts in front of a text (bos), without what it puts behind. Raises DataError where the template fails, or where the
    model reads no images and there is one.
    """
    if isinstance(prompt, str):
        return Context(_leading_ids(tokenizer) + encode_text(prompt, tokenizer))
    text = render(prompt, tokenizer, generation_prompt=True, tools=tools)
    return place(encode_text(text, tokenizer), images_of(prompt), tokenizer)


def encode_text(text: str, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """A text's tokens, with nothing added.

    Half a character, a surrogate without its other, which web pages may hold and no tokenizer reads, is U+FFFD.
    """
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return tuple(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)


def encode_demonstration(
    prompt: Prompt, completion: Completion, tokenizer: PreTrainedTokenizerBase, tools: Tools = ()
) -> list[Encoded]:
    """The training sequences of one demonstration: one, or several where the template breaks the prefix property.

    Plain text: the prompt, then the completion and eos as actions. A conversation: every assistant turn of the
    completion is supervised exactly once. Raises DataError where the tokenizer has no eos, the template fails, or it
    renders a turn in a way that no generation prompt leads to.
    """
    if isinstance(prompt, str) and isinstance(completion, str):
        if tokenizer.eos_token_id is None:
            raise DataError(f"tokenizer '{tokenizer.name_or_path}' has no eos token to end a completion with")
        actions = (*encode_text(completion, tokenizer), tokenizer.eos_token_id)
        return [_encoded([(encode_context(prompt, tokenizer), False), (Context(actions), True)])]
    if isinstance(prompt, str) or isinstance(completion, str):
        raise DataError("prompt and completion must both be text or both be conversations")
    end = _turn_end(tokenizer)
    if end is None:
        raise DataError(
            f"the chat template of '{tokenizer.name_or_path}' ends an assistant turn without a special token, so the "
            "policy could not learn to stop; set tokenizer.chat_template"
        )
    messages = (*prompt, *completion)
    sequences: list[list[tuple[Context, bool]]] = []
    so_far, num_read = "", 0
    for index in range(len(prompt), len(messages)):
        if messages[index]["role"] != "assistant":
            continue
        prefix, turn = _split(messages[: index + 1], end, tokenizer, tools)
        images = images_of(messages[:index])
        if sequences and prefix.startswith(so_far):
            added = encode_text(prefix[len(so_far) :], tokenizer)
            sequences[-1].append((place(added, images[num_read:], tokenizer), False))
        else:
            sequences.append([(place(encode_text(prefix, tokenizer), images, tokenizer), False)])
        num_read = len(images)
        actions = encode_text(turn, tokenizer)
        if actions[-1:] != (end.terminator,):
            raise DataError(f"the assistant turn {turn[-80:]!r} does not end with the token of {end.text!r}")
        sequences[-1].append((Context(actions), True))
        so_far = prefix + turn
    return [_encoded(sequence) for sequence in sequences]


def stop_token_ids(tokenizer: PreTrainedTokenizerBase, generation_config: Any = None) -> frozenset[int]:
    """Tokens that end a completion: eos of the tokenizer and of the model's generation config, and the template's.

    The template's turn terminator (a base model's eos is often another token) is found by rendering a conversation.
    Raises DataError where there is none at all.
    """
    stops = {tokenizer.eos_token_id}
    configured = getattr(generation_config, "eos_token_id", None)
    stops.update(configured if isinstance(configured, list | tuple) else [configured])
    if tokenizer.chat_template:
        end = _turn_end(tokenizer)
        stops.add(end.terminator if end else None)
    found = frozenset(stop for stop in stops if stop is not None)
    if not found:
        raise DataError(f"tokenizer '{tokenizer.name_or_path}' has no token that ends a completion (eos)")
    return found


def check_supervision(encoded: Sequence[Encoded], tokenizer: PreTrainedTokenizerBase, stop_ids: frozenset[int]) -> None:
    """Check that some but not all tokens are actions, and that each run of actions ends with a stop token.

    Raises DataError with the sample.
    """
    problems = [problem for sequence in encoded if (problem := _problem(sequence, tokenizer, stop_ids))]
    if problems or not encoded:
        problem = problems[0] if problems else "nothing was encoded"
        raise DataError(f"a demonstration is not supervised as it should be: {problem}\n{_plain(encoded, tokenizer)}")


def coloured_sample(encoded: Sequence[Encoded], tokenizer: PreTrainedTokenizerBase, max_characters: int = 1000) -> str:
    """The sequences as rich markup: actions green, context dim; the middle of a run above `max_characters` left out."""
    from rich.markup import escape

    sequences = []
    for sequence in encoded:
        text = ""
        for actions, ids in _runs(sequence):
            style = "green" if actions else "dim"
            text += f"[{style}]{escape(_decoded(ids, tokenizer, max_characters))}[/{style}]"
        sequences.append(text)
    return "\n".join(sequences)


def render(
    messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, *, generation_prompt: bool, tools: Tools = ()
) -> str:
    """The chat template's text, which shows `tools`; DataError where there is no template or it fails on these."""
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        raise DataError(
            f"tokenizer '{tokenizer.name_or_path}' has no chat template for a conversation; "
            "set tokenizer.chat_template, or give plain text"
        )
    try:
        text: str = tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            tools=[dict(tool) for tool in tools] or None,
            tokenize=False,
            add_generation_prompt=generation_prompt,
        )
    except (TemplateError, TypeError, ValueError) as error:
        roles = ", ".join(str(message["role"]) for message in messages)
        raise DataError(
            f"the chat template of '{tokenizer.name_or_path}' fails on a conversation of {roles}: {error}"
        ) from error
    return text


def _problem(sequence: Encoded, tokenizer: PreTrainedTokenizerBase, stop_ids: frozenset[int]) -> str | None:
    """What is wrong with the action mask of one sequence, if anything is."""
    fraction = sum(sequence.action_mask) / max(len(sequence.action_mask), 1)
    if not 0 < fraction < 1:
        return f"{fraction:.0%} of the tokens are supervised"
    if sequence.action_mask[0]:
        return "the first token is supervised, but nothing predicts it"
    for actions, ids in _runs(sequence):
        if actions and ids[-1] not in stop_ids:
            last = tokenizer.decode(ids[-1:])
            return f"a turn ends with {last!r} (token {ids[-1]}), not with a stop token {sorted(stop_ids)}"
    return None


def _turn_end(tokenizer: PreTrainedTokenizerBase) -> TurnEnd | None:
    """What follows an assistant's content in the template, found with a probe; None where no special token does."""
    probe = ({"role": "user", "content": "question"}, {"role": "assistant", "content": _PROBE})
    text = render(probe, tokenizer, generation_prompt=False)
    if _PROBE not in text:
        raise DataError(f"the chat template of '{tokenizer.name_or_path}' leaves out the assistant's content")
    tail = text[text.rindex(_PROBE) + len(_PROBE) :]
    special = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
    for token in encode_text(tail, tokenizer):
        if token in special:
            spelled = tokenizer.convert_ids_to_tokens(token)
            end = tail.index(spelled) + len(spelled)
            return TurnEnd(tail[:end], tail[end:], token)
    return None


def _split(
    messages: Sequence[Message], end: TurnEnd, tokenizer: PreTrainedTokenizerBase, tools: Tools
) -> tuple[str, str]:
    """The prefix of the last turn, and the turn with its terminator and nothing after it. Raises DataError."""
    prefix = render(messages[:-1], tokenizer, generation_prompt=True, tools=tools)
    full = render(messages, tokenizer, generation_prompt=False, tools=tools)
    if not full.startswith(prefix):
        raise DataError(
            f"the chat template of '{tokenizer.name_or_path}' renders an assistant turn differently from what its "
            f"generation prompt begins: a turn would begin with {prefix[-40:]!r} but reads "
            f"{full[max(len(prefix) - 40, 0) :][:80]!r}; set tokenizer.chat_template to one where it does"
        )
    turn = full[len(prefix) :]
    if not turn.endswith(end.text + end.rest):
        raise DataError(
            f"the chat template of '{tokenizer.name_or_path}' ends assistant turns in different ways: "
            f"{(end.text + end.rest)!r}, but here {turn[-40:]!r}"
        )
    return prefix, turn[: len(turn) - len(end.rest)]


def _leading_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """What the tokenizer puts in front of a text (bos, or nothing)."""
    plain, special = encode_text("a", tokenizer), tuple(tokenizer("a").input_ids)
    starts = range(len(special) - len(plain) + 1)
    return special[: next((start for start in starts if special[start : start + len(plain)] == plain), 0)]


def _encoded(parts: Sequence[tuple[Context, bool]]) -> Encoded:
    """Runs of tokens, each all actions or all context, as one sequence."""
    token_ids: tuple[int, ...] = ()
    pictures: Pictures = ()
    for part, _ in parts:
        pictures += moved(part.pictures, len(token_ids))
        token_ids += part.token_ids
    mask = tuple(actions for part, actions in parts for _ in part.token_ids)
    return Encoded(token_ids, (False, *mask[1:]), pictures)


def _runs(sequence: Encoded) -> list[tuple[bool, tuple[int, ...]]]:
    """The sequence as runs of (actions or context, tokens)."""
    pairs = zip(sequence.action_mask, sequence.token_ids, strict=True)
    return [(actions, tuple(token for _, token in run)) for actions, run in groupby(pairs, key=lambda pair: pair[0])]


def _plain(encoded: Sequence[Encoded], tokenizer: PreTrainedTokenizerBase) -> str:
    """The sequences as text with the actions between guillemets."""
    marks = {True: "«{}»", False: "{}"}
    return "\n".join(
        "".join(marks[actions].format(_decoded(ids, tokenizer, 1000)) for actions, ids in _runs(sequence))
        for sequence in encoded
    )


def _decoded(ids: tuple[int, ...], tokenizer: PreTrainedTokenizerBase, max_characters: int) -> str:
    """The text of some tokens, special ones included; the middle of a long text left out."""
    text: str = tokenizer.decode(list(ids), skip_special_tokens=False)
    if len(text) <= max_characters:
        return text
    half = max_characters // 2
    return f"{text[:half]} ... {text[len(text) - half :]}"
