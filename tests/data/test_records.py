"""Records on disk: rejected items are listed, too many of them raise, and nothing is written twice."""

from dataclasses import dataclass

import numpy as np
import pytest

from jdiff.data import records
from jdiff.data.records import CaptionedImages, DatasetNotPreparedError, Example, Rejected, RejectionLimitError


@dataclass(frozen=True)
class ToySource:
    """A source of ``good`` pictures and ``bad`` items."""

    good: int = 6
    bad: int = 0
    name: str = "toy"

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


def builder(path, source, **options):
    return CaptionedImages(source=source, data_dir=str(path), image_size=4, **options)


def test_records_round_trip(tmp_path):
    report = records.write_records(builder(tmp_path, ToySource()))
    assert report.num_examples == {"train": 6, "test": 6}
    assert report.rejected == ()
    rows = records.records(builder(tmp_path, ToySource()), "train")
    rows_by_key = {row["key"].decode(): row for row in (rows[i] for i in range(len(rows)))}
    assert set(rows_by_key) == {f"train/{i}" for i in range(6)}
    row = rows_by_key["train/3"]
    assert row["image"].shape == (4, 4, 3)
    assert (row["image"] == 30).all()
    assert [caption.decode() for caption in row["captions"]] == ["picture 3", "日本語 🐱"]
    assert '"number": 3' in row["metadata"].decode()


def test_disable_shuffling_keeps_the_order_of_examples(tmp_path):
    @dataclass(frozen=True)
    class UnshuffledSource(ToySource):
        disable_shuffling: bool = True

    def order(source):
        dataset = builder(tmp_path / type(source).__name__, source)
        records.write_records(dataset)
        rows = records.records(dataset, "train")
        return [rows[i]["key"].decode() for i in range(len(rows))]

    keys = [f"train/{i}" for i in range(20)]
    assert order(UnshuffledSource(good=20)) == keys
    assert order(ToySource(good=20)) != keys


def test_rejected_items_are_reported_and_others_are_written(tmp_path):
    dataset = builder(tmp_path, ToySource(bad=1), max_rejected=0.1)
    report = records.write_records(dataset)
    assert report.num_examples["train"] == 6
    assert report.rejected == (Rejected("broken/0", "The file is empty."),)
    assert records.write_records(builder(tmp_path, ToySource(bad=1))).rejected == report.rejected  # read from disk


def test_too_many_rejected_items_raise_and_leave_no_data(tmp_path):
    dataset = builder(tmp_path, ToySource(bad=3), max_rejected=0.1)
    with pytest.raises(
        RejectionLimitError, match=r"3 of 15 items cannot be used.*max_rejected.*broken/0: The file is empty"
    ):
        records.write_records(dataset)
    assert len(dataset.report_path.read_text().splitlines()) == 3
    with pytest.raises(DatasetNotPreparedError, match="run `jdiff prepare`"):
        records.records(builder(tmp_path, ToySource(bad=3)), "train")


def test_a_split_of_only_broken_items_raises(tmp_path):
    dataset = builder(tmp_path, ToySource(good=0, bad=3), max_rejected=1.0)
    with pytest.raises(RejectionLimitError, match="no item of the split 'train' can be used"):
        records.write_records(dataset)
    assert len(dataset.report_path.read_text().splitlines()) == 3


def test_other_settings_use_other_files(tmp_path):
    assert builder(tmp_path, ToySource()).data_dir != builder(tmp_path, ToySource(good=7)).data_dir


def test_an_unknown_split_is_refused(tmp_path):
    records.write_records(builder(tmp_path, ToySource()))
    with pytest.raises(DatasetNotPreparedError, match=r"no split 'dev' .*\['test', 'train'\]"):
        records.records(builder(tmp_path, ToySource()), "dev")
