"""A run for all tests of faults."""

import pytest

from tests.faults import harness


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Prepared data, and an uninterrupted run."""
    path = tmp_path_factory.mktemp("faults")
    harness.run("prepare", "--config=demo_clip:tiny", cwd=path)
    harness.run(*harness.TRAIN, "--workdir=whole", cwd=path)
    return path
