"""Batches: resumable from a step number with any number of hosts; every epoch shows every record once."""

import itertools
import time

import numpy as np
import pytest

from jdiff.data.pipeline import PREFETCH_BATCHES, Batches
from jdiff.data.tokenizer import train_tokenizer

WORDS = [f"picture {i}" for i in range(20)]
TOKENIZER = train_tokenizer(WORDS, vocab_size=300, context_length=8)


class Rows:
    """Twenty records in memory, with two captions each."""

    def __len__(self):
        return 20

    def __getitem__(self, i):
        return {"image": np.full((2, 2, 3), i, np.uint8), "captions": [WORDS[i].encode(), f"a {WORDS[i]}".encode()]}


def batches(count, **options):
    iterator = Batches(Rows(), TOKENIZER, batch_size=8, seed=3, **options)
    rows = list(itertools.islice(iterator, count))
    iterator.close()
    return rows


def equal(a, b):
    return all(np.array_equal(a[name], b[name]) for name in a)


def test_shapes_dtypes_and_captions_of_a_batch():
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


def test_every_epoch_shows_every_record_once_in_another_order():
    order = [int(image[0, 0, 0]) for batch in batches(5) for image in batch["image"]]
    assert sorted(order[:20]) == sorted(order[20:]) == list(range(20))
    assert order[:20] != order[20:]
    initials = {TOKENIZER.decode(tokens)[0] for batch in batches(5) for tokens in batch["tokens"]}
    assert initials == {"p", "a"}  # both captions are drawn


def test_resume_continues_the_uninterrupted_sequence():
    full_run = batches(6)
    for start in (1, 4):
        assert all(equal(a, b) for a, b in zip(full_run[start:], batches(6 - start, start_step=start)))


def test_groups_stay_together_and_are_all_shown():
    """The same properties for groups of four: epochs are complete, resume is exact, hosts share a batch."""
    order = np.concatenate([batch["image"][:, 0, 0, 0] for batch in batches(5, group=4)])
    groups = order.reshape(-1, 4)
    np.testing.assert_array_equal(groups - groups[:, :1], np.tile(np.arange(4), (10, 1)))
    assert set(groups[:, 0]) == {0, 4, 8, 12, 16}
    assert sorted(order[:20]) == sorted(order[20:]) == list(range(20))
    assert [batch["index"].tolist() for batch in batches(2, group=4)] == [list(range(8))] * 2
    global_batches = batches(4, group=4)
    assert all(equal(a, b) for a, b in zip(global_batches[1:], batches(3, group=4, start_step=1)))
    hosts = [batches(3, group=4, local_shards=shards, num_shards=4) for shards in ((0, 1), (2, 3))]
    for batch, *halves in zip(global_batches, *hosts):
        assert equal(batch, {name: np.concatenate([half[name] for half in halves]) for name in batch})
    with pytest.raises(ValueError, match="split a group of 4"):
        batches(1, group=4, local_shards=(0, 2), num_shards=4)


def test_two_hosts_share_the_batch_of_one():
    """For any assignment of shards, and for a resume with another number of hosts."""
    global_batches = batches(3)
    for shards in ((0, 1), (2, 3), (0, 2), (1, 2, 3)):
        for batch, local_batch in zip(global_batches, batches(3, local_shards=shards, num_shards=4), strict=True):
            rows = np.arange(8).reshape(4, 2)[list(shards)].ravel()
            assert equal(local_batch, {name: all_rows[rows] for name, all_rows in batch.items()})
    (resumed_batch,) = batches(1, local_shards=(3,), num_shards=4, start_step=2)
    assert equal(resumed_batch, {name: rows[6:] for name, rows in global_batches[2].items()})


def test_few_batches_are_read_ahead():
    """The one in use and those that are kept, so that memory is bounded."""
    reads, lengths = [], [-1]

    class LoggedRows(Rows):
        def __getitem__(self, i):
            reads.append(i)
            return super().__getitem__(i)

    iterator = Batches(LoggedRows(), TOKENIZER, batch_size=8, seed=3)
    next(iterator)
    while lengths[-1] < len(reads):
        lengths.append(len(reads))
        time.sleep(0.3)
    iterator.close()
    assert 8 < len(reads) <= 8 * (PREFETCH_BATCHES + 1)
