"""Episodes of several turns: exact tokens, limits, invalid actions, room for so many, what turns earned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch

from posttrain.batch import TokenBatch
from posttrain.config.schema import EpisodeSettings
from posttrain.data.chat import encode_prompt, encode_text, stop_token_ids
from posttrain.data.examples import Example
from posttrain.environments import Observation, Step, told
from posttrain.models.tokenizer import character_tokenizer
from posttrain.picture import Context
from posttrain.rollout.collector import Collector
from posttrain.rollout.conversation import Conversation
from posttrain.rollout.engine import Sampling
from posttrain.rollout.sequences import rollout_sequences
from posttrain.rollout.transformers_engine import TransformersEngine
from posttrain.trajectory import EpisodeEnd, Prompt, StopReason, Trajectory, Turn

TOKENIZER = character_tokenizer()
STOP = stop_token_ids(TOKENIZER)
SYSTEM, ASK = {"role": "system", "content": "play"}, {"role": "user", "content": "room 0"}


@pytest.fixture(scope="module")
def engine() -> TransformersEngine:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Qwen3Config(
        vocab_size=len(TOKENIZER), num_key_value_heads=1, head_dim=8, max_position_embeddings=120, **sizes
    )
    return TransformersEngine(Qwen3ForCausalLM(config), dtype="float32", batch_tokens=4096)


@dataclass
class Rooms:
    """Goes on for ever, one room further with every action of an even number of characters; others are invalid."""

    capacity: int | None = None
    num_open: int = 0
    most_open: int = 0
    last: int = 10**9
    seen: list[str] = field(default_factory=list)

    async def reset(self, prompt: Prompt, columns: Mapping[str, Any], seed: int) -> tuple[Observation, Walk]:
        self.num_open += 1
        self.most_open = max(self.most_open, self.num_open)
        return Observation((SYSTEM, ASK), state="room 0"), Walk(self)

    def close(self) -> None:
        assert self.num_open == 0


@dataclass
class Walk:
    rooms: Rooms
    room: int = 0

    async def step(self, action: str) -> Step:
        if len(action) % 2:
            return Step(invalid="odd")
        self.room += 1
        found = Observation(told(f"room {self.room}"), state=f"room {self.room}")
        over = self.room == self.rooms.last
        return Step(found, reward=0.5, terminated=over, solved=True if over else None)

    async def close(self) -> None:
        self.rooms.num_open -= 1


def play(
    engine: TransformersEngine, rooms: Rooms, num: int = 6, max_tokens: int = 4, **limits: Any
) -> list[Trajectory]:
    made = Collector(
        engine, rooms, None, TOKENIZER, Sampling(max_tokens=max_tokens, stop_token_ids=STOP),
        limits=EpisodeSettings(**limits),
    )  # fmt: skip
    (group,) = made.collect([Example("row", (ASK,))], num, seed=1)
    return list(group.trajectories)


def test_a_turn_goes_on_from_the_exact_tokens_before_it(engine: TransformersEngine) -> None:
    num_whole = 0
    for one in play(engine, Rooms(), num=12, max_turns=3):
        assert len(one.turns) == 3 and one.end is EpisodeEnd.TURNS and one.outcome is False and one.error is None
        sequences = rollout_sequences(one, 0, 0)
        assert sum(sum(sequence.action_mask) for sequence in sequences) == one.num_completion_tokens
        assert sequences[0].states is not None and sequences[0].states[0] == "room 0"
        said = [turn.completion_ids[: -1 if turn.stop_reason is StopReason.STOP else None] for turn in one.turns]
        if not {*said[0], *said[1]} & {*TOKENIZER.all_special_ids}:  # which text leaves out: the template rewrites it
            (sequence,) = sequences
            assert sequence.token_ids == one.turns[-1].prompt_ids + one.turns[-1].completion_ids
            num_whole += 1
    assert num_whole >= 3


def test_a_token_that_text_would_not_give_back_is_kept() -> None:
    """Two tokens that decode to a text which tokenises otherwise: the policy goes on from what it sampled."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    words = {"<e>": 0, "a": 1, "b": 2, "ab": 3, "u": 4, "p": 5}
    plain = Tokenizer(models.BPE(words, [("a", "b")]))
    plain.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="<e>")
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'assistant' %}p{{ m.content }}<e>{% else %}u{{ m.content }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}p{% endif %}"
    )
    talk = Conversation(({"role": "user", "content": "a"},))
    prompt = talk.encode(tokenizer)
    assert prompt.token_ids == (4, 1, 5)
    talk.sampled(prompt, (1, 2, 0))  # "a", "b": the tokenizer itself would write "ab"
    talk.add("ab", ({"role": "user", "content": "b"},))
    assert talk.encode(tokenizer).token_ids == (4, 1, 5, 1, 2, 0, 4, 2, 5)
    assert encode_text("ab", tokenizer) == (3,)


