"""What attacks start from: good files of every profile and codec."""

import pytest

from tests.hostile import fuzz


@pytest.fixture(scope="session")
def samples(tmp_path_factory):
    return fuzz.samples(tmp_path_factory.mktemp("samples"))


@pytest.fixture
def sample(samples):
    return next(sample for sample in samples if sample.name == "paper")
