import os
import struct
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter
from gguf.constants import GGMLQuantizationType as Type
from gguf.constants import GGUFValueType as Kind

from deltakv_jax.errors import UserError
from deltakv_jax.weights.gguf.cursor import MOST_ITEMS
from deltakv_jax.weights.gguf.walk import walk
from tests.weights.gguf.material import (
    array,
    gguf_bytes,
    info,
    pair,
    string_pair,
    text,
    write_model,
)

U32 = struct.Struct("<I").pack
U64 = struct.Struct("<Q").pack
FAR = 2**63


def agrees_with_the_package(path: Path) -> None:
    """Every value and the place of every tensor are those that gguf's own reader gives."""
    header, reader = walk(path), GGUFReader(path)
    own = {"GGUF.version", "GGUF.tensor_count", "GGUF.kv_count"}
    assert set(header.metadata) == set(reader.fields) - own
    for key, value in header.metadata.items():
        assert value == reader.fields[key].contents(), key
    assert list(header.tensors) == [tensor.name for tensor in reader.tensors]
    for want, got in zip(reader.tensors, header.tensors.values(), strict=True):
        assert (got.type, got.start) == (want.tensor_type, want.data_offset)
        assert (got.size, got.shape) == (want.n_bytes, tuple(reversed(want.shape.tolist())))


def test_a_file_with_every_type_of_value(tmp_path):
    writer = GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_uint8("u8", 200)
    writer.add_int8("i8", -100)
    writer.add_uint16("u16", 60000)
    writer.add_int16("i16", -30000)
    writer.add_uint32("u32", 2**32 - 1)
    writer.add_int32("i32", -(2**31))
    writer.add_uint64("u64", 2**64 - 1)
    writer.add_int64("i64", -(2**63))
    writer.add_float32("f32", 0.5)
    writer.add_float64("f64", 1e300)
    writer.add_bool("bool", True)
    writer.add_string("text", "Grüße\n")
    writer.add_array("numbers", [1, -2, 3])
    writer.add_array("floats", [1.5, -2.0])
    writer.add_array("texts", ["a", "", "▁b"])
    writer.add_custom_alignment(128)
    writer.add_tensor("first", np.ones((3, 5), np.float32))
    writer.add_tensor("second", np.ones((2, 3, 4), np.float16))
    for step in ("header", "kv_data", "tensors"):
        getattr(writer, f"write_{step}_to_file")()
    writer.close()
    agrees_with_the_package(tmp_path / "a.gguf")


def test_real_files(shared):
    files = sorted((shared / "models").glob("*.gguf"))
    assert len(files) == 5
    for path in files:
        agrees_with_the_package(path)


def test_version_2_is_read(tmp_path):
    path = write_model(tmp_path / "a.gguf")
    path.write_bytes(b"GGUF\x02" + path.read_bytes()[5:])
    assert len(walk(path).tensors) == 21


def test_arrays_in_arrays(tmp_path):
    inner = array(Kind.UINT8, 2, b"\x01\x02")
    value = array(Kind.ARRAY, 2, inner + array(Kind.STRING, 1, text("x")))
    (tmp_path / "a.gguf").write_bytes(gguf_bytes((pair("nested", Kind.ARRAY, value),)))
    assert walk(tmp_path / "a.gguf").metadata["nested"] == [[1, 2], ["x"]]


def deep(levels: int) -> bytes:
    value = array(Kind.UINT8, 0, b"")
    for _ in range(levels):
        value = array(Kind.ARRAY, 1, value)
    return pair("key", Kind.ARRAY, value)