@pytest.mark.parametrize(
    ("history", "shown"),
    [
        (None, ["play", "room 0", "go 1", "room 1", "go 2", "room 2", "go 3", "room 3"]),
        (1, ["play", "room 2", "go 3", "room 3"]),
        (0, ["play", "room 3"]),
        (3, ["play", "room 0", "go 1", "room 1", "go 2", "room 2", "go 3", "room 3"]),
    ],
)
def test_history(history: int | None, shown: list[str]) -> None:
    talk = Conversation((ASK,), history)
    talk.start(Observation((SYSTEM, ASK)))
    for turn in (1, 2, 3):
        prompt = talk.encode(TOKENIZER)
        talk.sampled(prompt, encode_text(f"go {turn}", TOKENIZER))
        talk.add(f"go {turn}", told(f"room {turn}"))
    assert not isinstance(talk.messages, str)
    assert [message["content"] for message in talk.messages] == shown
    assert talk.encode(TOKENIZER).token_ids == encode_prompt(talk.messages, TOKENIZER)


@pytest.mark.parametrize("history", [None, 2, 1, 0])
def test_what_was_added_is_whole_where_it_ends_with_the_same_words(history: int | None) -> None:
    talk = Conversation((ASK,), history)
    talk.start(Observation((SYSTEM, ASK)))
    turns = []
    for said in ("go", "look", "look"):
        prompt = talk.encode(TOKENIZER)
        ids = (*encode_text(said, TOKENIZER), TOKENIZER.eos_token_id)
        turns.append(Turn(prompt.token_ids, ids, (0.0,) * len(ids), StopReason.STOP, 0, said))
        talk.sampled(prompt, ids)
        talk.add(said, told("here. go; look"))
    added = TOKENIZER.decode(turns[2].added(turns[1]), skip_special_tokens=True)
    assert added == ("playhere. go; look" if history == 0 else "here. go; look")


def test_half_a_character_is_told_as_a_browser_writes_it() -> None:
    talk = Conversation((ASK,))
    talk.start(Observation(told("a\ud83d \ud83d\ude00 \udc00")))  # a tokenizer fails on the text as it is
    assert talk.encode(TOKENIZER).token_ids == encode_prompt(told("a\ufffd \U0001f600 \ufffd"), TOKENIZER)


def test_limits(engine: TransformersEngine) -> None:
    assert {one.end for one in play(engine, Rooms(), max_tokens=3, max_turns=2)} == {EpisodeEnd.TURNS}
    assert {one.end for one in play(engine, Rooms(), max_seconds=1e-9)} == {EpisodeEnd.SECONDS}

    tokens = [one for one in play(engine, Rooms()) if one.end is EpisodeEnd.TOKENS]
    assert tokens and not any(one.error for one in tokens)  # the conversation has outgrown the window of 120 tokens


