"""Records to training batches: shuffled, with one caption each, and resumable from the step number alone.

Row i of the global batch of step s is element s * batch_size + i of an endless, seeded sequence, for any number of
hosts. To resume, a host starts reading at that element. Consecutive records on disk may form groups, which are
shuffled as a whole and stay together in a batch. A record that cannot be read is replaced by another one, always the
same, so that batches keep their sizes and their order.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import grain
import numpy as np
from absl import flags
from grain.experimental import ElasticIterator

from jdiff.data.records import BrokenRecordError
from jdiff.data.tokenizer import Tokenizer

Batch = dict[str, np.ndarray]
# Batches that are read ahead, by as many threads. Grain's default is 500, which is 75 GB of 1,000 images of 224 x 224.
PREFETCH_BATCHES = 16
NUM_RECENT = 100  # batches whose records are remembered
MAX_PROBLEM = 400  # characters of it
MAX_REPLACEMENTS = 8  # broken ones in a row, after which the data is


class _Groups:
    """Records in lists of ``group`` consecutive ones; an incomplete last group is dropped."""

    def __init__(self, records, group: int):
        self._records, self._group = records, group

    def __len__(self) -> int:
        return len(self._records) // self._group

    def __getitem__(self, i: int) -> list[dict]:
        return [self._read(i * self._group + j) for j in range(self._group)]

    def _read(self, i: int) -> dict:
        """A record, or its replacement, with why it is one as "problem"; "" where it is none."""
        problem = ""
        for attempt in range(MAX_REPLACEMENTS):
            try:
                record = self._records[i if attempt == 0 else replacement(i, attempt) % len(self._records)]
            except BrokenRecordError as error:
                problem = problem or f"{error.reason}\0{error}"
                if attempt + 1 == MAX_REPLACEMENTS:
                    raise
            else:
                return {**record, "problem": problem, "record": i}
        raise AssertionError


def replacement(i: int, attempt: int) -> int:
    """A number that takes the place of a record's index, always the same, far from what was damaged with it."""
    return int.from_bytes(hashlib.sha256(f"{i} {attempt}".encode()).digest()[:8])


class _LocalGroups(grain.MapDataset):
    """From each global batch of ``groups_per_batch`` elements, those that this host reads."""

    def __init__(self, parent: grain.MapDataset, groups_per_batch: int, group_indices: Sequence[int]):
        super().__init__(parent)
        self._groups_per_batch, self._group_indices = groups_per_batch, group_indices

    def __len__(self) -> int:
        return len(self._parent) // self._groups_per_batch * len(self._group_indices)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.slice(index)
        batch, i = divmod(index, len(self._group_indices))
        return self._parent[batch * self._groups_per_batch + self._group_indices[i]]


def local_groups(batch_size: int, group: int, local_shards: Sequence[int], num_shards: int) -> list[int]:
    """The indices of a batch's groups that a host reads.

    group: records per group.   local_shards: the host's shards, of ``num_shards`` equal shards of a batch's rows.
    Raises ``ValueError`` if the shards would split a group.
    """
    rows = np.arange(batch_size).reshape(num_shards, -1)[list(local_shards)].reshape(-1)
    groups = np.unique(rows // group)
    if len(groups) * group > len(rows):
        raise ValueError(
            f"shards {list(local_shards)} of {num_shards} of a batch of {batch_size} rows split a group of {group}"
        )
    return groups.tolist()


class Batches:
    """An endless iterator of training batches.

    Each is {"image": u8 (b,h,w,3), "tokens": i32 (b,n), "mask": bool (b,n), "index": i32 (b,)} with this host's rows;
    ``index`` is a row's index in the global batch.
    """

    def __init__(
        self,
        records,
        tokenizer: Tokenizer,
        *,
        batch_size: int,
        seed: int,
        start_step: int = 0,
        group: int = 1,
        local_shards: Sequence[int] = (0,),
        num_shards: int = 1,
        on_broken: Callable[[str, str], None] = lambda reason, problem: None,
    ):
        """records: a random-access sequence.   batch_size: rows of the global batch.   start_step: step to resume at.

        group: consecutive records that stay together in a batch; it divides batch_size.
        local_shards: the shards this host reads, of ``num_shards`` equal shards of a batch's rows; whole groups only.
        on_broken: called for each row of a batch whose record was replaced, with the reason and a sentence.
        """
        self._on_broken = on_broken
        self.recent_records: deque[list[int]] = deque(maxlen=NUM_RECENT)  # indices of this host's rows, by batch
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # grain reads absl flags even in programs that define none

        def draw_captions(rows: list[dict], generator: np.random.Generator) -> dict:
            captions = [row["captions"][generator.integers(len(row["captions"]))].decode() for row in rows]
            return {
                "image": np.stack([row["image"] for row in rows]),
                "captions": captions,
                "problem": np.array([row["problem"] for row in rows]),
                "record": np.array([row["record"] for row in rows]),
            }

        def encode(group_index: int, rows: dict) -> Batch:
            tokens, mask = tokenizer.encode(rows["captions"])
            index = np.arange(group, dtype=np.int32) + np.int32(group_index * group % batch_size)
            return {
                "image": rows["image"],
                "tokens": tokens,
                "mask": mask,
                "index": index,
                "problem": rows["problem"].astype(f"<U{MAX_PROBLEM}"),
                "record": rows["record"],
            }

        groups = grain.MapDataset.source(_Groups(records, group)).seed(seed).shuffle().repeat(None)
        groups = groups.random_map(draw_captions).map_with_index(encode)
        group_indices = local_groups(batch_size, group, local_shards, num_shards)
        groups = _LocalGroups(groups, batch_size // group, group_indices)
        one_shard = grain.sharding.ShardOptions(shard_index=0, shard_count=1)
        read = grain.ReadOptions(num_threads=PREFETCH_BATCHES, prefetch_buffer_size=PREFETCH_BATCHES)
        self._iterator = iter(ElasticIterator(groups, len(group_indices), one_shard, read_options=read))
        self._iterator.set_state({"global_next_index": start_step * len(group_indices)})

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        batch = {name: rows.reshape(-1, *rows.shape[2:]) for name, rows in next(self._iterator).items()}
        self.recent_records.append(batch.pop("record").tolist())
        for text in batch.pop("problem"):
            if text:
                self._on_broken(*text.split("\0", 1))
        return batch

    def close(self) -> None:
        self._iterator.close()
