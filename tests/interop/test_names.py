"""Published tables of names and shapes: every tensor holds a parameter, none is unused, and counts are exact."""

import pytest

from benchmarks.published import COUNTS, PUBLISHED, TABLES, counted, problems, shapes, stored
from jdiff.interop import clip_weights, tensors


@pytest.mark.parametrize("name", TABLES)
def test_every_published_tensor_holds_a_parameter(name):
    assert problems(name) == ([], PUBLISHED[name]["params"])


def test_every_wrong_tensor_of_a_table_is_listed():
    model, inputs, parts, rules = TABLES["clip_b32_openai"]
    table = dict(PUBLISHED["clip_b32_openai"]["shapes"])
    del table["ln_final.bias"]
    table["visual.proj"] = [768, 513]
    table["visual.extra"] = [3]
    table["visual.ln_pre.bias"] = [1, 768]  # axes of length 1 are ignored
    file = tensors.WeightFile(stored(table), parts, rules)
    _, lines = tensors.match(shapes(model, inputs), [file])
    assert lines == [
        "missing     ln_final.bias, of shape (512,)",
        "misshapen   visual.proj, (768, 513) in place of (768, 512)",
        "unexpected  visual.extra, of shape (3,)",
    ]


@pytest.mark.parametrize("name", COUNTS)
def test_published_counts(name):
    assert counted(name) == COUNTS[name][2]


def test_an_openai_resnet_has_489_tensors():
    """With the buffers of its norms, one of which (a count of batches) holds no parameter of ours."""
    model, inputs, _ = COUNTS["clip_rn50"]
    names = {
        tensors.source_tensor(path, clip_weights.OPENAI_RESNET).name for path in tensors.flat(shapes(model, inputs))
    }
    norms = sum(name.endswith("running_mean") for name in names)
    assert len(names) + norms == 489
