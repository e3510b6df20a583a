"""The little language of specs: what it takes, its canonical form, and what it says of the rest."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltakv_jax.codec import parse_spec
from deltakv_jax.errors import UserError

KNOWN = (
    "known are f32, bf16, f16, q8_0[:rotate], q4_0[:rotate], delta[:rotate][:interval=N], "
    "layered[:bits=2|3|4][:block=16|32|64][:window=N][:sinks=N][:centre]"
)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("f32", "f32"),
        ("bf16", "bf16"),
        ("f16/f16", "f16"),
        ("q8_0", "q8_0"),
        ("q4_0:rotate", "q4_0:rotate"),
        ("delta", "delta"),
        ("delta:interval=32", "delta"),
        ("delta:interval=016", "delta:interval=16"),
        ("delta:interval=2", "delta:interval=2"),
        ("delta:interval=5:rotate", "delta:rotate:interval=5"),
        ("delta/q4_0", "delta/q4_0"),
        ("delta:interval=32/delta", "delta"),
        ("q4_0/q4_0:rotate", "q4_0/q4_0:rotate"),
        ("layered:bits=4:block=64:window=64:sinks=4", "layered"),
        ("layered:centre:window=0:bits=2", "layered:bits=2:window=0:centre"),
    ],
)
def test_canonical_form(text, canonical):
    assert str(parse_spec(text)) == canonical


def test_sides_are_k_then_v():
    spec = parse_spec("delta:interval=16/q4_0:rotate")
    assert (spec.k.name, spec.k.interval, spec.k.rotate) == ("delta", 16, False)
    assert (spec.v.name, spec.v.interval, spec.v.rotate) == ("q4_0", 1, True)
    assert parse_spec("delta").k.interval == 32


SIDES = st.one_of(
    st.sampled_from(["f32", "bf16", "f16", "q8_0", "q8_0:rotate", "q4_0", "q4_0:rotate"]),
    st.builds(
        lambda words, n: ":".join(["delta", *(w.format(n) for w in words)]),
        st.permutations(["rotate", "interval={}"]).flatmap(
            lambda words: st.integers(0, 2).map(lambda count: words[:count])
        ),
        st.integers(2, 999_999),
    ),
)


@given(SIDES, SIDES)
@settings(max_examples=100, deadline=None, derandomize=True)
def test_the_canonical_form_means_the_same_and_is_its_own(k, v):
    spec = parse_spec(f"{k}/{v}")
    assert (spec.k, spec.v) == (parse_spec(k).k, parse_spec(v).v)
    assert parse_spec(str(spec)) == spec
    assert hash(parse_spec(str(spec))) == hash(spec)
    assert re.fullmatch("[a-z0-9_.+:=/-]+", str(spec))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("q5_0", f"unknown KV format 'q5_0' in 'q5_0'; {KNOWN}"),
        ("", f"unknown KV format '' in ''; {KNOWN}"),
        ("Q4_0", f"unknown KV format 'Q4_0' in 'Q4_0'; {KNOWN}"),
        ("q4_0/", f"unknown KV format '' in 'q4_0/'; {KNOWN}"),
        ("delta/nope", f"unknown KV format 'nope' in 'delta/nope'; {KNOWN}"),
        ("two\nlines", rf"unknown KV format 'two\nlines' in 'two\nlines'; {KNOWN}"),
        ("f16/f16/f16", "KV format 'f16/f16/f16' has 3 sides, expected K or K/V"),
        ("f16:rotate", "KV format 'f16' has no option 'rotate'; it takes no option"),
        ("q4_0:interval=4", "KV format 'q4_0' has no option 'interval'; it takes rotate"),
        ("delta:gop=4", "KV format 'delta' has no option 'gop'; it takes rotate, interval=N"),
        ("delta:", "KV format 'delta' has no option ''; it takes rotate, interval=N"),
        ("q8_0:rotate=1", "option 'rotate' of KV format 'q8_0' takes no value"),
        ("q8_0:rotate:rotate", "KV format 'q8_0:rotate:rotate' gives an option twice"),
        *(
            (
                f"delta:interval{value}",
                "option 'interval' of KV format 'delta' takes a whole number of 2 or more, "
                f"got {value[1:]!r}",
            )
            for value in ("", "=", "=1", "=0", "=-4", "=4.5", "=four", "=٤", "=1000000000", "= 4")
        ),
    ],
)
def test_a_bad_spec_gets_one_line_that_says_what_would_be_right(text, says):
    with pytest.raises(UserError) as caught:
        parse_spec(text)
    assert str(caught.value) == says
    assert "\n" not in says


@pytest.mark.parametrize("text", ["q8_0", "q4_0:rotate", "delta", "f16/delta", "q4_0/f16"])
@pytest.mark.parametrize("head_dim", [8, 80])
def test_blocks_refuse_a_head_dim_that_is_no_multiple_of_32(text, head_dim):
    says = (
        rf"(q8_0|q4_0|delta) needs a head_dim that is a multiple of 32, this model's is {head_dim}"
    )
    with pytest.raises(UserError, match=says):
        parse_spec(text).check(head_dim)
    parse_spec(text).check(96)
    parse_spec("f32/bf16").check(head_dim)
    parse_spec("f16").check(head_dim)
