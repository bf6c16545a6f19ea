"""Our networks and pipelines give the outputs of PyTorch's, as ``networks`` compares them."""

import pytest

pytest.importorskip("torch", reason="the extra 'parity' is not installed")
pytest.importorskip("diffusers", reason="the extra 'parity' is not installed")
pytest.importorskip("transformers", reason="the extra 'parity' is not installed")

from tests.parity import networks

pytestmark = pytest.mark.filterwarnings("ignore")  # of the other libraries' own making


@pytest.mark.parametrize("name", networks.PARITY)
def test_outputs_are_equal(name, tmp_path):
    errors = networks.PARITY[name](tmp_path)
    assert max(errors.values()) <= 1e-5, errors


@pytest.mark.slow
@pytest.mark.parametrize("name", networks.FULL_SIZE)
def test_outputs_of_full_size_are_equal(name, tmp_path):
    errors = networks.FULL_SIZE[name](tmp_path)
    assert max(errors.values()) <= 1e-4, errors


@pytest.mark.parametrize("second", [False, True], ids=["stable diffusion 1", "stable diffusion 2"])
def test_whole_pipelines_draw_equal_images(second, tmp_path):
    assert networks.images_differ(tmp_path, second=second) <= 2
