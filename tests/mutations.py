"""Faults made on purpose, and the test that catches each.

    python tests/mutations.py [WORD ...]

puts each fault (or those whose name holds a WORD) into a copy of the sources, runs its test there
and says whether it failed, as it must. About ten seconds a fault. A test that needs the real models
beside the checkout counts as not run where they are absent.
"""

import dataclasses
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
EVALUATION = "deltakv_jax/evaluation"
PARALLEL = "tests/parallel"
CALIBRATION = "tests/calibration"
IGNORED = (".*", "__pycache__", "*.progress", "results")


@dataclasses.dataclass(frozen=True)
class Fault:
    """What is changed in one file, and the test that must fail of it.

    Attributes:
      name: what is wrong.
      path: the file.
      edits: what stands there exactly once, and what takes its place.
      test: a pytest node id.
    """

    name: str
    path: str
    edits: tuple[tuple[str, str], ...]
    test: str


FAULTS = (
    Fault(
        "the first half is scored",
        f"{EVALUATION}/protocol.py",
        (("first=lambda ctx: ctx // 2", "first=lambda ctx: 0"),),
        "tests/evaluation/test_protocol.py::test_the_second_half_is_scored",
    ),
    Fault(
        "BOS is dropped",
        f"{EVALUATION}/protocol.py",
        (("chunks[:, 0] = bos_id", "pass"),),
        "tests/evaluation/test_protocol.py::test_chunks_do_not_overlap_and_begin_with_bos",
    ),
    Fault(
        "each prediction is compared with its own token, not the next",
        f"{EVALUATION}/scoring.py",
        (("tokens.reshape(ctx)[first + 1 :]", "tokens.reshape(ctx)[first:-1]"),),
        "tests/evaluation/test_scoring.py::test_scores_are_those_of_the_full_distributions",
    ),
    Fault(
        "positions of RoPE are off by one from the second piece on",
        "deltakv_jax/generation/steps.py",
        (
            (
                "positions = cache.lengths[:, None] + jnp.arange(tokens.shape[1])",
                "positions = jnp.maximum(cache.lengths - 1, 0)[:, None] + jnp.arange(\n"
                "        tokens.shape[1]\n    )",
            ),
        ),
        "tests/evaluation/test_scoring.py::"
        "test_an_f32_cache_gives_the_plain_forward_pass_however_it_is_fed",
    ),
    Fault(
        "the error of a change is not paired",
        f"{EVALUATION}/statistics.py",
        (
            (
                "return mean(nll - base_nll)",
                "a, b = mean(nll), mean(base_nll)\n"
                "    return Estimate(a.value - b.value, math.hypot(a.stderr, b.stderr))",
            ),
        ),
        "tests/evaluation/test_statistics.py::test_the_error_of_a_change_is_paired",
    ),
    Fault(
        "single tokens are resampled, not chunks",
        f"{EVALUATION}/results.py",
        (
            (
                "statistics.bootstrap_interval((nll - base_nll).mean(axis=1))",
                "statistics.bootstrap_interval((nll - base_nll).ravel())",
            ),
        ),
        "tests/evaluation/test_runner.py::test_the_interval_is_that_of_resampled_chunks",
    ),
    Fault(
        "logits are summed in float16",
        f"{EVALUATION}/scoring.py",
        (
            (
                "logits = [model.logits(h, on) for h in at[0]]",
                "logits = [model.logits(h, on).astype(jnp.float16) for h in at[0]]\n"
                "            logits = [one.astype(jnp.float32) for one in logits]",
            ),
        ),
        "tests/evaluation/test_scoring.py::test_scores_are_those_of_the_full_distributions",
    ),
    Fault(
        "attention reads exact K and V, not what is packed",
        f"{EVALUATION}/scoring.py",
        (
            (
                'readers = {"cache": functools.partial(attend, implementation=implementation)',
                'readers = {"cache": attend_raw',
            ),
        ),
        "tests/evaluation/test_scoring.py::test_attention_reads_what_is_packed",
    ),
    Fault(
        "the keyframe is taken from the second token of its group",
        "deltakv_jax/codec/formats.py",
        (
            (
                "keyframes = jnp.where(new[0], x[0].astype(jnp.float16), old",
                "keyframes = jnp.where(new[0], x[1].astype(jnp.float16), old",
            ),
        ),
        "tests/codec/test_formats.py",
    ),
    Fault(
        "nibbles are swapped in packing and unpacking alike",
        "deltakv_jax/codec/packing.py",
        (
            ("first, second, third, fourth = planes", "second, first, fourth, third = planes"),
            ("for plane in range(PLANES)", "for plane in (1, 0, 3, 2)"),
        ),
        "tests/codec/test_packing.py",
    ),
    Fault(
        "a group's positions count from the first one scored",
        f"{EVALUATION}/profiles.py",
        (
            (
                "n = (first + np.arange(kld.shape[1])) % interval",
                "n = np.arange(kld.shape[1]) % interval",
            ),
        ),
        "tests/evaluation/test_profiles.py::test_each_group_position_takes_its_own_predictions",
    ),
    Fault(
        "raw reads take the keys of a piece from the cache",
        f"{EVALUATION}/raw.py",
        (
            (
                "seen = (_overlaid(*pair, rope.positions) for pair in "
                "zip(stored, new, strict=True))",
                "seen = read_values(cache, layer, rope.inverse)",
            ),
        ),
        "tests/evaluation/test_raw.py::test_in_one_piece_every_format_gives_the_same_bits",
    ),
    Fault(
        "layers hand on the output of the packed cache",
        f"{EVALUATION}/layers.py",
        (("return want, _Beside(", "return outputs[-1], _Beside("),),
        "tests/evaluation/test_layers.py::test_each_layer_has_its_own_errors",
    ),
    Fault(
        "a damaged checkpoint is used",
        f"{EVALUATION}/store.py",
        (("if hashlib.sha256(data).hexdigest() != self._hashes[name]:", "if not data:"),),
        "tests/evaluation/test_store.py::test_a_damaged_batch_is_moved_aside_and_the_others_stay",
    ),
    Fault(
        "a run goes on with another one's batches",
        f"{EVALUATION}/store.py",
        (("    if differing:", "    if False:"),),
        "tests/evaluation/test_store.py::test_another_run_is_refused_with_what_differs",
    ),
    Fault(
        "keyframes are left out of the bytes",
        "deltakv_jax/cache/state.py",
        (
            (
                "for leaf in jax.tree.leaves(cache.stacks))",
                "for leaf in jax.tree.leaves(cache.stacks) if leaf.dtype != jnp.float16)",
            ),
        ),
        "tests/evaluation/test_runner.py::test_bits_per_value_of_delta",
    ),
    Fault(
        "on a mesh the attention's output is not summed",
        "deltakv_jax/model/llama.py",
        (("x = x + collectives.reduce(mixed)", "x = x + mixed"),),
        f"{PARALLEL}/test_model.py::test_logits_and_tokens_are_those_of_one_device",
    ),
    Fault(
        "on a mesh every device adds a row of the embedding",
        "deltakv_jax/parallel/collectives.py",
        (("jnp.where(here[..., None], rows, 0)", "rows"),),
        f"{PARALLEL}/test_model.py::test_logits_and_tokens_are_those_of_one_device",
    ),
    Fault(
        "on a mesh every device hands over each step",
        "deltakv_jax/generation/decode.py",
        (("return jax.lax.cond(speaks(mesh), call, lambda: jnp.array(True))", "return call()"),),
        f"{PARALLEL}/test_model.py::test_logits_and_tokens_are_those_of_one_device",
    ),
    Fault(
        "on a mesh sums are made by gathering their terms",
        "deltakv_jax/parallel/collectives.py",
        (
            (
                "return jax.lax.psum(x, TENSOR)",
                "return jnp.sum(jax.lax.all_gather(x, TENSOR), axis=0)",
            ),
        ),
        f"{PARALLEL}/test_model.py::test_a_step_meets_where_the_design_says_and_nowhere_else",
    ),
    Fault(
        "on a mesh one matrix lies whole on every device",
        "deltakv_jax/parallel/sharding.py",
        (('"down": ("layers", "width", "ffn")', '"down": ("layers", "width", "width")'),),
        f"{PARALLEL}/test_sharding.py::test_each_device_holds_a_quarter_of_every_matrix",
    ),
    Fault(
        "on a mesh the cache lies whole on every device",
        "deltakv_jax/parallel/placement.py",
        (
            (
                "where = shardings(mesh, cache_specs(jax.eval_shape(make, *arguments)))",
                "where = None",
            ),
        ),
        f"{PARALLEL}/test_sharding.py::test_each_device_holds_a_quarter_of_the_cache",
    ),
    Fault(
        "on a mesh a device is given the rows of another",
        "deltakv_jax/weights/filling.py",
        (("first = part * held + start", "first = part * size + start"),),
        f"{PARALLEL}/test_loading.py::test_blocks_of_every_type_come_out_as_on_one_device",
    ),
    Fault(
        "on a mesh a model is loaded whole, and then split",
        "deltakv_jax/weights/filling.py",
        (
            (
                "return jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings="
                "NamedSharding(mesh, spec))()",
                "return jax.device_put("
                "jnp.zeros(shape, dtype), NamedSharding(mesh, PartitionSpec()))",
            ),
        ),
        f"{PARALLEL}/test_loading.py::"
        "test_no_host_has_more_than_a_matrix_and_no_device_more_than_its_share",
    ),
    Fault(
        "a cache is restored on every device whole",
        "deltakv_jax/cache/checkpoint.py",
        (("leaves.get(name, extra)", "extra"),),
        f"{PARALLEL}/test_saving.py::test_a_cache_goes_to_a_mesh_of_any_shape",
    ),
    Fault(
        "every process prints",
        "deltakv_jax/cli/mesh.py",
        (("if processes.is_first() else _silence()", "if True else _silence()"),),
        "tests/cli/test_mesh.py::test_two_processes_of_two_devices_give_the_same_tokens",
    ),
    Fault(
        "the kernel takes V's leaves for K's",
        "pallas/deltakv_pallas/decode.py",
        (("queries, stack.k, stack.v", "queries, stack.v, stack.v"),),
        "tests/pallas/test_decode.py::test_every_format_at_every_length[delta-matrix]",
    ),
    Fault(
        "the kernel counts one token too many",
        "pallas/deltakv_pallas/program.py",
        (("at[:, None] <= this.limits[None]", "at[:, None] <= this.limits[None] + 1"),),
        "tests/pallas/test_decode.py::test_every_format_at_every_length[delta-matrix]",
    ),
    Fault(
        "the kernel's running sum goes on across the end of a group",
        "pallas/deltakv_pallas/groups.py",
        (
            (
                "jnp.cumsum(grouped, axis=1).reshape(x.shape)",
                "jnp.cumsum(x, axis=0)",
            ),
        ),
        "tests/pallas/test_decode.py::test_every_format_at_every_length"
        "[delta:interval=128/delta:rotate:interval=4-vector]",
    ),
    Fault(
        "the kernel's sum of weights is not reversed",
        "pallas/deltakv_pallas/groups.py",
        (("return totals.reshape(p.shape) - running(p, side) + p", "return running(p, side)"),),
        "tests/pallas/test_decode.py::test_every_format_at_every_length[delta-vector]",
    ),
    Fault(
        "the kernel's matrix units sum values across the end of a group",
        "pallas/deltakv_pallas/groups.py",
        ((" & (group[:, None] == group)", ""),),
        "tests/pallas/test_decode.py::test_every_format_at_every_length"
        "[delta:interval=128/delta:rotate:interval=4-matrix]",
    ),
    Fault(
        "a group that is longer than a tile begins anew with each tile",
        "pallas/deltakv_pallas/program.py",
        (
            ("start % side.format.interval == 0, 0.0, before[0]", "start >= 0, 0.0, before[0]"),
            ("opens = start % side.format.interval == 0", "opens = start >= 0"),
        ),
        "tests/pallas/test_decode.py::test_every_format_at_every_length"
        "[delta:interval=128/delta:rotate:interval=4-vector]",
    ),
    Fault(
        "the window is one token too long",
        "deltakv_jax/cache/near.py",
        (("recent = s > t - self.window", "recent = s >= t - self.window"),),
        "tests/attention/test_near.py::test_each_query_reads_its_own_window[layered:window=16:sinks=3]",
    ),
    Fault(
        "a sink inside the window counts twice",
        "deltakv_jax/cache/near.py",
        (("(is_sink != recent)", "(is_sink | recent)"),),
        "tests/attention/test_near.py::test_each_query_reads_its_own_window[layered:window=16:sinks=3]",
    ),
    Fault(
        "what is near has no centre",
        "deltakv_jax/attention/tiled.py",
        (
            (
                "        if step.centre is not None:\n            means =",
                "        if step is None:\n            means =",
            ),
        ),
        "tests/attention/test_near.py::"
        "test_each_query_reads_its_own_window[layered:window=16:sinks=3:centre]",
    ),
    Fault(
        "a ring has one row too few for its roll-back",
        "deltakv_jax/cache/state.py",
        (
            (
                "return side.sinks + (side.window + SPARE if side.window else 0)",
                "return side.sinks + (side.window + SPARE - 1 if side.window else 0)",
            ),
        ),
        "tests/cache/test_near.py::test_as_many_as_are_spare_may_be_cut_off",
    ),
    Fault(
        "refinements of tokens that are cut off stay",
        "deltakv_jax/cache/state.py",
        (("jnp.where(kept[None, :, None], leaf, 0) for", "jnp.where(True, leaf, 0) for"),),
        "tests/cache/test_near.py::"
        "test_what_left_the_ring_is_read_as_packed_after_a_longer_roll_back",
    ),
    Fault(
        "a scale of a refinement that was never written counts",
        "deltakv_jax/codec/formats.py",
        (("jnp.where(written, scale_values", "jnp.where(True, scale_values"),),
        "tests/codec/test_levels.py::test_golden_bytes",
    ),
    Fault(
        "the largest of several scales is taken, not the best",
        "deltakv_jax/codec/levels.py",
        (("second = b.error < a.error", "second = b.error < 0"),),
        "tests/codec/test_levels.py::"
        "test_codes_are_the_nearest_and_the_scale_the_best_of_those_tried",
    ),
    Fault(
        "levels are not bent",
        "deltakv_jax/codec/levels.py",
        (("if self.bend else n", "if False else n"),),
        "tests/codec/test_levels.py::test_golden_bytes",
    ),
    Fault(
        "the kernel reads near tokens twice",
        "pallas/deltakv_pallas/decode.py",
        (("positions - window_of(spec)[0], heads", "positions, heads"),),
        "tests/attention/test_near.py::test_the_kernel_reads_the_same",
    ),
    Fault(
        "a calibration's file is read though it was changed",
        "deltakv_jax/calibration.py",
        (('if fields.pop("sha256") != _sha256(arrays, fields):', 'if not fields.pop("sha256"):'),),
        f"{CALIBRATION}/test_file.py::test_what_was_changed_later_is_refused",
    ),
    Fault(
        "a calibration of other weights is taken",
        "deltakv_jax/calibration.py",
        (
            (
                "if (its := found.get(name)) != (this := wanted.get(name)):",
                "if (its := found.get(name)) and not (this := wanted.get(name)):",
            ),
        ),
        f"{CALIBRATION}/test_file.py::test_another_model_is_refused",
    ),
    Fault(
        "a calibration's means are made of the first tokens too",
        f"{EVALUATION}/learning.py",
        (("_moments(x[:, SKIPPED:])", "_moments(x)"),),
        f"{CALIBRATION}/test_learning.py::test_means_are_those_of_captured_keys_and_values",
    ),
    Fault(
        "a calibration's costs are shared among the predictions that are not scored",
        f"{EVALUATION}/learning.py",
        (("/ (t - 1 - first)", "/ t"),),
        f"{CALIBRATION}/test_learning.py::"
        "test_a_cost_is_the_divergence_for_each_unit_of_squared_error",
    ),
    Fault(
        "bits are allotted above the budget",
        f"{EVALUATION}/allotment.py",
        (("if one[1] <= left]", "if left > 0]"),),
        f"{CALIBRATION}/test_allotment.py::test_the_budget_is_kept_and_used",
    ),
    Fault(
        "bits are allotted whatever an error costs",
        f"{EVALUATION}/allotment.py",
        (("return costs[n] * (now.error", "return 1.0 * (now.error"),),
        f"{CALIBRATION}/test_allotment.py::test_nothing_else_that_takes_as_many_bits_costs_less",
    ),
    Fault(
        "figures are made without the calibration's means",
        f"{EVALUATION}/scoring.py",
        (("batch=batch, centre=centre)", "batch=batch, centre=None)"),),
        f"{CALIBRATION}/test_use.py::test_a_real_model_gains_by_its_means",
    ),
    Fault(
        "means are taken off and not added again in the errors of layers",
        f"{EVALUATION}/layers.py",
        (
            ("zip(values(cache), exact", "zip(read(cache, layer), exact"),
            ("import KVCache, Sides, advance", "import KVCache, Sides, advance, read"),
        ),
        f"{CALIBRATION}/test_use.py::"
        "test_errors_of_a_layer_are_those_of_keys_and_values_with_their_means",
    ),
    Fault(
        "raw reads store what they do not take the means off",
        f"{EVALUATION}/raw.py",
        (
            ("write(cache, layer, apply_rope(k_left, rope), v_left", "write(cache, layer, keys, v"),
            (
                "    k_left, v_left, *_ = take_off(cache, layer, k, v, rope.inverse)",
                "    keys = apply_rope(k, rope)",
            ),
        ),
        f"{CALIBRATION}/test_use.py::test_raw_reads_give_what_they_give_without_means",
    ),
    Fault(
        "a run goes on with another calibration",
        f"{EVALUATION}/runner.py",
        (("settings.calibration and settings.calibration.sha256", "None"),),
        f"{CALIBRATION}/test_use.py::test_a_run_with_another_calibration_is_another_run",
    ),
    Fault(
        "decoding leaves the calibration aside",
        "deltakv_jax/generation/session.py",
        (("            calibration=request.calibration,\n", ""),),
        f"{CALIBRATION}/test_command.py::test_a_saved_cache_goes_on_with_its_own_means",
    ),
    Fault(
        "every layer gets the means of the first one",
        "deltakv_jax/cache/state.py",
        (('["mean"])[jnp.array(members), None', '["mean"])[0 * jnp.array(members), None'),),
        f"{CALIBRATION}/test_use.py::test_a_cache_holds_the_means_of_its_layers",
    ),
    Fault(
        "a format with means is measured without a calibration",
        "deltakv_jax/calibration.py",
        (("if calibration is None and takes_means(spec):", "if False:"),),
        f"{CALIBRATION}/test_command.py::test_no_model_is_loaded_for_what_lacks_a_calibration",
    ),
)


