"""Batches: one integer says where one is, whatever the hosts; every epoch shows everything once."""

import itertools

import numpy as np

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
    parts = [batches(3, group=4, shard=i, shards=2) for i in range(2)]
    for batch, *halves in zip(whole, *parts):
        assert equal(batch, {name: np.concatenate([half[name] for half in halves]) for name in batch})


def test_two_hosts_share_the_batch_of_one():
    """Rows that follow each other, as a mesh has them; and a host that begins later, as one of more, reads on."""
    whole, parts = batches(3), [batches(3, shard=i, shards=2) for i in range(2)]
    for batch, *halves in zip(whole, *parts):
        assert equal(batch, {name: np.concatenate([half[name] for half in halves]) for name in batch})
    (later,) = batches(1, shard=3, shards=4, start_step=2)
    assert equal(later, {name: rows[6:] for name, rows in whole[2].items()})
