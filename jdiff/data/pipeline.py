"""Records to batches: shuffled, one caption each, in an order that one integer describes.

Row i of the global batch of step s is element s * batch_size + i of an endless, seeded sequence,
whatever the number of hosts or workers; so resuming means starting to read at that element.
Records may be shuffled in groups that follow each other on disk and stay together in a batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import grain
import numpy as np
from absl import flags
from grain.experimental import ElasticIterator

from jdiff.data.tokenizer import Tokenizer

Batch = dict[str, np.ndarray]


class _Groups:
    """Records as lists of ``group`` that follow each other; what is left over at the end is not read."""

    def __init__(self, records, group: int):
        self._records, self._group = records, group

    def __len__(self) -> int:
        return len(self._records) // self._group

    def __getitem__(self, i: int) -> list[dict]:
        return [self._records[i * self._group + j] for j in range(self._group)]


class _Own(grain.MapDataset):
    """Of each ``together`` elements of a sequence that follow each other, some."""

    def __init__(self, parent: grain.MapDataset, together: int, own: Sequence[int]):
        super().__init__(parent)
        self._together, self._own = together, own

    def __len__(self) -> int:
        return len(self._parent) // self._together * len(self._own)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.slice(index)
        batch, place = divmod(index, len(self._own))
        return self._parent[batch * self._together + self._own[place]]


def own_groups(batch_size: int, group: int, own: Sequence[int], parts: int) -> list[int]:
    """Which groups of a batch a host reads that holds some of ``parts`` equal parts of its rows, which follow on each
    other. Raises ``ValueError`` where it would read a part of a group."""
    rows = np.arange(batch_size).reshape(parts, -1)[list(own)].reshape(-1)
    groups = np.unique(rows // group)
    if len(groups) * group > len(rows):
        raise ValueError(f"parts {list(own)} of {parts} of {batch_size} rows are no whole groups of {group}")
    return groups.tolist()


class Batches:
    """An endless iterator of training batches.

    Each is {"image": u8 (b,h,w,3), "tokens": i32 (b,n), "mask": bool (b,n), "index": i32 (b,)}, where
    ``index`` is a row's place in the global batch.
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
        own: Sequence[int] = (0,),
        parts: int = 1,
    ):
        """records: random access.   group: how many stay together; it divides batch_size.

        own: of ``parts`` equal parts of the rows of a batch, those that this host reads, which must be whole groups.
        """
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # grain reads absl flags even in programs that have none

        def draw_captions(rows: list[dict], generator: np.random.Generator) -> dict:
            drawn = [row["captions"][generator.integers(len(row["captions"]))].decode() for row in rows]
            return {"image": np.stack([row["image"] for row in rows]), "captions": drawn}

        def encode(place: int, drawn: dict) -> Batch:
            tokens, mask = tokenizer.encode(drawn["captions"])
            index = np.arange(group, dtype=np.int32) + np.int32(place * group % batch_size)
            return {"image": drawn["image"], "tokens": tokens, "mask": mask, "index": index}

        shuffled = grain.MapDataset.source(_Groups(records, group)).seed(seed).shuffle().repeat(None)
        encoded = shuffled.random_map(draw_captions).map_with_index(encode)
        groups = own_groups(batch_size, group, own, parts)
        read = _Own(encoded, batch_size // group, groups)
        alone = grain.sharding.ShardOptions(shard_index=0, shard_count=1)
        self._iterator = iter(ElasticIterator(read, len(groups), alone))
        self._iterator.set_state({"global_next_index": start_step * len(groups)})

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        return {name: rows.reshape(-1, *rows.shape[2:]) for name, rows in next(self._iterator).items()}

    def close(self) -> None:
        self._iterator.close()
