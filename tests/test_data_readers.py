"""Folders of every layout: written by the exporters or by hand, and read back."""

import numpy as np
import pytest
from folders import picture, voc_xml

from ssdkern.data import (
    SyntheticScenes,
    open_dataset,
    summarize,
    write_coco,
    write_voc,
    write_yolo,
)

WRITERS = {"voc": write_voc, "coco": write_coco, "yolo": write_yolo}
SIZE = (72, 96)


def scenes(count, seed):
    return SyntheticScenes(count, SIZE, seed, num_classes=4)


@pytest.mark.parametrize("kind", WRITERS)
def test_round_trip(tmp_path, kind):
    sets = {"train": scenes(6, 0), "val": scenes(3, 1)}
    folder = WRITERS[kind](sets, tmp_path / "set", suffix=".png")
    for split, wanted in sets.items():
        found = open_dataset(folder, split)
        assert (found.format, found.splits) == (kind, ["train", "val"])
        assert len(found) == len(wanted)
        assert not found.problems and not found.notes
        # VOC folders do not state an order of classes: it is alphabetical there
        names = sorted(wanted.class_names) if kind == "voc" else wanted.class_names
        assert found.class_names == names
        for ours, theirs in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(ours.image, theirs.image)
            np.testing.assert_allclose(ours.boxes, theirs.boxes, atol=1e-4)
            assert [names[k - 1] for k in ours.labels] == [
                wanted.class_names[k - 1] for k in theirs.labels
            ]
            assert ours.size == SIZE and ours.boxes.dtype == np.float32
            assert ours.labels.dtype == np.int64 and not ours.difficult.any()
            np.testing.assert_allclose(ours.area, theirs.area, rtol=1e-4)


@pytest.mark.parametrize("kind", WRITERS)
def test_test_falls_back_on_val_and_says_so(tmp_path, kind):
    folder = WRITERS[kind]({"train": scenes(4, 0), "val": scenes(2, 1)}, tmp_path)
    found = open_dataset(folder, "test")
    assert len(found) == 2
    assert "no test split: val stands in for it" in summarize(found)
    held = open_dataset(folder, "val", val_fraction=0.25)
    assert len(held) == 1 and "train" in held.paths[0]
    with pytest.raises(ValueError, match=r"want a split of .*'train', 'val'.*, got 'extra'"):
        open_dataset(folder, "extra")


@pytest.mark.parametrize("kind", WRITERS)
def test_val_is_held_back_from_train(tmp_path, kind):
    folder = WRITERS[kind]({"train": scenes(20, 0)}, tmp_path)
    train, val = open_dataset(folder, "train"), open_dataset(folder, "val")
    assert (len(train), len(val)) == (16, 4)
    assert not set(train.paths) & set(val.paths)
    assert "4 of 20 pictures of train held back as val" in train.notes[0]
    assert open_dataset(folder, "val").paths == val.paths
    assert len(open_dataset(folder, "val", val_fraction=0.5)) == 10
    assert len(open_dataset(folder, "train+val")) == 20


def test_test_stands_in_for_val_unless_told_otherwise(tmp_path):
    folder = write_voc({"train": scenes(10, 0), "test": scenes(3, 1)}, tmp_path)
    assert len(open_dataset(folder, "train")) == 10
    val = open_dataset(folder, "val")
    assert val.paths == open_dataset(folder, "test").paths
    assert "test stands in for it" in val.notes[0]
    held = open_dataset(folder, "val", val_fraction=0.3)
    rest = open_dataset(folder, "train", val_fraction=0.3)
    assert (len(rest), len(held)) == (7, 3)
    assert len(open_dataset(folder, "test", val_fraction=0.3)) == 3


def test_two_formats_need_a_word(tmp_path):
    picture(tmp_path / "a.jpg")
    voc_xml(tmp_path / "a.xml", [("cat", (1, 2, 11, 12), 0)])
    (tmp_path / "a.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    with pytest.raises(ValueError, match=r"want one format, got \['voc', 'yolo'\]"):
        open_dataset(tmp_path)
    assert open_dataset(tmp_path, format="yolo").format == "yolo"
    with pytest.raises(ValueError, match="want format of"):
        open_dataset(tmp_path, format="kitti")


def test_a_folder_without_annotations(tmp_path):
    picture(tmp_path / "a.jpg")
    with pytest.raises(ValueError, match=r"want VOC xml.*got none in .*\(1 pictures\)"):
        open_dataset(tmp_path)
    with pytest.raises(ValueError, match="want a folder"):
        open_dataset(tmp_path / "a.jpg")