def test_the_environments_end_is_the_outcome(engine: TransformersEngine) -> None:
    won = [one for one in play(engine, Rooms(last=1), num=12, max_turns=3) if one.end is EpisodeEnd.TERMINATED]
    assert won
    for one in won:
        assert one.outcome is True and one.turns[-1].reward == 0.5


@pytest.mark.parametrize("invalid", ["tell", "mask", "end"])
def test_invalid_actions(engine: TransformersEngine, invalid: str) -> None:
    played = play(engine, Rooms(), num=8, max_turns=3, invalid=invalid)
    assert any(one.num_invalid for one in played)
    for one in played:
        bad = [turn.invalid is not None for turn in one.turns]
        assert [turn.masked for turn in one.turns] == [own and invalid == "mask" for own in bad]
        if invalid == "end" and any(bad):
            assert one.end is EpisodeEnd.INVALID and bad == [*[False] * (len(bad) - 1), True]
            continue
        assert len(one.turns) == 3
        trained = sum(sum(sequence.action_mask) for sequence in rollout_sequences(one, 0, 0))
        assert trained == sum(len(turn.completion_ids) for turn in one.turns if not turn.masked)
        for turn, after, wrong in zip(one.turns, one.turns[1:], bad, strict=False):
            assert ("odd" in TOKENIZER.decode(after.added(turn))) == wrong
            assert (turn.state == after.state) == wrong


def test_no_more_episodes_at_once_than_there_is_room_for(engine: TransformersEngine) -> None:
    free, tight = Rooms(), Rooms(capacity=2)
    expected, found = play(engine, free, num=7, max_turns=3), play(engine, tight, num=7, max_turns=3)
    for one, other in zip(found, expected, strict=True):  # logprobs: other batches round in other ways
        assert [replace(turn, logprobs=()) for turn in one.turns] == [
            replace(turn, logprobs=()) for turn in other.turns
        ]
        for turn, same in zip(one.turns, other.turns, strict=True):
            assert turn.logprobs == pytest.approx(same.logprobs, abs=1e-5)
    assert (free.most_open, tight.most_open) == (7, 2)


def test_what_turns_earned_reaches_their_tokens() -> None:
    def turn(prompt: tuple[int, ...], said: tuple[int, ...], **more: Any) -> Turn:
        return Turn(prompt, said, (-0.5,) * len(said), StopReason.STOP, 0, "", **more)

    turns = (
        turn((1, 2), (3, 4), state="a"),
        turn((1, 2, 3, 4, 5), (6,), masked=True, invalid="no", state="b"),
        turn((1, 2, 3, 4, 5, 6, 7), (8, 9), state="b"),
        turn((9, 9), (1,), state="a"),  # the template has rewritten what was before: a sequence of its own
    )
    one = Trajectory("p", 0, "", {}, turns, reward=7.0, turn_rewards=(1.0, 2.0, 0.5, 3.5))
    first, second = rollout_sequences(one, 0, 0)
    assert first.action_mask == (False, False, True, True, False, False, False, True, True)
    assert first.turn_rewards == (3.0, 3.0, 0.5, 0.5) and second.turn_rewards == (3.5,)
    whole = Trajectory("p", 0, "", {}, turns[:1], reward=2.0)
    batch = TokenBatch.from_sequences([first, second, *rollout_sequences(whole, 0, 1)])
    assert batch.turn_rewards is not None and batch.state_index is not None and batch.turn_index is not None
    assert batch.turn_rewards.tolist() == [3.0, 3.0, 0.5, 0.5, 3.5, 2.0, 2.0]
    assert batch.turn_index.tolist() == [0, 0, 2, 2, 3, 0, 0]
    assert batch.state_index.tolist() == [0, 0, 1, 1, 0, 0, 0]


def asked(*said: str) -> Observation:
    roles = ("user", "assistant")
    return Observation(tuple({"role": roles[place % 2], "content": text} for place, text in enumerate(said)))


