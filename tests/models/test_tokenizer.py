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
