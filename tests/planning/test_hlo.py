"""Programs read from their text: what runs how often, and what is refused."""

import pytest

from deltakv_jax.planning.hlo import Collective, collectives, lowered_calls

# The form in which XLA:CPU of jax 0.10 and 0.12 prints a program, most of it left out.
PROGRAM = """\
HloModule jit_step, is_scheduled=true, num_partitions=4

%add.clone (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %add.1 = f32[] add(%x, %y)
}

%inner (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p = (s32[], f32[8]{0}) parameter(0)
  %get-tuple-element.1 = f32[8]{0} get-tuple-element(%p), index=1
  %ar.1 = f32[8]{0} all-reduce(%get-tuple-element.1), channel_id=1, to_apply=%add.clone
  ROOT %tuple.1 = (s32[], f32[8]{0}) tuple(%p, %ar.1)
}

%outer.5_spmd.clone (p.1: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p.1 = (s32[], f32[8]{0}) parameter(0)
  %while.1 = (s32[], f32[8]{0}) while(%p.1), condition=%more, body=%inner, INNER
  ROOT %ag = (s32[], bf16[2,8]{1,0}) all-gather(%while.1), channel_id=1, dimensions={0}
}

%more (p.2: (s32[], f32[8])) -> pred[] {
  %p.2 = (s32[], f32[8]{0}) parameter(0)
  ROOT %c = pred[] constant(true)
}

%left (p.3: f32[8]) -> f32[8] {
  %p.3 = f32[8]{0} parameter(0)
  ROOT %cp = f32[8]{0} collective-permute(%p.3), source_target_pairs={{0,1}}
}

ENTRY %main.7_spmd (param: f32[8]) -> f32[8] {
  %param = f32[8]{0} parameter(0), sharding={replicated}
  %while.2 = (s32[], f32[8]{0}) while(%param), condition=%more, body=%outer.5_spmd.clone, OUTER
  %cond = f32[8]{0} conditional(%c, %param, %param), branch_computations={%left, %left}
  ROOT %done = f32[32]{0} all-gather(%cond), channel_id=1, dimensions={0}
}
"""


def program(inner: int | None, outer: int | None) -> str:
    trips = lambda n: "" if n is None else f'backend_config={{"known_trip_count":{{"n":"{n}"}}}}'
    return PROGRAM.replace("INNER", trips(inner)).replace("OUTER", trips(outer))


def test_collectives_run_as_often_as_their_loops():
    assert collectives(program(3, 80)) == [
        Collective("all-reduce", 8 * 4, 240),
        Collective("all-gather", 4 + 16 * 2, 80),
        Collective("collective-permute", 8 * 4, 1),
        Collective("collective-permute", 8 * 4, 1),
        Collective("all-gather", 32 * 4, 1),
    ]


@pytest.mark.parametrize(("inner", "outer"), [(None, 80), (3, None)])
def test_a_collective_in_a_loop_of_unknown_length_is_refused(inner, outer):
    with pytest.raises(ValueError, match=r"all-\w+ in (inner|outer.*), a loop of unknown length"):
        collectives(program(inner, outer))


def test_a_loop_of_unknown_length_may_hold_anything_else():
    quiet = program(None, 80).replace("all-reduce(", "negate(")
    kinds = [one.kind for one in collectives(quiet)]
    assert kinds == ["all-gather", "collective-permute", "collective-permute", "all-gather"]


def test_lowered_programs_are_counted_by_name():
    text = """
    %1 = "stablehlo.all_reduce"(%0) <{channel_handle = 1}> ({
      %3 = stablehlo.add %arg2, %arg3 : tensor<f32>
    }) : (tensor<8xf32>) -> tensor<8xf32>
    %4 = stablehlo.custom_call @__gpu$xla.gpu.triton(%1) {backend_config = ""}
    %5 = stablehlo.custom_call @__gpu$xla.gpu.triton(%4) {backend_config = ""}
    %6 = "stablehlo.all_gather"(%5) <{all_gather_dim = 0 : i64}> : (tensor<2xf32>)
    """
    triton = "custom-call __gpu$xla.gpu.triton"
    assert lowered_calls(text) == {"all-reduce": 1, "all-gather": 1, triton: 2}
