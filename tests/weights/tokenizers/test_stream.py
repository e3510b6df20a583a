import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltakv_jax.weights.tokenizers import Tokenizer
from deltakv_jax.weights.tokenizers.huggingface import HuggingFaceVocabulary
from tests.weights.tokenizers import material

make = lambda vocabulary: Tokenizer(vocabulary, bos_id=None, eos_ids=())
TOKENIZERS = {
    "bytes": make(HuggingFaceVocabulary(material.byte_level(), "tokenizer.json")),
    "plain": make(material.byte_fallback(spaced=False)),
    "spaced": make(material.byte_fallback(spaced=True)),
    "pieces": make(material.pieces()),
}
tokenizer = st.sampled_from(sorted(TOKENIZERS)).map(TOKENIZERS.__getitem__)


def pushed(tokenizer: Tokenizer, ids: list[int], after: list[int]) -> list[str]:
    stream = tokenizer.stream(after)
    return [*(stream.push(one) for one in ids), stream.flush()]


@given(tokenizer, st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\ufffd▁")))
def test_a_stream_gives_the_text_in_whole_characters(tokenizer: Tokenizer, text: str):
    parts = pushed(tokenizer, tokenizer.encode(text), [])
    assert "".join(parts) == text
    assert "\ufffd" not in "".join(parts)


@given(tokenizer, st.lists(st.integers(0, 300), max_size=15))
def test_a_stream_takes_ids_that_are_no_text(tokenizer: Tokenizer, ids: list[int]):
    *whole, _ = pushed(tokenizer, ids, [])
    assert not any(part.endswith("\ufffd") for part in whole)


@pytest.mark.parametrize("name", ["spaced", "pieces"])
def test_a_stream_goes_on_from_a_prompt(name: str):
    spaced = TOKENIZERS[name]
    ids = spaced.encode("ab cd")
    at = len(spaced.encode("ab"))
    prompt, rest = ids[:at], ids[at:]
    assert spaced.decode(rest) == "cd"
    assert "".join(pushed(spaced, rest, prompt)) == " cd"


@pytest.mark.parametrize("name", TOKENIZERS)
def test_an_unfinished_character_waits_for_the_end(name: str):
    *whole, last = pushed(TOKENIZERS[name], TOKENIZERS[name].encode("a€")[:-1], [])
    assert "".join(whole) == "a"
    assert set(last) == {"\ufffd"}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_invalid_bytes_do_not_hold_the_text_back(name: str):
    """A model that writes them for ever is seen to, and each id takes as long as the last."""
    tokenizer = TOKENIZERS[name]
    invalid = tokenizer.encode("€")[-1]
    stream = tokenizer.stream()
    parts = [stream.push(invalid) for _ in range(1000)]
    assert len("".join(parts)) > 900
    assert max(map(len, parts)) < 50


@pytest.mark.parametrize("name", ["bytes", "pieces"])  # the others take the whole run for invalid
@pytest.mark.parametrize("count", range(1, 40))
def test_a_character_after_invalid_bytes(name: str, count: int):
    tokenizer = TOKENIZERS[name]
    ids = [*[tokenizer.encode("€")[-1]] * count, *tokenizer.encode("🦙")[-4:]]
    assert "".join(pushed(tokenizer, ids, [])) == "\ufffd" * count + "🦙"
