import json
import re
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers

from deltakv_jax.errors import UserError
from deltakv_jax.weights import Tokenizer


def write(folder: Path, name: str, **fields) -> None:
    (folder / name).write_text(json.dumps(fields))


def bytewise(*, spaced: bool) -> Tokenizer:
    """Every token is a byte, but for one of two characters.

    If `spaced`, as SentencePiece does it: a text begins with a space that its decoder takes off,
    and bytes are tokens of their own beside the characters.
    """
    vocab = {f"<0x{byte:02X}>": byte for byte in range(256)} | {"▁": 256, "é▁": 257}
    inner = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True))
    space = decoders.Replace("▁", " ")
    parts = [space, decoders.ByteFallback(), decoders.Fuse()]
    if spaced:
        inner.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
        parts.append(decoders.Strip(" ", left=1, right=0))
    inner.decoder = decoders.Sequence(parts)
    return Tokenizer(inner, bos_id=None, eos_ids=frozenset())


TOKENIZERS = {"plain": bytewise(spaced=False), "spaced": bytewise(spaced=True)}
tokenizer = st.sampled_from(sorted(TOKENIZERS)).map(TOKENIZERS.__getitem__)


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


def test_bos_may_be_named_by_an_object(folder: Path):
    write(folder, "tokenizer_config.json", bos_token={"content": "<eot>", "special": True})
    assert Tokenizer.load(folder).bos_id == 2


def test_bos_comes_from_the_configs_where_no_token_is_named(folder: Path):
    (folder / "tokenizer_config.json").unlink()
    assert Tokenizer.load(folder).bos_id is None
    write(folder, "config.json", bos_token_id=1)
    assert Tokenizer.load(folder).bos_id == 1
    write(folder, "generation_config.json", bos_token_id=2)
    assert Tokenizer.load(folder).bos_id == 2


def test_a_model_may_take_no_bos(folder: Path):
    write(folder, "tokenizer_config.json", bos_token="<bos>", add_bos_token=False)
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.bos_id is None
    assert len(tokenizer.encode("ab")) == 2


def test_eos_is_whatever_any_file_names(folder: Path):
    assert Tokenizer.load(folder).eos_ids == {1}
    write(folder, "generation_config.json", eos_token_id=[2, 7])
    assert Tokenizer.load(folder).eos_ids == {1, 2, 7}


def test_ids_that_are_no_integers(folder: Path):
    write(folder, "generation_config.json", eos_token_id="</s>")
    with pytest.raises(UserError, match=r'eos_token_id must hold integers, got "</s>"'):
        Tokenizer.load(folder)


def test_a_token_beyond_the_models_vocabulary(folder: Path):
    write(folder, "config.json")
    short = Tokenizer.load(folder, limit=100)
    longest = max(Tokenizer.load(folder).encode("é"))
    message = f"the tokenizer gives id {longest}, but the model has 100 tokens"
    with pytest.raises(UserError, match=re.escape(message)):
        short.encode("é")
    assert short.encode("1") == [0, *Tokenizer.load(folder).encode("1", bos=False)]


def test_a_text_that_is_no_unicode(folder: Path):
    with pytest.raises(UserError, match=r"no valid Unicode: '\\udcff' at offset 1"):
        Tokenizer.load(folder).encode("a\udcff")


def pushed(tokenizer: Tokenizer, ids: list[int], after: list[int]) -> list[str]:
    stream = tokenizer.stream(after)
    return [*(stream.push(one) for one in ids), stream.flush()]


@given(tokenizer, st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\ufffd▁")))
def test_a_stream_gives_the_text_in_whole_characters(tokenizer: Tokenizer, text: str):
    parts = pushed(tokenizer, tokenizer.encode(text), [])
    assert "".join(parts) == text
    assert "\ufffd" not in "".join(parts)


@given(tokenizer, st.lists(st.integers(0, 257), max_size=20))
def test_a_stream_takes_ids_that_are_no_text(tokenizer: Tokenizer, ids: list[int]):
    *whole, _ = pushed(tokenizer, ids, [])
    assert not any(part.endswith("\ufffd") for part in whole)


def test_a_stream_goes_on_from_a_prompt():
    spaced = TOKENIZERS["spaced"]
    ids = spaced.encode("ab cd")
    prompt, rest = ids[:3], ids[3:]
    assert spaced.decode(rest) == "cd"
    assert "".join(pushed(spaced, rest, prompt)) == " cd"


def test_an_unfinished_character_waits_for_the_end():
    plain = TOKENIZERS["plain"]
    *whole, last = pushed(plain, plain.encode("a€")[:-1], [])
    assert "".join(whole) == "a"
    assert set(last) == {"\ufffd"}


def test_special_tokens_have_no_text(folder: Path):
    tokenizer = Tokenizer.load(folder)
    ids = [0, *tokenizer.encode("a b", bos=False), 1]
    assert tokenizer.decode(ids) == "".join(pushed(tokenizer, ids, [])) == "a b"
