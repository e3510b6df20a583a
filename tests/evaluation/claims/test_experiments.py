"""Which runs a model and its texts allow, and that they show what they are made to show."""

import pytest

from deltakv_jax.errors import UserError
from deltakv_jax.evaluation.claims import experiments, neighbours
from deltakv_jax.evaluation.claims.commands import Asked
from deltakv_jax.evaluation.claims.experiments import PARTS
from tests.evaluation.claims.samples import loaded, text


@pytest.fixture
def few_programs(monkeypatch):
    """Two formats: each is a program to compile."""
    for name in ("short", "raw"):
        fewer = experiments.PARTS[name]._replace(formats=("f16", "delta"))
        monkeypatch.setitem(experiments.PARTS, name, fewer)


def parts(planned) -> list[tuple[str, str, int, int, str]]:
    """Part, text, tokens of a chunk, chunks and reads of each run."""
    return [
        (job.part, job.text.name, job.settings.ctx, len(job.chunks.tokens), job.settings.reads)
        for job in planned.jobs
    ]


def test_every_part_on_every_text(random_llama):
    planned = experiments.plan(
        loaded(random_llama, context=4096), [text("a", 9000), text("b", 6000)], 10
    )
    assert parts(planned) == [
        ("short", "a", 512, 10, "cache"),
        ("short", "b", 512, 10, "cache"),
        ("long", "a", 2048, 4, "cache"),
        ("long", "b", 2048, 2, "cache"),
        ("raw", "a", 512, 8, "raw"),
        ("raw", "b", 512, 8, "raw"),
    ]
    assert not planned.missing
    assert [len(chunks.tokens) for _, chunks in planned.samples] == [16, 11]
    assert planned.units == (10 + 10) * 5 + (4 + 2) * 3 + (8 + 8) * 3 + 2 * (16 + 11)


def test_a_text_too_short_for_the_long_context_is_named(random_llama):
    planned = experiments.plan(
        loaded(random_llama, context=4096), [text("a", 3000), text("b", 600)], 10
    )
    assert [part[:2] for part in parts(planned) if part[0] == "long"] == [("long", "a")]
    assert planned.missing == {"long": "Too short for a chunk of 2048 tokens: b."}


def test_a_shorter_context_is_used_and_the_long_part_left_out(random_llama):
    planned = experiments.plan(loaded(random_llama, context=128), [text()], 10)
    assert parts(planned) == [("short", "a.txt", 128, 2, "cache"), ("raw", "a.txt", 128, 2, "raw")]
    assert planned.missing == {"long": "No chunks of 2048 tokens: the model's context is 128."}


def test_a_head_without_blocks_has_no_runs(random_llama):
    planned = experiments.plan(loaded(random_llama, context=4096, head_dim=8), [text("a", 600)], 10)
    assert planned.jobs == ()
    assert set(planned.missing) == set(PARTS)
    assert "multiple of 32, this model's is 8" in planned.missing["short"]
    assert len(planned.samples) == 1


def test_a_text_without_a_chunk_is_an_error(random_llama):
    with pytest.raises(UserError, match="--text a has no chunk of 512 tokens; give a longer"):
        experiments.plan(loaded(random_llama, context=4096), [text("a", 300)], 10)


@pytest.mark.slow
def test_raw_reads_see_no_format_and_cache_true_ones_do(random_llama, few_programs):
    """The heart of the matter, on a random model."""
    told = []
    model = loaded(random_llama, context=32)
    planned = experiments.plan(model, [text()], 2)
    evidence = experiments.carry_out(
        model, planned, progress=told.append, open_store=lambda job: None
    )
    assert sum(told) == planned.units
    (raw,), (true,) = evidence.runs["raw"], evidence.runs["short"]
    assert [row.kld_max for row in raw.rows] == [0, 0]
    assert true.rows[0].kld_max == 0 < true.rows[1].kld_max
    assert (raw.reads, true.reads) == ("raw", "cache")
    (found,) = evidence.coherence
    assert (found.ctx, found.chunks, found.text) == (32, 9, "a.txt")
    claim = neighbours.one_percent(evidence, Asked("--model x", {"a.txt": "a.txt"}))
    assert claim.verdict == "does not hold"
