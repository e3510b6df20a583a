"""Four virtual CPU devices and the folder of shared test material, for every test.

What one process of a run has compiled is there for the others, and for the commands that tests
start: most of their time would be compilation.
"""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    programs = tempfile.mkdtemp(prefix="deltakv-tests-")
    atexit.register(shutil.rmtree, programs, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = programs
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
)

import pytest

SHARED = Path(__file__).parents[1].parent / "shared"


@pytest.fixture
def shared() -> Path:
    """The folder of real models and texts beside the checkout; skips where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"no test material at {SHARED}")
    return SHARED