def test_a_conversation_told_anew_goes_on_from_the_longest_of_its_turns() -> None:
    """Two speakers in turn, and a third call that goes on from the first speaker's first turn."""
    talk, unknown = Conversation(""), TOKENIZER.unk_token_id  # a token that its text would not give back
    known: list[tuple[int, ...]] = []
    for said in (("a",), ("b",), ("a", "x", "c"), ("b", "x", "d"), ("a", "x", "e"), ("a", "y", "c")):
        talk.start(asked(*said))
        prompt = talk.encode(TOKENIZER)
        known.append((*prompt.token_ids, *encode_text("x", TOKENIZER), TOKENIZER.eos_token_id))
        talk.sampled(prompt, known[-1][len(prompt.token_ids) :])
    assert TOKENIZER.decode(known[2]) == "<|user|>a<|end|><|assistant|>x<|end|><|user|>c<|end|><|assistant|>x<|end|>"
    for after, before in ((2, 0), (3, 1), (4, 0)):
        assert known[after][: len(known[before])] == known[before]
    assert known[5][: len(known[0])] != known[0]

    talk = Conversation("")
    talk.start(asked("a"))
    prompt = talk.encode(TOKENIZER)
    talk.sampled(prompt, (unknown,))
    talk.start(asked("a", TOKENIZER.decode([unknown]), "c"))
    assert talk.encode(TOKENIZER).token_ids[: len(prompt.token_ids) + 1] == (*prompt.token_ids, unknown)


def test_tokens_that_are_given_are_the_prompt() -> None:
    talk = Conversation((ASK,))
    talk.start(Observation(prompt_ids=(5, 6, 7)))
    assert talk.encode(TOKENIZER).token_ids == (5, 6, 7)
    talk.sampled(Context((5, 6, 7)), (8,))
    talk.start(asked("a"))
    assert talk.encode(TOKENIZER).token_ids == encode_prompt(asked("a").messages, TOKENIZER)


@dataclass
class Asks:
    """An environment that says what is read anew at every turn: in tokens of its own where the row has some."""

    seen: list[Turn] = field(default_factory=list)
    capacity: int | None = None

    async def reset(self, prompt: Prompt, columns: Mapping[str, Any], seed: int) -> tuple[Observation, Talk]:
        given = columns.get("ids")
        return (asked("a") if given is None else Observation(prompt_ids=tuple(given))), Talk(self)

    def close(self) -> None:
        pass


@dataclass
class Talk:
    asks: Asks
    num_left: int = 1

    async def step(self, action: str) -> Step:
        raise AssertionError("take is asked in its place")

    async def take(self, turn: Turn) -> Step:
        self.asks.seen.append(turn)
        self.num_left -= 1
        return Step(asked("a", turn.text, "b"), anew=True) if self.num_left == 0 else Step(terminated=True, solved=True)

    async def close(self) -> None:
        pass


def test_an_episode_that_takes_turns_reads_their_tokens(engine: TransformersEngine) -> None:
    environment = Asks()
    made = Collector(engine, environment, None, TOKENIZER, Sampling(max_tokens=4, stop_token_ids=STOP))
    given: list[dict[str, Any]] = [{"ids": [7, 8]}, {"ids": [9]}, {}]
    rows = [Example(f"row {number}", "plain", columns=one) for number, one in enumerate(given)]
    groups = made.collect(rows, 1, seed=1)
    played = [group.trajectories[0] for group in groups]
    assert [one.turns[0].prompt_ids for one in played[:2]] == [(7, 8), (9,)]
    assert [one.prompt for one in played[:2]] == ["plain", "plain"], "where only tokens are given, the row's stands"
    assert played[2].prompt == asked("a").messages
    for one in played:
        assert len(one.turns) == 2 and one.end is EpisodeEnd.TERMINATED and one.outcome is True
        for turn in one.turns:
            assert [(seen.completion_ids, seen.logprobs) for seen in environment.seen].count(
                (turn.completion_ids, turn.logprobs)
            ) == 1
