"""Exit statuses of the errors that libraries and systems really raise."""

import errno
import os

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
import pytest
import tensorstore
from absl import flags
from PIL import Image

from jdiff.config.construct import ConfigError
from jdiff.exit_status import exit_status, sentence
from jdiff.runtime.distributed import ClusterError
from jdiff.training.step_folders import SaveFailure


def error_of(function, *arguments, **options):
    with pytest.raises(Exception) as information:
        function(*arguments, **options)
    return information.value


def open_array(path, **options):
    spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": str(path)}}
    return tensorstore.open(spec, **options).result()


def damaged_array(path):
    array = open_array(path, create=True, dtype="float32", shape=[100])
    array.write(jnp.arange(100.0)).result()
    file = path / "0"
    file.write_bytes(file.read_bytes()[:10])
    return error_of(lambda: array.read().result())


def full_disk(path):
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def caused_by(kind, cause):
    error = kind("while writing records")
    error.__cause__ = cause
    return error


def out_of_device_memory(path):
    with jax.debug_nans(False):
        return error_of(lambda: jnp.zeros((1 << 46,), jnp.uint8).block_until_ready())


ERRORS = {
    "a missing file": (lambda path: error_of(open, path / "nowhere"), 2),
    "a folder in place of a file": (lambda path: error_of(open, path), 2),
    "a file in place of a folder": (lambda path: error_of(os.listdir, __file__), 2),
    "a full disk": (full_disk, 1),
    "a full disk below a library": (lambda path: caused_by(RuntimeError, full_disk(path)), 1),
    "a read-only disk": (lambda path: OSError(errno.EROFS, "Read-only file system"), 2),
    "an input/output error": (lambda path: OSError(errno.EIO, "Input/output error"), 1),
    "TensorStore: no array": (lambda path: error_of(open_array, path / "nothing"), 1),
    "TensorStore: a damaged array": (lambda path: damaged_array(path / "array"), 1),
    "Orbax: no checkpoint": (lambda path: error_of(ocp.PyTreeCheckpointer().restore, path / "nothing"), 2),
    "Pillow: no image": (lambda path: error_of(Image.open, __file__), 1),
    "JAX: out of memory": (out_of_device_memory, 2),
    "a key that no config has": (lambda path: ConfigError("config.x"), 2),
    "a value of a flag": (lambda path: flags.IllegalFlagValueError("--x"), 2),
    "processes that differ": (lambda path: ClusterError("x"), 2),
    "a save that failed": (lambda path: SaveFailure("x"), 1),
    "an error of jdiff itself": (lambda path: error_of(lambda: {}["x"]), None),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_have_the_status_by_which_launchers_decide(name, tmp_path):
    make, status = ERRORS[name]
    error = make(tmp_path)
    assert exit_status(error) == status, repr(error)
    if status is not None:
        assert sentence(error)
