"""Records on disk: complete or refused, written once; rejected items are listed; copies are in one split."""

import hashlib
import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pytest

from jdiff.data.record_writer import RejectionLimitError, write_records
from jdiff.data.records import (
    BrokenRecordError,
    DatasetNotPreparedError,
    Example,
    Records,
    Rejected,
    dataset_name,
)
from jdiff.runtime.lock import DirectoryInUse


@dataclass(frozen=True)
class ToySource:
    """A source of ``good`` pictures and ``bad`` items."""

    good: int = 6
    bad: int = 0
    name: str = "toy"
    image_size: int = 4

    def identity(self):
        return {"good": self.good, "bad": self.bad}

    def splits(self):
        return ("train", "test")

    def examples(self, split):
        for i in range(self.good):
            image = np.full((4, 4, 3), 10 * i, np.uint8)
            yield Example(f"{split}/{i}", image, (f"picture {i}", "日本語 🐱"), {"number": i, "split": split})
        if split == "train":
            for i in range(self.bad):
                yield Rejected(f"broken/{i}", "The file is empty.")


def open_split(path, source, split):
    return Records(path, dataset_name(source)).split(split)


def test_records_round_trip(tmp_path):
    report = write_records(ToySource(), tmp_path)
    assert report.num_examples == {"train": 6, "test": 6}
    assert report.rejected == ()
    rows = open_split(tmp_path, ToySource(), "train")
    rows_by_key = {row["key"].decode(): row for row in (rows[i] for i in range(len(rows)))}
    assert set(rows_by_key) == {f"train/{i}" for i in range(6)}
    row = rows_by_key["train/3"]
    assert row["image"].shape == (4, 4, 3)
    assert (row["image"] == 30).all()
    assert [caption.decode() for caption in row["captions"]] == ["picture 3", "日本語 🐱"]
    assert '"number": 3' in row["metadata"].decode()
    captions = Records(tmp_path, dataset_name(ToySource())).captions("train")
    assert Counter(captions) == {f"picture {i}": 1 for i in range(6)} | {"日本語 🐱": 6}


def test_disable_shuffling_keeps_the_order_of_examples(tmp_path):
    @dataclass(frozen=True)
    class UnshuffledSource(ToySource):
        disable_shuffling: bool = True

    def order(source):
        path = tmp_path / type(source).__name__
        write_records(source, path)
        rows = open_split(path, source, "train")
        return [rows[i]["key"].decode() for i in range(len(rows))]

    keys = [f"train/{i}" for i in range(20)]
    assert order(UnshuffledSource(good=20)) == keys
    assert order(ToySource(good=20)) != keys


def test_rejected_items_are_reported_and_others_are_written(tmp_path):
    report = write_records(ToySource(bad=1), tmp_path, max_rejected=0.1)
    assert report.num_examples["train"] == 6
    assert report.rejected == (Rejected("broken/0", "The file is empty."),)
    report.report_file.unlink()
    report_again = write_records(ToySource(bad=1), tmp_path, max_rejected=0.1)  # read from disk
    assert report_again == report
    assert json.loads(report.report_file.read_text())["key"] == "broken/0"
    with pytest.raises(RejectionLimitError, match="1 of 13 items"):
        write_records(ToySource(bad=1), tmp_path, max_rejected=0.05)


def rejected_lines(path):
    (file,) = path.glob("captioned_images/*_rejected.jsonl")
    return file.read_text().splitlines()


def test_too_many_rejected_items_raise_and_leave_no_data(tmp_path):
    with pytest.raises(
        RejectionLimitError, match=r"3 of 15 items cannot be used.*max_rejected.*broken/0: The file is empty"
    ):
        write_records(ToySource(bad=3), tmp_path, max_rejected=0.1)
    assert len(rejected_lines(tmp_path)) == 3
    with pytest.raises(DatasetNotPreparedError, match="run `jdiff prepare`"):
        open_split(tmp_path, ToySource(bad=3), "train")


def test_a_split_of_only_broken_items_raises(tmp_path):
    with pytest.raises(RejectionLimitError, match="no item of the split 'train' can be used"):
        write_records(ToySource(good=0, bad=3), tmp_path, max_rejected=1.0)
    assert len(rejected_lines(tmp_path)) == 3


def test_other_settings_use_other_files():
    assert dataset_name(ToySource()) != dataset_name(ToySource(good=7))


def test_an_unknown_split_is_refused(tmp_path):
    write_records(ToySource(), tmp_path)
    with pytest.raises(DatasetNotPreparedError, match=r"no split 'dev' .*\['test', 'train'\]"):
        open_split(tmp_path, ToySource(), "dev")


