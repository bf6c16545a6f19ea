"""Published tables of names and shapes: every tensor holds a parameter, none is unused, and counts are exact."""

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
def test_every_published_tensor_holds_a_parameter(name):
    assert match_table(name) == ([], published.TABLES[name]["params"])


def test_every_wrong_tensor_of_a_table_is_listed():
    network, inputs, parts, rules = NETWORKS["clip_b32_openai"]
    table = dict(published.TABLES["clip_b32_openai"]["shapes"])
    del table["ln_final.bias"]
    table["visual.proj"] = [768, 513]
    table["visual.extra"] = [3]
    table["visual.ln_pre.bias"] = [1, 768]  # axes of length 1 are ignored
    file = tensors.WeightFile(stored_tensors(table), parts, rules)
    _, lines = tensors.match(parameter_shapes(network, inputs), [file])
    assert lines == [
        "missing     ln_final.bias, of shape (512,)",
        "misshapen   visual.proj, (768, 513) in place of (768, 512)",
        "unexpected  visual.extra, of shape (3,)",
    ]


@pytest.mark.parametrize("name", published.PARAMETER_COUNTS)
def test_published_counts(name):
    assert count_parameters(name) == published.PARAMETER_COUNTS[name]


def test_an_openai_resnet_has_489_tensors():
    """With the buffers of its norms, one of which (a count of batches) holds no parameter; q, k and v are one."""
    shapes = tensors.flat(parameter_shapes(*COUNTED_NETWORKS["clip_rn50"]))
    names = {tensors.source_tensor(path, clip_weights.OPENAI_RESNET).name for path in shapes}
    norms = sum(name.endswith("running_mean") for name in names)
    assert len(names) + norms == 489
