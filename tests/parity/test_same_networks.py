"""Our networks against PyTorch's of the same configuration, on the same random weights, in float32.

Weights go the way that a user's go: written by the other library, found by their folder, read by name.
"""

import pytest

pytest.importorskip("torch", reason="the extra 'parity' is not installed")
pytest.importorskip("diffusers", reason="the extra 'parity' is not installed")
pytest.importorskip("transformers", reason="the extra 'parity' is not installed")

from benchmarks import weights

pytestmark = pytest.mark.filterwarnings("ignore")  # of the other libraries' own making


@pytest.mark.parametrize("name", weights.PARITY)
def test_outputs_are_equal(name, tmp_path):
    errors = weights.PARITY[name](tmp_path)
    assert max(errors.values()) <= 1e-5, errors


@pytest.mark.parametrize("second", [False, True], ids=["stable diffusion 1", "stable diffusion 2"])
def test_whole_pipelines_draw_equal_images(second, tmp_path):
    assert weights.images_differ(tmp_path, second=second) <= 2
