"""Published tables of names and shapes: every tensor has its place with us, none is left over, and counts are exact."""

import pytest

from jdiff.interop import clip_weights, tensors
from reference import published
from tests.interop.published_networks import (
    COUNTED_NETWORKS,
    NETWORKS,
    count_parameters,
    match_table,
    parameter_shapes,
    stored_tensors,
)


@pytest.mark.parametrize("name", published.TABLES)
def test_every_published_tensor_has_its_place(name):
    assert match_table(name) == ([], published.TABLES[name]["params"])


def test_a_wrong_table_is_told_tensor_by_tensor():
    network, inputs, parts, rules = NETWORKS["clip_b32_openai"]
    table = dict(published.TABLES["clip_b32_openai"]["shapes"])
    del table["ln_final.bias"]
    table["visual.proj"] = [768, 513]
    table["visual.extra"] = [3]
    table["visual.ln_pre.bias"] = [1, 768]  # ones do not matter: a vector may be stored as a matrix
    file = tensors.File(stored_tensors(table), parts, rules)
    _, found = tensors.match(parameter_shapes(network, inputs), [file])
    assert found == [
        "missing     ln_final.bias, of shape (512,)",
        "misshapen   visual.proj, (768, 513) in place of (768, 512)",
        "unexpected  visual.extra, of shape (3,)",
    ]


@pytest.mark.parametrize("name", published.PARAMETER_COUNTS)
def test_published_counts(name):
    assert count_parameters(name) == published.PARAMETER_COUNTS[name]


def test_an_openai_resnet_has_489_tensors():
    """With the buffers of its norms, one of which (a count of batches) is no number of ours; q, k and v are one."""
    shapes = tensors.flat(parameter_shapes(*COUNTED_NETWORKS["clip_rn50"]))
    names = {tensors.place(path, clip_weights.OPENAI_RESNET).name for path in shapes}
    norms = sum(name.endswith("running_mean") for name in names)
    assert len(names) + norms == 489
