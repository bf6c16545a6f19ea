"""Safetensors files, written by the library that defines them and read by jdiff; corrupt files and wrong tensors."""

import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from jdiff import storage
from jdiff.interop import safetensors_files
from jdiff.interop.safetensors_files import WrongWeights, scan, scan_folder
from jdiff.interop.tensors import SourceTensor, WeightFile, match, read_params, source_tensor

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


TENSOR = {"dtype": "F32", "shape": (2,)}
CORRUPT_FILES = {
    "empty": (b"", "no valid safetensors file"),
    "noise": (b"\xff" * 64, "no valid safetensors file"),
    "no JSON": (safetensors_bytes(b"{]"), "no valid safetensors file"),
    "a list": (safetensors_bytes([1]), "no valid safetensors file"),
    "unknown type": (safetensors_bytes(tensor_header("F4", [1], [0, 1]), b"\0"), "type F4; convert"),
    "wrong size": (safetensors_bytes(tensor_header(offsets=[0, 4]), b"\0" * 8), "has 4 bytes"),
    "negative": (safetensors_bytes(tensor_header(shape=[-1], offsets=[4, 0])), "no valid safetensors file"),
    "truncated": (safetensors_bytes(tensor_header(), b"\0" * 4), "truncated"),
    "trailing bytes": (safetensors_bytes(tensor_header(), b"\0" * 9), "goes on"),
    "hole at the start": (safetensors_bytes(tensor_header(offsets=[4, 12]), b"\0" * 12), "begins at byte"),
    "hole": (safetensors_bytes({**tensor_header(), "b": {**TENSOR, "data_offsets": [9, 17]}}, b"\0" * 17), "tensor b"),
    "overlap": (
        safetensors_bytes({**tensor_header(), "b": {**TENSOR, "data_offsets": [4, 12]}}, b"\0" * 12),
        "tensor b",
    ),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 4265380512\n", "Git LFS"),
    "web page": (b"<!DOCTYPE html><html><body>Not found</body></html>", "web page"),
    "zip": (b"PK\x03\x04" + b"\0" * 60, "zip archive"),
    "pickle": (b"\x80\x02}q\x00." + b"\0" * 60, "pickle"),
}


@pytest.mark.parametrize("name", CORRUPT_FILES)
def test_a_corrupt_file_is_refused(name, tmp_path, monkeypatch):
    content, message = CORRUPT_FILES[name]
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(WrongWeights, match=message):
        scan(tmp_path / "x.safetensors")
    # In a bucket, where the safetensors library cannot read, the same files are refused.
    monkeypatch.setattr(storage, "on_disk", lambda path: False)
    with pytest.raises(WrongWeights, match=message):
        scan(tmp_path / "x.safetensors")


DTYPES = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")


@pytest.mark.parametrize("dtype", DTYPES)
def test_files_on_disk_and_in_buckets_have_the_same_tensors(tmp_path, monkeypatch, dtype):
    truth = np.arange(12).reshape(6, 2).astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    save_file({"a": truth, "scalar": np.asarray(truth[1, 1])}, tmp_path / "x.safetensors")
    for on_disk in (True, False):
        monkeypatch.setattr(storage, "on_disk", lambda path, on_disk=on_disk: on_disk)
        weights = scan(tmp_path / "x.safetensors")
        np.testing.assert_array_equal(weights["a"].read(), truth)
        np.testing.assert_array_equal(weights["a"].read(1), truth[2:4])
        assert weights["a"].read().dtype == truth.dtype and weights["scalar"].read() == truth[1, 1]


def test_names_have_no_wrappers_of_pytorch(tmp_path):
    names = ["_orig_mod.a", "module.b", "module._orig_mod.c", "d._orig_mod.e", "remodule.f", "submodule.g"]
    save_file({name: np.float32([i]) for i, name in enumerate(names)}, tmp_path / "x.safetensors")
    weights = scan(tmp_path / "x.safetensors")
    assert {name: int(tensor.read()[0]) for name, tensor in weights.items()} == {
        **{"a": 0, "b": 1, "c": 2, "d.e": 3},
        **{"remodule.f": 4, "submodule.g": 5},
    }


@pytest.mark.parametrize("variant", ["", ".fp16", ".non_ema"])
def test_weights_of_every_variant_are_found(tmp_path, variant):
    save_file({"a": np.zeros(1, np.float32)}, tmp_path / f"model{variant}.safetensors")
    assert list(scan_folder(tmp_path, ("model",))) == ["a"]
    (tmp_path / f"model{variant}.safetensors").rename(tmp_path / f"model-00001{variant}.safetensors")
    index = {"weight_map": {"a": f"model-00001{variant}.safetensors"}}
    (tmp_path / f"model.safetensors.index{variant}.json").write_text(json.dumps(index))
    assert list(scan_folder(tmp_path, ("model",))) == ["a"]


def test_every_problem_is_listed_before_anything_is_read(tmp_path, monkeypatch):
    save_file({"a.bias": np.zeros(3, np.float32), "b": np.zeros(1, np.float32)}, tmp_path / "x.safetensors")
    target = {"a": {"bias": jax.ShapeDtypeStruct((4,), jnp.float32)}, "c": jax.ShapeDtypeStruct((2,), jnp.float32)}
    monkeypatch.setattr(safetensors_files.StoredTensor, "read", lambda *_: pytest.fail("a tensor was read"))
    with pytest.raises(WrongWeights, match=r"(?s)3 tensors of x .*misshapen   a.bias.*missing     c.*unexpected  b"):
        read_part(target, tmp_path / "x.safetensors")


def test_only_tensors_of_the_unused_pattern_may_hold_no_parameter():
    header = {"b.position_ids": safetensors_files.StoredTensor(None, "b.position_ids", np.int64, (1, 77), 0)}
    assert match({}, [WeightFile(header, (), (), unused_pattern="position_ids$")])[1] == []
    assert match({}, [WeightFile(header, (), ())])[1]


def test_source_tensor():
    assert source_tensor("x/attention/kernel", ((r"^x/", "y."),)).name == "y.attention.weight"
    assert source_tensor("q/bias", ((r"q/bias", "in_proj_bias#2"),)) == SourceTensor("in_proj_bias", 2, False)
    assert source_tensor("q/kernel", ((r"q/kernel", "w="),)) == SourceTensor("w", None, True)