def remove(path):
    path.unlink()


def truncate(path):
    path.write_bytes(path.read_bytes()[:-10])


@pytest.mark.parametrize("damage", [remove, truncate])
@pytest.mark.parametrize(
    "name",
    ["captioned_images-train.array_record-00000-of-00001", "dataset_info.json", "features.json", "complete.json"],
)
def test_records_that_are_partly_there_are_refused_and_written_again(tmp_path, name, damage):
    folder = write_records(ToySource(), tmp_path).folder
    damage(folder / name)
    with pytest.raises(DatasetNotPreparedError, match=rf"incomplete: {name} .*run `jdiff prepare` again"):
        open_split(tmp_path, ToySource(), "train")
    (folder.parent / "incomplete.ABC_1.1.0").mkdir()  # of a writer that was killed
    write_records(ToySource(), tmp_path)
    assert len(open_split(tmp_path, ToySource(), "train")) == 6
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_record_whose_bytes_were_changed_is_named(tmp_path):
    """Bytes of a shard other than padding are found to be changed, or decide nothing."""
    folder = write_records(ToySource(), tmp_path).folder
    shard = folder / "captioned_images-train.array_record-00000-of-00001"
    content = shard.read_bytes()
    rows = open_split(tmp_path, ToySource(), "train")
    truth = [rows[i]["image"].tolist() for i in range(6)]
    num_found = 0
    positions = [i for i, byte in enumerate(content) if byte]
    for position in positions[:: len(positions) // 50]:
        shard.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        try:
            dataset = Records(tmp_path, dataset_name(ToySource()))
            rows = dataset.split("train")
            assert [rows[i]["image"].tolist() for i in range(6)] == truth
            assert len(list(dataset.captions("train"))) == 12
        except BrokenRecordError as error:
            assert "split 'train'" in str(error) and len(list(dataset.captions("train"))) < 12
            num_found += 1
    assert num_found > 5


def test_of_several_writers_at_one_time_one_writes_and_the_others_are_refused(tmp_path):
    def write(_):
        try:
            return write_records(ToySource(), tmp_path)
        except DirectoryInUse:
            return None

    with ThreadPoolExecutor(3) as pool:
        reports = [report for report in pool.map(write, range(3)) if report is not None]
    assert reports and all(report == reports[0] == write(0) for report in reports)


@dataclass(frozen=True)
class UnsplitSource:
    """Pictures without splits; each of ``num`` different ones has two copies in other files."""

    num: int = 40
    test_fraction: float = 0.3
    name: str = "unsplit"
    image_size: int = 4

    def identity(self):
        return {"num": self.num, "size": self.image_size}

    def splits(self):
        return ()

    def examples(self, split):
        for i in range(self.num):
            image = np.full((self.image_size, self.image_size, 3), i, np.uint8)
            for copy in range(3):
                digest = hashlib.sha256(f"{i} {copy}".encode()).hexdigest()
                yield Example(f"{i}/{copy}", image, (f"picture {i}",), {}, digest)


def pictures_by_split(path, source):
    write_records(source, path)
    dataset = Records(path, dataset_name(source))
    return {split: sorted(dataset.captions(split)) for split in dataset.num_examples}


def test_copies_are_in_one_split_whatever_their_size(tmp_path):
    splits = pictures_by_split(tmp_path, UnsplitSource())
    counts = Counter(splits["train"]), Counter(splits["test"])
    assert not counts[0].keys() & counts[1].keys() and set((counts[0] + counts[1]).values()) == {3}
    assert 40 * 0.3 < len(counts[1]) < 40 * (1 - 0.7**3) + 10  # the smallest of three digests decides
    assert pictures_by_split(tmp_path, UnsplitSource(image_size=8)) == splits


def test_copies_are_counted_within_and_across_splits(tmp_path):
    assert write_records(UnsplitSource(), tmp_path).copies == {"within": 80, "across": 0}
    assert write_records(ToySource(), tmp_path).copies == {"within": 0, "across": 6}


def test_one_picture_alone_is_training_data(tmp_path):
    assert pictures_by_split(tmp_path, UnsplitSource(num=1, test_fraction=0.999)) == {"train": ["picture 0"] * 3}


def test_every_item_is_passed_on_once(tmp_path):
    for source, num in ((ToySource(bad=2), 14), (UnsplitSource(), 120)):
        items = []
        write_records(source, tmp_path, max_rejected=1.0, on_item=items.append)
        assert len({item.key for item in items}) == len(items) == num
