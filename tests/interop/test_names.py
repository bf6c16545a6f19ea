"""Published tables of names and shapes: every tensor has its place with us, none is left over, and counts are exact."""

import pytest

from benchmarks.published import COUNTS, PUBLISHED, TABLES, counted, problems, shapes, stored
from jdiff.interop import clip_weights, tensors


@pytest.mark.parametrize("name", TABLES)
def test_every_published_tensor_has_its_place(name):
    assert problems(name) == ([], PUBLISHED[name]["params"])


def test_a_wrong_table_is_told_tensor_by_tensor():
    model, inputs, parts, rules = TABLES["clip_b32_openai"]
    table = dict(PUBLISHED["clip_b32_openai"]["shapes"])
    del table["ln_final.bias"]
    table["visual.proj"] = [768, 513]
    table["visual.extra"] = [3]
    table["visual.ln_pre.bias"] = [1, 768]  # ones do not matter: a vector may be stored as a matrix
    file = tensors.File(stored(table), parts, rules)
    _, found = tensors.match(shapes(model, inputs), [file])
    assert found == [
        "missing     ln_final.bias, of shape (512,)",
        "misshapen   visual.proj, (768, 513) in place of (768, 512)",
        "unexpected  visual.extra, of shape (3,)",
    ]


@pytest.mark.parametrize("name", COUNTS)
def test_published_counts(name):
    assert counted(name) == COUNTS[name][2]


def test_an_openai_resnet_has_489_tensors():
    """With the buffers of its norms, one of which (a count of batches) is no number of ours; q, k and v are one."""
    model, inputs, _ = COUNTS["clip_rn50"]
    names = {tensors.place(path, clip_weights.OPENAI_RESNET).name for path in tensors.flat(shapes(model, inputs))}
    norms = sum(name.endswith("running_mean") for name in names)
    assert len(names) + norms == 489
