import json
import re
from pathlib import Path

import pytest

from deltakv_jax.errors import UserError
from deltakv_jax.weights import Tokenizer
from deltakv_jax.weights.tokenizers.chat import ChatTemplate
from tests.weights.tokenizers.material import pieces

PLAIN = "{% for m in messages %}[{{ m.role }}]{{ m.content | trim }}</s>{% endfor %}[assistant]"


def with_template(text: str, bos_id: int | None = 1) -> Tokenizer:
    template = ChatTemplate("model.gguf", text, {"bos_token": "<s>", "eos_token": "</s>"})
    return Tokenizer(pieces(), bos_id=bos_id, eos_ids=(), template=template)


def says(tokenizer: Tokenizer, content: str, **options: bool) -> list[int]:
    return tokenizer.encode_chat([{"role": "user", "content": content}], **options)


def test_bos_stands_in_front(folder: Path):
    tokenizer = Tokenizer.load(folder)
    ids = tokenizer.encode("ab")
    assert ids[0] == tokenizer.bos_id == 0
    assert tokenizer.encode("ab", bos=False) == ids[1:]
    assert tokenizer.decode(ids) == "ab"
    assert tokenizer.encode("") == [0]
    assert tokenizer.vocab_size == 259


def test_a_post_processor_does_not_add_bos_again(shared: Path):
    tokenizer = Tokenizer.load(shared / "models" / "tiny1m")
    ids = tokenizer.encode("Once")
    assert [one == tokenizer.bos_id for one in ids] == [True] + [False] * (len(ids) - 1)


def test_a_token_beyond_the_models_vocabulary(folder: Path):
    (folder / "config.json").write_text(json.dumps({}))
    short = Tokenizer.load(folder, limit=100)
    longest = max(Tokenizer.load(folder).encode("é"))
    message = f"the tokenizer gives id {longest}, but the model has 100 tokens"
    with pytest.raises(UserError, match=re.escape(message)):
        short.encode("é")
    assert short.encode("1") == [0, *Tokenizer.load(folder).encode("1", bos=False)]


def test_a_text_that_is_no_unicode(folder: Path):
    with pytest.raises(UserError, match=r"no valid Unicode: '\\udcff' at offset 1"):
        Tokenizer.load(folder).encode("a\udcff")


def test_special_tokens_have_no_text(folder: Path):
    tokenizer = Tokenizer.load(folder)
    ids = [0, *tokenizer.encode("a b", bos=False), 1]
    stream = tokenizer.stream()
    assert tokenizer.decode(ids) == "".join(map(stream.push, ids)) == "a b"


def test_special_tokens_in_a_text_are_ids_only_where_asked_for(folder: Path):
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.encode("<eot>", special=True) == [0, 2]
    assert len(tokenizer.encode("<eot>")) == 1 + len("<eot>")
    assert tokenizer.decode(tokenizer.encode("<eot>")) == "<eot>"


def test_ends_of_turns_are_known_by_their_names():
    assert Tokenizer(pieces(), bos_id=1, eos_ids=(7,)).eos_ids == {2, 7}


def test_a_conversation():
    tokenizer = with_template(PLAIN)
    ids = says(tokenizer, " ab \n")
    assert ids == tokenizer.encode("[user]ab</s>[assistant]", special=True)
    assert ids.count(2) == 1


def test_what_a_user_says_holds_no_special_tokens():
    """Neither a whole one nor one that the template's own text would complete."""
    tokenizer = with_template(PLAIN)
    for content in ("ab</s>c", "</s>", "<s>a</s> ", "</s", "<"):
        ids = says(tokenizer, content)
        assert ids.count(2) == 1
        assert tokenizer.decode(ids) == f"[user]{content.strip()} [assistant]"
    joined = with_template("{{ messages[0].content }}s>")
    assert 1 not in says(joined, "<", special=False)[1:]


def test_unless_it_is_asked_for():
    ids = says(with_template(PLAIN), "ab</s>c", special=True)
    assert ids.count(2) == 2


def test_bos_comes_once_whether_the_template_writes_it_or_not():
    written = with_template("{{ bos_token }}" + PLAIN)
    assert says(written, "ab") == says(with_template(PLAIN), "ab")
    assert says(with_template(PLAIN), "ab").count(1) == 1
    assert says(with_template("{{ bos_token }}" + PLAIN, bos_id=None), "ab").count(1) == 1
    assert says(with_template(PLAIN, bos_id=None), "ab").count(1) == 0


def test_a_model_without_a_template(folder: Path):
    with pytest.raises(UserError, match="the model has no chat template"):
        says(Tokenizer.load(folder), "ab")


def test_a_message_that_is_no_unicode():
    with pytest.raises(UserError, match="no valid Unicode"):
        says(with_template(PLAIN), "a\udcff")
