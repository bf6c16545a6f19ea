"""Batches: one integer says where one is, whatever the hosts; every epoch shows everything once."""

import itertools

import numpy as np
import pytest

from jdiff.data.pipeline import Batches
from jdiff.data.tokenizer import train

WORDS = [f"picture {i}" for i in range(20)]
TOKENIZER = train(WORDS, vocab_size=300, context_length=8)


class Rows:
    """Twenty records in memory, with two captions each."""

    def __len__(self):
        return 20

    def __getitem__(self, i):
        return {"image": np.full((2, 2, 3), i, np.uint8), "captions": [WORDS[i].encode(), f"a {WORDS[i]}".encode()]}


def batches(count, **options):
    made = Batches(Rows(), TOKENIZER, batch_size=8, seed=3, **options)
    rows = list(itertools.islice(made, count))
    made.close()
    return rows


def equal(a, b):
    return all(np.array_equal(a[name], b[name]) for name in a)


def test_shapes_and_meaning():
    (batch,) = batches(1)
    assert {name: (rows.shape, str(rows.dtype)) for name, rows in batch.items()} == {
        "image": ((8, 2, 2, 3), "uint8"),
        "tokens": ((8, 8), "int32"),
        "mask": ((8, 8), "bool"),
        "index": ((8,), "int32"),
    }
    assert batch["index"].tolist() == list(range(8))
    for image, tokens in zip(batch["image"], batch["tokens"]):
        assert TOKENIZER.decode(tokens).removeprefix("a ") == WORDS[image[0, 0, 0]]


def test_every_epoch_shows_everything_once_in_another_order():
    order = [int(image[0, 0, 0]) for batch in batches(5) for image in batch["image"]]
    assert sorted(order[:20]) == sorted(order[20:]) == list(range(20))
    assert order[:20] != order[20:]
    both = {TOKENIZER.decode(tokens)[0] for batch in batches(5) for tokens in batch["tokens"]}
    assert both == {"p", "a"}  # both captions are drawn


def test_resuming_reads_on():
    whole = batches(6)
    for start in (1, 4):
        assert all(equal(a, b) for a, b in zip(whole[start:], batches(6 - start, start_step=start)))


def test_groups_stay_together_and_are_all_shown():
    """The same laws for groups of four: one epoch shows all, resuming reads on, hosts share a batch."""
    order = np.concatenate([batch["image"][:, 0, 0, 0] for batch in batches(5, group=4)])
    groups = order.reshape(-1, 4)
    np.testing.assert_array_equal(groups - groups[:, :1], np.tile(np.arange(4), (10, 1)))
    assert set(groups[:, 0]) == {0, 4, 8, 12, 16}
    assert sorted(order[:20]) == sorted(order[20:]) == list(range(20))
    assert [batch["index"].tolist() for batch in batches(2, group=4)] == [list(range(8))] * 2
    whole = batches(4, group=4)
    assert all(equal(a, b) for a, b in zip(whole[1:], batches(3, group=4, start_step=1)))
    parts = [batches(3, group=4, own=own, parts=4) for own in ((0, 1), (2, 3))]
    for batch, *halves in zip(whole, *parts):
        assert equal(batch, {name: np.concatenate([half[name] for half in halves]) for name in batch})
    with pytest.raises(ValueError, match="no whole groups of 4"):
        batches(1, group=4, own=(0, 2), parts=4)


def test_two_hosts_share_the_batch_of_one():
    """Whichever rows are each one's; and a host that begins later, as one of more, reads on."""
    whole = batches(3)
    for own in ((0, 1), (2, 3), (0, 2), (1, 2, 3)):
        for batch, mine in zip(whole, batches(3, own=own, parts=4), strict=True):
            rows = np.arange(8).reshape(4, 2)[list(own)].ravel()
            assert equal(mine, {name: all_rows[rows] for name, all_rows in batch.items()})
    (later,) = batches(1, own=(3,), parts=4, start_step=2)
    assert equal(later, {name: rows[6:] for name, rows in whole[2].items()})
