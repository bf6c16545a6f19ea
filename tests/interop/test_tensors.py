"""Safetensors files, written by the library that defines them and read by jdiff; corrupt files and wrong tensors."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from jdiff.interop import tensors
from jdiff.interop.tensors import (
    SourceTensor,
    WeightFile,
    WrongWeights,
    match,
    read_params,
    scan,
    scan_folder,
    source_tensor,
)

SHARDING = jax.sharding.SingleDeviceSharding(jax.devices()[0])
GENERATOR = np.random.default_rng(0)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, jnp.bfloat16, np.int64, np.uint8, np.bool_])
def test_every_dtype_is_read_unchanged(dtype, tmp_path):
    value = (10 * GENERATOR.standard_normal((3, 4))).astype(dtype)
    save_file({"a": value, "b": np.array(7, np.float32)}, tmp_path / "x.safetensors")
    header = scan(tmp_path / "x.safetensors")
    assert header["a"].shape == (3, 4) and header["b"].shape == ()
    np.testing.assert_array_equal(header["a"].read(), value)
    assert header["b"].read() == 7
    np.testing.assert_array_equal(header["a"].read(part=1), value[1:2])


def read_part(target, path, rules=((r"^p/", ""),)):
    """The parameters of the only part, "p", read from a file."""
    return read_params({"p": target}, [WeightFile(scan(path), ("p",), rules)], SHARDING, source="x")["p"]


def test_layouts(tmp_path):
    """Linear layers are transposed, convolutions go from OIHW to HWIO, a fused tensor is split."""
    linear, conv, qkv, flax = (
        GENERATOR.standard_normal(s).astype(np.float32) for s in ((5, 4), (6, 3, 2, 2), (9, 3), (4, 5))
    )
    save_file({"l.weight": linear, "c.weight": conv, "in_proj": qkv, "flax": flax}, tmp_path / "x.safetensors")
    rules = ((r"^p/k/kernel$", "in_proj#1"), (r"^p/flax/kernel$", "flax="), (r"^p/", ""))
    shapes = {"l": (4, 5), "c": (2, 2, 3, 6), "k": (3, 3), "flax": (4, 5)}
    target = {name: {"kernel": jax.ShapeDtypeStruct(shape, jnp.float32)} for name, shape in shapes.items()}
    params = read_part(target, tmp_path / "x.safetensors", rules)
    np.testing.assert_array_equal(params["l"]["kernel"], linear.T)
    np.testing.assert_array_equal(params["c"]["kernel"], conv.transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(params["k"]["kernel"], qkv[3:6].T)
    np.testing.assert_array_equal(params["flax"]["kernel"], flax)


def test_a_matrix_may_be_a_1x1_convolution(tmp_path):
    value = GENERATOR.standard_normal((5, 4, 1, 1)).astype(np.float32)
    save_file({"a.weight": value}, tmp_path / "x.safetensors")
    target = {"a": {"kernel": jax.ShapeDtypeStruct((4, 5), jnp.float32)}}
    params = read_part(target, tmp_path / "x.safetensors")
    np.testing.assert_array_equal(params["a"]["kernel"], value[:, :, 0, 0].T)


def test_half_precision_is_read_as_float32(tmp_path):
    value = GENERATOR.standard_normal(4).astype(np.float16)
    save_file({"a.bias": value}, tmp_path / "x.safetensors")
    bias = read_part({"a": {"bias": jax.ShapeDtypeStruct((4,), jnp.float32)}}, tmp_path / "x.safetensors")["a"]["bias"]
    assert bias.dtype == jnp.float32
    np.testing.assert_array_equal(bias, value)


def test_several_files_with_an_index_are_one(tmp_path):
    for i in range(2):
        save_file({f"t{i}": np.full(3, i, np.float32)}, tmp_path / f"model-{i}.safetensors")
    index = {"weight_map": {f"t{i}": f"model-{i}.safetensors" for i in range(2)}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert sorted(scan_folder(tmp_path, ("model",))) == ["t0", "t1"]
    index["weight_map"]["t0"] = "../model-0.safetensors"
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(WrongWeights, match="index.json lists files outside"):
        scan_folder(tmp_path, ("model",))


@pytest.mark.parametrize("name", ["w.bin", "w.ckpt", "w.pt"])
def test_a_pickle_is_refused_and_not_opened(name, tmp_path):
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    for read_header in (lambda: scan(tmp_path / name), lambda: scan_folder(tmp_path, ("model",))):
        with pytest.raises(WrongWeights, match=r"pickle.*python -c"):
            read_header()


def safetensors_bytes(header, data=b""):
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(content).to_bytes(8, "little") + content + data


def tensor_header(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"a": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


CORRUPT_FILES = {
    "empty": (b"", "no safetensors file"),
    "noise": (b"\xff" * 64, "no safetensors file"),
    "no JSON": (safetensors_bytes(b"{]"), "no safetensors file"),
    "a list": (safetensors_bytes([1]), "no safetensors file"),
    "unknown type": (safetensors_bytes(tensor_header("F4", [1], [0, 1])), "no safetensors file"),
    "wrong size": (safetensors_bytes(tensor_header(offsets=[0, 4]), b"\0" * 8), "has 4 bytes"),
    "negative": (safetensors_bytes(tensor_header(shape=[-1], offsets=[4, 0])), "no safetensors file"),
    "truncated": (safetensors_bytes(tensor_header(), b"\0" * 4), "truncated"),
}


@pytest.mark.parametrize("name", CORRUPT_FILES)
def test_a_corrupt_file_is_refused(name, tmp_path):
    content, message = CORRUPT_FILES[name]
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(WrongWeights, match=message):
        scan(tmp_path / "x.safetensors")


def test_every_problem_is_listed_before_anything_is_read(tmp_path, monkeypatch):
    save_file({"a.bias": np.zeros(3, np.float32), "b": np.zeros(1, np.float32)}, tmp_path / "x.safetensors")
    target = {"a": {"bias": jax.ShapeDtypeStruct((4,), jnp.float32)}, "c": jax.ShapeDtypeStruct((2,), jnp.float32)}
    monkeypatch.setattr(tensors.StoredTensor, "read", lambda *_: pytest.fail("a tensor was read"))
    with pytest.raises(WrongWeights, match=r"(?s)3 tensors of x .*misshapen   a.bias.*missing     c.*unexpected  b"):
        read_part(target, tmp_path / "x.safetensors")


def test_only_tensors_of_the_unused_pattern_may_hold_no_parameter():
    header = {"b.position_ids": tensors.StoredTensor(None, "b.position_ids", np.int64, (1, 77), 0)}
    assert match({}, [WeightFile(header, (), (), unused_pattern="position_ids$")])[1] == []
    assert match({}, [WeightFile(header, (), ())])[1]


def test_source_tensor():
    assert source_tensor("x/attention/kernel", ((r"^x/", "y."),)).name == "y.attention.weight"
    assert source_tensor("q/bias", ((r"q/bias", "in_proj_bias#2"),)) == SourceTensor("in_proj_bias", 2, False)
    assert source_tensor("q/kernel", ((r"q/kernel", "w="),)) == SourceTensor("w", None, True)
