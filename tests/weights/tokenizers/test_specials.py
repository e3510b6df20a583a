from hypothesis import given
from hypothesis import strategies as st

from deltakv_jax.weights.tokenizers.specials import Disguise, split

SPECIAL = {"<s>": 1, "</s>": 2, "<|a|>": 3, "<|a|>b": 4, "§": 5}
ENDS = [name[cut:] for name in SPECIAL for cut in range(1, len(name))]
texts = st.lists(st.sampled_from([*SPECIAL, *"<s>/|ab§ \ufdd0\ufdd1"]), max_size=12).map("".join)


def test_a_text_is_cut_at_its_special_tokens():
    assert split("x<s>y</s>", SPECIAL) == ["x", 1, "y", 2]
    assert split("", SPECIAL) == []
    assert split("<s>", {}) == ["<s>"]


def test_of_two_special_tokens_the_longer_one_counts():
    assert split("<|a|>b<|a|>c", SPECIAL) == [4, 3, "c"]


@given(texts)
def test_a_disguise_comes_off(text: str):
    disguise = Disguise(SPECIAL, [text])
    assert disguise.take_off(disguise.put_on(text)) == text


def begins(text: str) -> int:
    """Where the first special token of a text begins; its end where there is none."""
    first, *_ = [*split(text, SPECIAL), ""]
    return len(first) if isinstance(first, str) else 0


@given(texts, texts)
def test_nothing_begins_a_special_token_in_a_disguised_text(text: str, more: str):
    """Not even with what follows it."""
    hidden = Disguise(SPECIAL, [text, more]).put_on(text)
    for after in (more, *ENDS):
        assert begins(hidden + after) >= len(hidden)


@given(texts)
def test_nor_once_the_disguised_text_is_trimmed(text: str):
    trimmed = Disguise(SPECIAL, [text]).put_on(f"{text} \n").strip()
    for end in ENDS:
        assert begins(trimmed + end) >= len(trimmed)


def test_a_text_without_special_tokens_is_left_as_it_is():
    assert Disguise(SPECIAL, []).put_on("a < b > c") == "a < b > c"
    assert Disguise({}, []).put_on("<s>") == "<s>"
