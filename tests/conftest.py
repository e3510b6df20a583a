"""Four virtual CPU devices and the folder of shared test material, for every test."""

import os
from pathlib import Path

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
