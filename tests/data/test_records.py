"""Records on disk: what was rejected is named, too much of it stops, and nothing is written twice."""

from dataclasses import dataclass

import numpy as np
import pytest

from jdiff.data import records
from jdiff.data.records import CaptionedImages, Example, NotPrepared, Rejected, TooManyRejected


@dataclass(frozen=True)
class Few:
    """A source of ``good`` pictures and ``bad`` items."""

    good: int = 6
    bad: int = 0
    name: str = "few"

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


def test_what_is_written_is_read_back(tmp_path):
    report = records.prepare(builder(tmp_path, Few()))
    assert report.written == {"train": 6, "test": 6}
    assert report.rejected == ()
    rows = records.records(builder(tmp_path, Few()), "train")
    found = {row["key"].decode(): row for row in (rows[i] for i in range(len(rows)))}
    assert set(found) == {f"train/{i}" for i in range(6)}
    row = found["train/3"]
    assert row["image"].shape == (4, 4, 3)
    assert (row["image"] == 30).all()
    assert [caption.decode() for caption in row["captions"]] == ["picture 3", "日本語 🐱"]
    assert '"number": 3' in row["metadata"].decode()


def test_an_order_that_means_something_is_kept(tmp_path):
    @dataclass(frozen=True)
    class Ordered(Few):
        ordered: bool = True

    def order(source):
        made = builder(tmp_path / type(source).__name__, source)
        records.prepare(made)
        rows = records.records(made, "train")
        return [rows[i]["key"].decode() for i in range(len(rows))]

    keys = [f"train/{i}" for i in range(20)]
    assert order(Ordered(good=20)) == keys
    assert order(Few(good=20)) != keys


def test_rejected_items_are_named_and_the_rest_goes_on(tmp_path):
    made = builder(tmp_path, Few(bad=1), max_rejected=0.1)
    report = records.prepare(made)
    assert report.written["train"] == 6
    assert report.rejected == (Rejected("broken/0", "The file is empty."),)
    assert records.prepare(builder(tmp_path, Few(bad=1))).rejected == report.rejected  # read back, not made again


def test_too_many_stop_with_a_sentence_and_leave_no_data(tmp_path):
    made = builder(tmp_path, Few(bad=3), max_rejected=0.1)
    with pytest.raises(TooManyRejected, match=r"3 of 15 items cannot be used .*broken/0: The file is empty"):
        records.prepare(made)
    assert len(made.report_path.read_text().splitlines()) == 3
    with pytest.raises(NotPrepared, match="run `jdiff prepare`"):
        records.records(builder(tmp_path, Few(bad=3)), "train")


def test_a_split_of_broken_items_alone_stops_with_a_sentence(tmp_path):
    made = builder(tmp_path, Few(good=0, bad=3), max_rejected=1.0)
    with pytest.raises(TooManyRejected, match="no item of the split 'train' can be used"):
        records.prepare(made)
    assert len(made.report_path.read_text().splitlines()) == 3


def test_other_settings_are_other_files(tmp_path):
    assert builder(tmp_path, Few()).data_dir != builder(tmp_path, Few(good=7)).data_dir


def test_unknown_splits_are_named(tmp_path):
    records.prepare(builder(tmp_path, Few()))
    with pytest.raises(NotPrepared, match=r"no split 'dev' .*\['test', 'train'\]"):
        records.records(builder(tmp_path, Few()), "dev")
