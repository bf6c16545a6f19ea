"""jdiff's networks against PyTorch's of the same configuration, on the same random weights, in float32.

As for a user, the weights are written by the third-party library and loaded from their folder.
"""

import pytest

pytest.importorskip("torch", reason="the extra 'parity' is not installed")
pytest.importorskip("diffusers", reason="the extra 'parity' is not installed")
pytest.importorskip("transformers", reason="the extra 'parity' is not installed")

from benchmarks import weights

pytestmark = pytest.mark.filterwarnings("ignore")  # raised by the third-party libraries


@pytest.mark.parametrize("name", weights.PARITY)
def test_outputs_are_equal(name, tmp_path):
    errors = weights.PARITY[name](tmp_path)
    assert max(errors.values()) <= 1e-5, errors


@pytest.mark.parametrize("second", [False, True], ids=["stable diffusion 1", "stable diffusion 2"])
def test_pipelines_sample_equal_images(second, tmp_path):
    assert weights.images_differ(tmp_path, second=second) <= 2
