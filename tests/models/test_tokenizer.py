import pytest
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen3Config

from posttrain.config.schema import ModelSettings, TokenizerSettings
from posttrain.errors import UserError
from posttrain.models.tokenizer import character_tokenizer, load_tokenizer

TEXT = " a  b, it 's fine .\n\n(1 + 2) = 3! <tag>  "


def load(**settings: str) -> PreTrainedTokenizerFast:
    return load_tokenizer(TokenizerSettings(**settings), ModelSettings(config={}))


def test_characters_are_tokens_and_decode_exactly() -> None:
    tokenizer = load(path="characters")
    ids = tokenizer(TEXT).input_ids
    assert len(ids) == len(TEXT)
    assert tokenizer.decode(ids) == TEXT
    assert len(tokenizer) < 110
    assert tokenizer(chr(233)).input_ids == [tokenizer.unk_token_id]


def test_byte_pairs_are_learnt_from_a_file(tmp_path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": [{"role": "user", "content": "go north, go south"}], "seed": 3}\n' * 5)
    settings = TokenizerSettings(path="bpe", corpus=str(file), vocabulary=300)
    tokenizer = load_tokenizer(settings, ModelSettings(config={}))
    assert len(tokenizer(" north").input_ids) == 1 < len(tokenizer("qzx").input_ids)
    for text in (TEXT, "größer\x00", "<|end|>"):
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text
    messages = [{"role": "user", "content": "go"}, {"role": "tool", "name": "f", "content": "3"}]
    text = tokenizer.apply_chat_template(messages, tools=[{"name": "f"}], tokenize=False, add_generation_prompt=True)
    assert text == '<|system|>{"name": "f"}<|end|><|user|>go<|end|><|tool|>3<|end|><|assistant|>'
    assert tokenizer.get_vocab() == load_tokenizer(settings, ModelSettings(config={})).get_vocab()
    tokenizer.save_pretrained(tmp_path / "saved")
    saved = load(path=str(tmp_path / "saved"))
    assert saved(TEXT).input_ids == tokenizer(TEXT).input_ids and saved.eos_token == "<|end|>"


def test_byte_pairs_that_cannot_be_learnt(tmp_path) -> None:
    file = tmp_path / "rows.jsonl"
    for text, size, why in (("{}", 300, "holds no text"), ("{", 300, "cannot be read"), ('["a"]', 100, "at least 262")):
        file.write_text(text)
        with pytest.raises(UserError, match=why):
            load_tokenizer(TokenizerSettings(path="bpe", corpus=str(file), vocabulary=size), ModelSettings(config={}))


def test_chat_template_of_characters() -> None:
    tokenizer = character_tokenizer()
    messages = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert text == "<|user|>question<|end|><|assistant|>answer<|end|>"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert ids[-1] == tokenizer.eos_token_id
    assert len(ids) == len("questionanswer") + 4
    assert tokenizer.decode(ids, skip_special_tokens=True) == "questionanswer"


@pytest.mark.parametrize("beside_a_model", [False, True])
def test_characters_reload(tmp_path, beside_a_model: bool) -> None:
    tokenizer = character_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    if beside_a_model:
        Qwen3Config().save_pretrained(tmp_path)
    for reloaded in (AutoTokenizer.from_pretrained(tmp_path), load(path=str(tmp_path))):
        assert reloaded(TEXT).input_ids == tokenizer(TEXT).input_ids
        assert reloaded.decode(reloaded(TEXT).input_ids) == TEXT
        assert reloaded.get_vocab() == tokenizer.get_vocab()
        assert reloaded.chat_template == tokenizer.chat_template
        assert (reloaded.pad_token, reloaded.eos_token) == ("<pad>", "<|end|>")


def test_path_defaults_to_the_models_and_pad_is_set(tmp_path) -> None:
    backend = Tokenizer(models.WordLevel({"a": 0, "</s>": 1}, unk_token="a"))
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>").save_pretrained(tmp_path)
    tokenizer = load_tokenizer(TokenizerSettings(), ModelSettings(path=str(tmp_path)))
    assert tokenizer.pad_token == tokenizer.eos_token == "</s>"


def test_chat_template_as_text_and_as_file(tmp_path) -> None:
    file = tmp_path / "chat.jinja"
    file.write_text("{{ messages[0].content }}!")
    for template in (str(file), "{{ messages[0].content }}!"):
        tokenizer = load(path="characters", chat_template=template)
        assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi!"
    with pytest.raises(UserError, match=r"tokenizer.chat_template: 'missing.jinja'"):
        load(path="characters", chat_template="missing.jinja")


def test_what_cannot_be_loaded_is_named(tmp_path) -> None:
    with pytest.raises(UserError, match=r"tokenizer\.path: missing"):
        load()
    with pytest.raises(UserError, match=f"tokenizer '{tmp_path}'"):
        load(path=str(tmp_path))


def test_unreachable_hub_is_said_at_once(monkeypatch) -> None:
    monkeypatch.setattr("posttrain.models.tokenizer.hub_reachable", lambda: False)
    with pytest.raises(UserError, match=r"tokenizer 'no-such/model'.*cannot be reached"):
        load(path="no-such/model")
