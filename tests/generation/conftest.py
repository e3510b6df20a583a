"""The model that the tests of this folder share."""

import pytest

from deltakv_jax.model import Llama
from tests.generation.helpers import CONFIG
from tests.models import random_model


@pytest.fixture(scope="session")
def model() -> Llama:
    return random_model(CONFIG)