def main(words: Sequence[str]) -> int:
    """Tries the faults that `words` name, all if there are none; returns the exit status."""
    chosen = [fault for fault in FAULTS if not words or any(word in fault.name for word in words)]
    missed = [fault for fault in chosen if not _tried(fault)]
    print(f"{len(chosen) - len(missed)} of {len(chosen)} faults are caught")
    return 1 if missed or not chosen else 0


def _tried(fault: Fault) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "main"
        shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(*IGNORED))
        if (shared := ROOT.parent / "shared").is_dir():
            (tree.parent / "shared").symlink_to(shared)
        put(fault, tree)
        status = _pytest(tree, fault.test)
    said = {0: "NOT CAUGHT by", 1: "caught by"}.get(status, f"pytest ended with {status} in")
    print(f"{fault.name}: {said} {fault.test}", flush=True)
    return status == 1


def put(fault: Fault, tree: Path) -> None:
    """Makes the fault in the sources below `tree`."""
    source = (tree / fault.path).read_text(encoding="utf-8")
    for old, new in fault.edits:
        if source.count(old) != 1:
            raise ValueError(f"{fault.path} holds {old!r} {source.count(old)} times")
        source = source.replace(old, new)
    (tree / fault.path).write_text(source, encoding="utf-8")


def _pytest(tree: Path, test: str) -> int:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-n",
        "0",
        "-p",
        "no:cacheprovider",
        "-m",
        "not gpu",
        test,
    ]
    environment = {**os.environ, "PYTHONPATH": f"{tree}:{tree / 'pallas'}"}
    return subprocess.run(command, cwd=tree, env=environment, stdout=subprocess.DEVNULL).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
