"""Safetensors files, written by the library that defines them and read by us, and what may be wrong with them."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from jdiff.interop import tensors
from jdiff.interop.tensors import File, WrongWeights, match, place, read, scan, scan_folder

ONE = jax.sharding.SingleDeviceSharding(jax.devices()[0])
GENERATOR = np.random.default_rng(0)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, jnp.bfloat16, np.int64, np.uint8, np.bool_])
def test_every_type_reads_as_it_was_written(dtype, tmp_path):
    value = (10 * GENERATOR.standard_normal((3, 4))).astype(dtype)
    save_file({"a": value, "b": np.array(7, np.float32)}, tmp_path / "x.safetensors")
    found = scan(tmp_path / "x.safetensors")
    assert found["a"].shape == (3, 4) and found["b"].shape == ()
    np.testing.assert_array_equal(found["a"].read(), value)
    assert found["b"].read() == 7
    np.testing.assert_array_equal(found["a"].read(part=1), value[1:2])


def test_layouts(tmp_path):
    """Linear layers turn, convolutions go from OIHW to HWIO, a third is cut out, and what is as ours stays."""
    linear, conv, fused, own = (
        GENERATOR.standard_normal(s).astype(np.float32) for s in ((5, 4), (6, 3, 2, 2), (9, 3), (4, 5))
    )
    save_file({"l.weight": linear, "c.weight": conv, "in_proj": fused, "own": own}, tmp_path / "x.safetensors")
    rules = ((r"^p/k/kernel$", "in_proj#1"), (r"^p/own/kernel$", "own="), (r"^p/", ""))
    shapes = {"l": (4, 5), "c": (2, 2, 3, 6), "k": (3, 3), "own": (4, 5)}
    like = {"p": {name: {"kernel": jax.ShapeDtypeStruct(shape, jnp.float32)} for name, shape in shapes.items()}}
    found = read(like, [File(scan(tmp_path / "x.safetensors"), ("p",), rules)], ONE, source="x")["p"]
    np.testing.assert_array_equal(found["l"]["kernel"], linear.T)
    np.testing.assert_array_equal(found["c"]["kernel"], conv.transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(found["k"]["kernel"], fused[3:6].T)
    np.testing.assert_array_equal(found["own"]["kernel"], own)


def test_a_matrix_may_be_a_1x1_convolution(tmp_path):
    value = GENERATOR.standard_normal((5, 4, 1, 1)).astype(np.float32)
    save_file({"a.weight": value}, tmp_path / "x.safetensors")
    like = {"p": {"a": {"kernel": jax.ShapeDtypeStruct((4, 5), jnp.float32)}}}
    found = read(like, [File(scan(tmp_path / "x.safetensors"), ("p",), ((r"^p/", ""),))], ONE, source="x")
    np.testing.assert_array_equal(found["p"]["a"]["kernel"], value[:, :, 0, 0].T)


def test_half_precision_is_read_as_float32(tmp_path):
    value = GENERATOR.standard_normal(4).astype(np.float16)
    save_file({"a.bias": value}, tmp_path / "x.safetensors")
    like = {"p": {"a": {"bias": jax.ShapeDtypeStruct((4,), jnp.float32)}}}
    found = read(like, [File(scan(tmp_path / "x.safetensors"), ("p",), ((r"^p/", ""),))], ONE, source="x")["p"]["a"][
        "bias"
    ]
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, value)


def test_several_files_with_an_index_are_one(tmp_path):
    for i in range(2):
        save_file({f"t{i}": np.full(3, i, np.float32)}, tmp_path / f"model-{i}.safetensors")
    index = {"weight_map": {f"t{i}": f"model-{i}.safetensors" for i in range(2)}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert sorted(scan_folder(tmp_path, ("model",))) == ["t0", "t1"]
    index["weight_map"]["t0"] = "../model-0.safetensors"
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(WrongWeights, match="outside its folder"):
        scan_folder(tmp_path, ("model",))


@pytest.mark.parametrize("name", ["w.bin", "w.ckpt", "w.pt"])
def test_a_pickle_is_refused_and_not_opened(name, tmp_path):
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    for found in (lambda: scan(tmp_path / name), lambda: scan_folder(tmp_path, ("model",))):
        with pytest.raises(WrongWeights, match=r"is a pickle.*convert it: python -c"):
            found()


def broken(header, data=b""):
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(content).to_bytes(8, "little") + content + data


BROKEN = {
    "empty": (b"", "no safetensors file"),
    "noise": (b"\xff" * 64, "no safetensors file"),
    "no JSON": (broken(b"{]"), "no safetensors file"),
    "a list": (broken([1]), "no safetensors file"),
    "unknown type": (broken({"a": {"dtype": "F4", "shape": [1], "data_offsets": [0, 1]}}), "no safetensors file"),
    "wrong size": (broken({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, b"\0" * 8), "has 4 bytes"),
    "negative": (broken({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [4, 0]}}), "no safetensors file"),
    "cut short": (broken({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, b"\0" * 4), "is cut short"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_refused(name, tmp_path):
    content, why = BROKEN[name]
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(WrongWeights, match=why):
        scan(tmp_path / "x.safetensors")


def test_every_problem_is_listed_before_anything_is_read(tmp_path, monkeypatch):
    save_file({"a.bias": np.zeros(3, np.float32), "b": np.zeros(1, np.float32)}, tmp_path / "x.safetensors")
    like = {"p": {"a": {"bias": jax.ShapeDtypeStruct((4,), jnp.float32)}, "c": jax.ShapeDtypeStruct((2,), jnp.float32)}}
    monkeypatch.setattr(tensors.Stored, "read", lambda *_: pytest.fail("a tensor was read"))
    with pytest.raises(WrongWeights, match=r"(?s)3 tensors of x .*misshapen   a.bias.*missing     c.*unexpected  b"):
        read(like, [File(scan(tmp_path / "x.safetensors"), ("p",), ((r"^p/", ""),))], ONE, source="x")


def test_names_that_may_be_left_over():
    stored = {"b.position_ids": tensors.Stored(None, "b.position_ids", np.int64, (1, 77), 0)}
    assert match({}, [File(stored, (), (), ignored="position_ids$")])[1] == []
    assert match({}, [File(stored, (), ())])[1]


def test_place():
    assert place("x/attention/kernel", ((r"^x/", "y."),)).name == "y.attention.weight"
    found = place("q/bias", ((r"q/bias", "in_proj_bias#2"),))
    assert (found.name, found.part, found.as_is) == ("in_proj_bias", 2, False)
    assert place("q/kernel", ((r"q/kernel", "w="),)).as_is