ONE = info("one", (8,))
FAULTS = {
    "empty": (b"", "is no GGUF file: it is empty"),
    "magic": (b"GGML" + bytes(60), r"is no GGUF file: it starts with b'GGML', not b'GGUF'"),
    "cut in the magic": (b"GG", "is no GGUF file: it starts with b'GG'"),
    "cut in the version": (b"GGUF\x03", "the version takes 4 bytes from byte 4 on, the file has 5"),
    "version 1": (gguf_bytes(start=b"GGUF" + U32(1)), "has GGUF version 1, supported are 2 and 3"),
    "version 9": (gguf_bytes(start=b"GGUF" + U32(9)), "has GGUF version 9, supported are 2 and 3"),
    "version 0": (gguf_bytes(start=b"GGUF" + U32(0)), "has GGUF version 0, supported are 2 and 3"),
    "big-endian": (gguf_bytes(start=b"GGUF\0\0\0\x03"), "is a big-endian GGUF file"),
    "cut in the counts": (gguf_bytes()[:20], "the number of metadata values takes 8 bytes"),
    "many tensors": (gguf_bytes(counts=(FAR, 0)), f"it claims {FAR} tensors and has 8 bytes"),
    "many pairs": (gguf_bytes(counts=(0, FAR)), f"it claims {FAR} metadata values and has 0 byt"),
    "one pair too many": (gguf_bytes((string_pair("key", bytes(20)),), counts=(0, 2)), "key 1"),
    "a key past the end": (gguf_bytes((U64(FAR) + bytes(40),)), f"key 0 takes {FAR} bytes"),
    "a key that is empty": (gguf_bytes((string_pair("", "x"),)), "key 0 is '', expected printable"),
    "a key of control codes": (gguf_bytes((string_pair("\x1b[2J\n", "x"),)), r"\\x1b\[2J\\n"),
    "a long key": (
        gguf_bytes((string_pair("k" * 5000, "x"),)),
        "key 0 has 5000 bytes, expected at most 256",
    ),
    "a key that is no UTF-8": (
        gguf_bytes((text(b"\xff\xfe") + U32(Kind.UINT32) + bytes(8),)),
        "key 0 is no valid UTF-8",
    ),
    "a key twice": (gguf_bytes((string_pair("key", "x"),) * 2), "it has key twice"),
    "an unknown type": (gguf_bytes((pair("key", 77, bytes(8)),)), "key has the unknown type 77"),
    "a string past the end": (
        gguf_bytes((pair("key", Kind.STRING, U64(FAR)),)),
        f"key takes {FAR} bytes from byte 47 on, the file has 47",
    ),
    "a number cut": (gguf_bytes((pair("key", Kind.UINT64, b"\1\2"),)), "key takes 8 bytes"),
    "an array past the end": (
        gguf_bytes((pair("key", Kind.ARRAY, array(Kind.UINT8, FAR, b"")),)),
        f"it claims {FAR} elements of key and has 0 bytes",
    ),
    "an array of strings past the end": (
        gguf_bytes((pair("key", Kind.ARRAY, array(Kind.STRING, 2, text("x" * 9))),)),
        "key takes 8 bytes",
    ),
    "an array of an unknown type": (
        gguf_bytes((pair("key", Kind.ARRAY, array(13, 1, bytes(8))),)),
        "key has the unknown type 13",
    ),
    "arrays too deep": (gguf_bytes((deep(5),)), "key nests arrays more than 4 deep"),
    "arrays as deep as the file": (gguf_bytes((deep(5000),)), "nests arrays more than 4 deep"),
    "an alignment of three": (
        gguf_bytes((pair("general.alignment", Kind.UINT32, U32(24)),)),
        "general.alignment is 24, expected a power of two as uint32",
    ),
    "an alignment of zero": (
        gguf_bytes((pair("general.alignment", Kind.UINT32, U32(0)),)),
        "general.alignment is 0, expected a power of two",
    ),
    "an alignment in words": (
        gguf_bytes((string_pair("general.alignment", "32"),)),
        "general.alignment is str, expected a power of two",
    ),
    "an alignment as a float": (
        gguf_bytes((pair("general.alignment", Kind.FLOAT32, struct.pack("<f", 32)),)),
        "general.alignment is 32.0, expected a power of two",
    ),
    "an alignment beyond the file": (
        gguf_bytes((pair("general.alignment", Kind.UINT32, U32(2**31)),), (ONE,), data=bytes(32)),
        "one takes 32 bytes from byte 2147483648 on",
    ),
    "no dimension": (gguf_bytes((), (info("one", ()),), data=bytes(32)), "one has 0 dimensions"),
    "five dimensions": (gguf_bytes((), (info("one", (1,) * 5),)), "one has 5 dimensions, expected"),
    "2^32 - 1 dimensions": (
        gguf_bytes((), (text("one") + U32(2**32 - 1) + bytes(64),)),
        "one has 4294967295 dimensions",
    ),
    "a dimension of zero": (
        gguf_bytes((), (info("one", (0, 8)),), data=bytes(32)),
        r"one has shape \[8, 0\] in a file of",
    ),
    "dimensions whose product overflows": (
        gguf_bytes((), (info("one", (2**32, 2**32)),), data=bytes(64)),
        r"one has shape \[4294967296, 4294967296\] in a file of",
    ),
    "dimensions whose product overflows to little": (
        gguf_bytes((), (info("one", (2**63, 2)),), data=bytes(64)),
        "one has shape",
    ),
    "a row that is no whole blocks": (
        gguf_bytes((), (info("one", (16, 4), Type.Q4_0),), data=bytes(64)),
        r"one has shape \[4, 16\], Q4_0 needs rows of a multiple of 32",
    ),
    "a type of tensor that was given up": (
        gguf_bytes((), (info("one", (32,), 4),), data=bytes(64)),
        "one has the unknown type 4",
    ),
    "a tensor past the end": (
        gguf_bytes((), (info("one", (8,), offset=2**40),), data=bytes(64)),
        f"one takes 32 bytes from byte {2**40 + 64} on, the file has",
    ),
    "a tensor cut": (gguf_bytes((), (ONE,), data=bytes(31)), "one takes 32 bytes from byte 64 on"),
    "a tensor off its alignment": (
        gguf_bytes((), (info("one", (8,), offset=4),), data=bytes(64)),
        "one starts at 4, no multiple of 32",
    ),
    "a tensor twice": (gguf_bytes((), (ONE, ONE), data=bytes(64)), "it has the tensor one twice"),
    "overlapping tensors": (
        gguf_bytes((), (info("two", (9,), offset=0), info("one", (8,), offset=32)), data=bytes(64)),
        "two and one overlap",
    ),
    "a tensor inside another": (
        gguf_bytes((), (info("in", (8,), offset=32), info("out", (32,))), data=bytes(128)),
        "out and in overlap",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_takes_one_line(fault, tmp_path):
    """At once and without memory, whatever the file claims."""
    content, says = FAULTS[fault]
    path = tmp_path / "a.gguf"
    path.write_bytes(content)
    tracemalloc.start()
    started = time.perf_counter()
    try:
        with pytest.raises(UserError, match=says) as caught:
            walk(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert time.perf_counter() - started < 1
    assert str(caught.value).startswith(str(path))
    assert len(str(caught.value).splitlines()) == 1


def test_every_cut_of_a_file_is_refused(tmp_path):
    """From no byte at all to all but one."""
    whole = write_model(tmp_path / "a.gguf").read_bytes()
    end = walk(tmp_path / "a.gguf").tensors
    header = min(tensor.start for tensor in end.values())
    cut = tmp_path / "cut.gguf"
    for size in [*range(0, header, 53), *range(header, len(whole), 2999), len(whole) - 32]:
        cut.write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"damaged|no GGUF file"):
            walk(cut)


def test_too_many_items_are_refused_by_their_number(tmp_path):
    """They would fit into the file, and going through them would take half a minute."""
    path = tmp_path / "a.gguf"
    many = MOST_ITEMS + 1
    with path.open("wb") as file:
        file.write(gguf_bytes((pair("key", Kind.ARRAY, array(Kind.STRING, many, b"")),)))
        file.truncate(file.tell() + many * 8)  # holes: it takes no room
    started = time.perf_counter()
    with pytest.raises(UserError, match=f"header has more than {MOST_ITEMS} items"):
        walk(path)
    assert time.perf_counter() - started < 1


def test_a_value_is_read_only_when_asked_for(tmp_path):
    content = gguf_bytes((string_pair("bad", b"\xff"), string_pair("good", "x")))
    (tmp_path / "a.gguf").write_bytes(content)
    metadata = walk(tmp_path / "a.gguf").metadata
    assert metadata["good"] == "x"
    assert "bad" in metadata
    assert "other" not in metadata
    with pytest.raises(UserError, match="bad is no valid UTF-8"):
        metadata["bad"]


@pytest.mark.parametrize("name", ["none.gguf", ".", "pipe.gguf"])
def test_what_is_no_file_is_named(name, tmp_path):
    os.mkfifo(tmp_path / "pipe.gguf")
    with pytest.raises(UserError, match="no such file"):
        walk(tmp_path / name)


def test_a_name_that_no_file_can_have_is_no_crash(tmp_path):
    with pytest.raises(UserError, match="File name too long"):
        walk(tmp_path / ("a" * 5000))
