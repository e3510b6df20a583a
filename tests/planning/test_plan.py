"""Plans of a small Llama on four virtual devices: bytes, what fits, and what the programs hold."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import pytest

from deltakv_jax.codec import parse_spec
from deltakv_jax.config import LlamaConfig
from deltakv_jax.parallel.mesh import make_mesh
from deltakv_jax.planning import programs, report
from deltakv_jax.planning.devices import DEVICES
from deltakv_jax.planning.hlo import Collective, lowered_calls
from deltakv_jax.planning.models import plan_model
from deltakv_jax.planning.plan import (
    Plan,
    Run,
    cache_bytes,
    largest,
    largest_batch,
    largest_context,
    make_plan,
    read_bytes,
)
from deltakv_jax.planning.presets import PRESETS

SMALL = LlamaConfig(
    vocab_size=512,
    width=128,
    layers=3,
    heads=16,
    kv_heads=8,
    head_dim=32,
    ffn=256,
    context=4096,
    rope_theta=1e4,
    norm_eps=1e-5,
    tied=False,
)
CTX, BATCH = 1024, 2
MEMORY = 10**8
SPEC = parse_spec("q4_0")


@pytest.fixture(autouse=True)
def _preset(monkeypatch):
    monkeypatch.setitem(PRESETS, "small", SMALL)


def small_run(mesh: dict[str, int] | None = None, *, memory: int | None = MEMORY, **fields) -> Run:
    defaults = {"device": DEVICES["gfx906"], "ctx": CTX, "batch": BATCH}
    planned = fields.pop("planned", None) or plan_model("small", "f32", on_cpu=True)
    return Run(
        planned=planned,
        mesh=None if mesh is None else make_mesh(mesh),
        memory=memory,
        **{**defaults, **fields},
    )


@functools.cache
def on_four() -> tuple[Run, Plan]:
    run = small_run({"tensor": 4})
    return run, make_plan(run, SPEC)


def test_bytes_are_those_of_real_arrays_on_a_device():
    run, planned = on_four()
    shapes = run.shapes(SPEC)
    make = lambda leaf: jnp.zeros(leaf.shape, leaf.dtype, device=leaf.sharding)
    held = lambda tree: sum(
        make(leaf).addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree)
    )
    assert planned.weight_bytes == held(shapes.model)
    assert planned.cache_bytes == held(shapes.cache.stacks)
    assert planned.argument_bytes == planned.weight_bytes + planned.cache_bytes + 2 * 4 * BATCH
    assert planned.by_hand is not None
    assert planned.by_hand.bytes == planned.weight_bytes + planned.cache_bytes


def test_a_step_meets_twice_a_layer_once_for_the_embedding_and_once_for_the_logits():
    _, planned = on_four()
    row, logits = 4 * BATCH * SMALL.width, 4 * BATCH * SMALL.vocab_size
    assert planned.collectives == [
        Collective("all-reduce", row, 1),
        Collective("all-reduce", row, SMALL.layers),
        Collective("all-reduce", row, SMALL.layers),
        Collective("all-gather", logits, 1),
    ]


def test_the_step_lowered_for_rocm_holds_the_collectives_and_the_kernel():
    """The loop over layers stands once, so the kernel does, with two of the all-reduces."""
    _, planned = on_four()
    kernel = "custom-call __gpu$xla.gpu.triton"
    assert planned.lowered == {"all-reduce": 3, "all-gather": 1, kernel: 1}


def test_the_step_of_packed_weights_holds_the_kernel_for_each_of_its_products():
    """On each device of a mesh: seven matrices of a layer and the head, and attention."""
    run = small_run({"tensor": 4}, planned=plan_model("small", "q4_0", on_cpu=False))
    mesh = programs.named_mesh(run.mesh, run.device.kind)
    shapes = programs.make_shapes(run.planned.model, SPEC, mesh, ctx=CTX, batch=BATCH)
    calls = lowered_calls(programs.lower_decode(shapes, mesh, "rocm"))
    assert calls["custom-call __gpu$xla.gpu.triton"] == 9


def test_what_is_read_bounds_the_speed():
    _, planned = on_four()
    embedding = SMALL.vocab_size * SMALL.width * 4 / 4
    read = planned.weight_bytes + planned.cache_bytes - embedding
    assert planned.read_bytes == read
    assert planned.tokens_per_second == pytest.approx(BATCH * 1024e9 / read)


def test_an_embedding_that_is_the_head_too_is_read():
    PRESETS["small"] = dataclasses.replace(SMALL, tied=True)
    shapes = small_run().shapes(SPEC)
    assert read_bytes(shapes) == programs.device_bytes((shapes.model, shapes.cache.stacks))


@pytest.mark.parametrize("kv", ["f16", "delta"])
def test_the_largest_context_fits_and_one_token_more_does_not(kv):
    run, spec, taken = small_run({"tensor": 4}), parse_spec(kv), 10**6
    most = largest_context(run, spec, taken)
    assert most is not None
    assert most > CTX
    cache = lambda ctx: cache_bytes(run.shapes(spec, ctx=ctx))
    assert taken + cache(most) <= MEMORY < taken + cache(most + 1)


def test_scratch_does_not_grow_with_the_context():
    run, planned = on_four()
    shapes = run.shapes(SPEC, ctx=4 * CTX)
    held = programs.device_bytes(shapes.model) + cache_bytes(shapes)
    assert programs.compile_prefill(shapes).bytes - held == planned.prefill_scratch


def test_the_largest_batch_fits():
    """Compiled for it: the scratch of a prompt's piece is the larger one."""
    run, planned = on_four()
    most = planned.largest_batch
    assert most is not None
    assert most > 2 * BATCH
    assert planned.prefill_scratch > planned.decode_scratch
    assert programs.compile_prefill(run.shapes(SPEC, batch=most)).bytes <= MEMORY


