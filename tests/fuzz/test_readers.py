"""A few hundred mutated files of each reader; `scripts/fuzz.py` reads as many as one likes."""

import tracemalloc

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scripts.fuzzing.readers import READERS, loads, mutated

FILES = 300
LARGEST = 32 << 20  # bytes that reading one of them may take
LONGEST = 10_000  # milliseconds


@pytest.mark.parametrize("reader", READERS)
def test_a_mutated_file_loads_or_gets_an_error_of_one_line(reader, tmp_path):
    models = READERS[reader]()

    @settings(
        max_examples=FILES,
        deadline=LONGEST,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(st.randoms(use_true_random=False))
    def read(random):
        tracemalloc.start()
        try:
            loads(mutated(models, random), tmp_path)
            assert tracemalloc.get_traced_memory()[1] < LARGEST
        finally:
            tracemalloc.stop()

    read()
