"""What `posttrain rollout` prints of an episode."""

from __future__ import annotations

from rich.text import Text

from posttrain.data.chat import encode_prompt, encode_text
from posttrain.models.tokenizer import character_tokenizer
from posttrain.rollout.conversation import Conversation
from posttrain.trainer.play import episode_text
from posttrain.trajectory import EpisodeEnd, StopReason, Trajectory, Turn

TOKENIZER = character_tokenizer()
ASK = ({"role": "system", "content": "play"}, {"role": "user", "content": "[a] room"})


def shown(trajectory: Trajectory) -> list[str]:
    return Text.from_markup(episode_text(trajectory, TOKENIZER)).plain.splitlines()


def episode(history: int | None) -> Trajectory:
    talk = Conversation(ASK, history)
    turns: list[Turn] = []
    for said, reward, invalid, told in (
        ("go", 0.0, None, "you can go to the hall"),
        ("fly", None, "No.", "No."),
        ("take", 1.0, None, ""),
    ):
        prompt, ids = talk.encode(TOKENIZER), encode_text(said + "<|end|>", TOKENIZER)
        turns.append(
            Turn(prompt.token_ids, ids, (-0.5,) * len(ids), StopReason.STOP, 0, said, reward=reward, invalid=invalid)
        )
        talk.sampled(prompt, ids)
        talk.add(said, ({"role": "user", "content": told},))
    return Trajectory(
        "tasks#0", 0, ASK, {}, tuple(turns), end=EpisodeEnd.TERMINATED, outcome=True, rewards={"won": 1.0}, reward=1.0
    )


def test_an_episode_reads_as_it_was_played() -> None:
    expected = [
        "tasks#0  reward 1 (won 1)",
        "system: play",
        "user: [a] room",
        "turn 1  reward 0",
        "go",
        "you can go to the hall",
        "turn 2  invalid: No.",
        "fly",
        "No.",
        "turn 3  reward 1",
        "take",
        "3 turns, 1 invalid, 12 tokens, stopped by stop; the environment ended it: solved",
    ]
    assert shown(episode(None)) == expected
    dropped = shown(episode(0))  # each prompt drops what was said before: all of it is what is read
    assert dropped == [*expected[:5], "playyou can go to the hall", *expected[6:8], "playNo.", *expected[9:]]
    assert shown(episode(1))[5:] == expected[5:]  # each prompt keeps one turn


def test_a_single_answer_stays_short() -> None:
    ids = encode_text("2<|end|>", TOKENIZER)
    turn = Turn(encode_prompt(ASK, TOKENIZER), ids, (-0.5, -0.5), StopReason.STOP, 0, "2")
    one = Trajectory("rows#1", 0, "1 + 1 =", {}, (turn,), end=EpisodeEnd.TERMINATED, rewards={"right": None})
    assert shown(one) == [
        "rows#1  reward ungraded (right ungraded)", "1 + 1 =", "2", "2 tokens, stopped by stop",
    ]  # fmt: skip
    failed = Trajectory("rows#1", 1, "1", {}, end=EpisodeEnd.ERROR, error="environment: it broke")
    assert shown(failed)[-1] == "environment: it broke"
