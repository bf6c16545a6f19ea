"""Records to batches: shuffled, one caption each, in an order that one integer describes.

Row i of the global batch of step s is element s * batch_size + i of an endless, seeded sequence,
whatever the number of hosts or workers; so resuming means starting to read at that element.
"""

from __future__ import annotations

from collections.abc import Iterator

import grain
import numpy as np
from absl import flags
from grain.experimental import ElasticIterator

from jdiff.data.tokenizer import Tokenizer

Batch = dict[str, np.ndarray]


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
        shard: int = 0,
        shards: int = 1,
    ):
        """records: random access.   shard of shards: which rows of the global batch this host reads."""
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # grain reads absl flags even in programs that have none

        def draw_caption(record: dict, generator: np.random.Generator) -> dict:
            captions = record["captions"]
            return {"image": record["image"], "caption": captions[generator.integers(len(captions))].decode()}

        def encode(place: int, drawn: dict) -> Batch:
            tokens, mask = tokenizer.encode([drawn["caption"]])
            index = np.int32(place % batch_size)
            return {"image": drawn["image"], "tokens": tokens[0], "mask": mask[0], "index": index}

        shuffled = grain.MapDataset.source(records).seed(seed).shuffle().repeat(None)
        encoded = shuffled.random_map(draw_caption).map_with_index(encode)
        options = grain.sharding.ShardOptions(shard_index=shard, shard_count=shards)
        self._iterator = iter(ElasticIterator(encoded, batch_size, options))
        self._iterator.set_state({"global_next_index": start_step * batch_size})

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        return next(self._iterator)

    def close(self) -> None:
        self._iterator.close()