def test_sequences_are_split_over_data():
    two = small_run({"tensor": 2, "data": 2}).shapes(SPEC)
    four = small_run({"tensor": 4}).shapes(SPEC)
    assert cache_bytes(two) == cache_bytes(four)
    assert programs.device_bytes(two.model) > 1.9 * programs.device_bytes(four.model)


def test_a_batch_is_a_multiple_of_the_devices_that_share_it():
    most = largest_batch(small_run({"tensor": 2, "data": 2}), SPEC, 10**6, 10**6)
    assert most is not None
    assert (most % 2, most > 2) == (0, True)


def test_where_nothing_fits():
    run = small_run({"tensor": 4})
    assert largest_context(run, SPEC, MEMORY) == 0
    assert largest_batch(run, SPEC, 0, MEMORY) == 0


@pytest.mark.parametrize("limit", [0, 1, 2, 3, 7, 8, 100, 10**6])
def test_largest(limit):
    assert largest(lambda number: number <= limit) == limit
    assert largest(lambda number: number <= limit, most=50) == min(limit, 50)


def test_llama_70b_on_four_devices_by_hand_and_by_shapes():
    planned = plan_model("llama3.1-70b", "q4_0", on_cpu=False)
    run = Run(
        planned=planned,
        mesh=make_mesh({"tensor": 4}),
        device=DEVICES["gfx906"],
        memory=16 * 10**9,
        ctx=8192,
        batch=1,
    )
    shapes = run.shapes(parse_spec("delta"))
    held = programs.device_bytes((shapes.model, shapes.cache.stacks))
    by_hand = (70_552_387_584 * 4.5 + 2 * 80 * 8 * 128 * 8192 * 5) / 8 / 4 + 4 * 1_318_912
    assert held == pytest.approx(by_hand, rel=1e-9)
    assert held < 10.2e9


def test_the_report_tells_everything_and_the_json_exactly():
    run, planned = on_four()
    document = json.loads(report.to_json(run, [planned]))
    (got,) = document["plans"]
    assert (document["mesh"], document["weights"]) == ({"data": 1, "tensor": 4}, ["f32"])
    assert got["total_bytes"] == planned.total_bytes
    assert got["by_hand"]["bytes"] == planned.weight_bytes + planned.cache_bytes
    assert got["collectives"][0] == {"kind": "all-reduce", "bytes": 1024, "times": 1}
    assert "7 all-reduce\n1 all-gather" in [
        cell for column in report.table(run, [planned]).columns for cell in column.cells
    ]
    assert "By hand, q4_0 cache: 2 x 3 layers x 8 kv heads" in report.legend(run, [planned])
