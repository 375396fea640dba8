"""YOLO folders of every layout, and planted faults, told with their line."""

import os
import shutil

import numpy as np
import pytest
from folders import picture

from ssdkern.data import SyntheticScenes, open_dataset, write_yolo


def test_yolo_layouts(tmp_path):
    source = write_yolo(
        {"train": SyntheticScenes(3, (72, 96), 0), "val": SyntheticScenes(2, (72, 96), 1)},
        tmp_path / "a",
    )
    names = open_dataset(source).class_names

    # train/images, train/labels, and a data.yaml that leads one folder up
    other = tmp_path / "b"
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            shutil.copytree(source / kind / split, other / split / kind)
    lines = ["train: ../train/images", "val: ../val/images", f"nc: {len(names)}", f"names: {names}"]
    (other / "data.yaml").write_text("\n".join(lines))
    assert [len(open_dataset(other, s)) for s in ("train", "val")] == [3, 2]
    np.testing.assert_array_equal(open_dataset(other).boxes, open_dataset(source).boxes)

    # everything in one folder, with classes.txt
    flat = tmp_path / "c"
    shutil.copytree(source / "images" / "train", flat)
    shutil.copytree(source / "labels" / "train", flat, dirs_exist_ok=True)
    (flat / "classes.txt").write_text("\n".join(names))
    found = open_dataset(flat, "train+val")
    assert len(found) == 3 and found.class_names == names
    assert len(found.boxes) == len(open_dataset(source).boxes)
    (flat / "classes.txt").unlink()
    assert open_dataset(flat).class_names[0] == "0"
    assert "called by their numbers" in open_dataset(flat).notes[-1]

    # lists of pictures
    (source / "train.txt").write_text("./images/train/train_000001.jpg\n")
    config = (source / "data.yaml").read_text().replace("train: images/train", "train: train.txt")
    (source / "data.yaml").write_text(config)
    assert open_dataset(source).ids == ["train_000001"]


def test_yolo_outlines_become_boxes(tmp_path):
    picture(tmp_path / "images" / "a.png", (100, 50))
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text("1 0.1 0.2 0.5 0.2 0.5 0.8\n")
    (tmp_path / "classes.txt").write_text("one\ntwo\n")
    sample = open_dataset(tmp_path)[0]
    np.testing.assert_allclose(sample.boxes, [[10, 10, 50, 40]], atol=1e-4)
    assert sample.labels.tolist() == [2]


def yolo(tmp_path, rows, config="names: [cat, dog]\ntrain: images\n"):
    picture(tmp_path / "images" / "a.jpg", (100, 50))
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text(rows)
    (tmp_path / "data.yaml").write_text(config)
    return tmp_path


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("0 .5 .5 .1 .1\n2 .5 .5 .1 .1", r"a.txt:2: want a class of 0..1, got 2"),
        ("0 .5 .5 .1 .1\n\n0 .5 .5 .1", r"a.txt:3: want class cx cy w h, got 4 values"),
        ("0 .5 x .1 .1", r"a.txt:1: want numbers, got '0 .5 x .1 .1'"),
        ("-1 .5 .5 .1 .1", r"a.txt:1: want a class number from 0 to 99999, got -1"),
        ("nan .5 .5 .1 .1", r"a.txt:1: want a class number from 0 to 99999, got nan"),
        ("0 50 50 10 10", r"a.txt:1: want parts of the picture in 0..1, got 50 50 10 10"),
    ],
)
def test_faulty_yolo(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        open_dataset(yolo(tmp_path, rows), "train+val")


def test_other_encodings(tmp_path):
    yolo(tmp_path, "0 .5 .5 .1 .1\n")
    (tmp_path / "labels" / "a.txt").write_bytes(b"0 .5 .5 .1 .1\n0 .5 .5 .1 .1 \xe9\n")
    with pytest.raises(ValueError, match=r"a.txt:2: want UTF-8 text, got byte 0xe9"):
        open_dataset(tmp_path, "train+val")


def test_bad_yolo_boxes_are_dropped_with_their_line(tmp_path):
    rows = "0 .5 .5 0 .1\n0 .5 .5 .1 .1\n0 .5 .5 .1 .1\n1 .95 .5 .2 .1\n1 nan .5 .2 .1\n"
    found = open_dataset(yolo(tmp_path, rows), "train+val")
    assert (found.dropped, found.clipped, len(found.boxes)) == (2, 1, 2)
    assert sorted(problem.line for problem in found.problems) == [1, 3, 4, 5]
    np.testing.assert_allclose(found[0].boxes, [[45, 22.5, 55, 27.5], [85, 22.5, 100, 27.5]], 1e-5)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("names: [a]\nnc: 2\ntrain: images", r"data.yaml:2: want nc = 1, .* got 2"),
        ("names: {1: a}\ntrain: images", r"data.yaml:1: want names numbered from 0, got \[1\]"),
        ("names: 3\ntrain: images", r"data.yaml:1: want names as a list, got 3"),
        ("names: [a]\ntrain: nowhere", r"data.yaml:2: want train to name a folder .* 'nowhere'"),
        ("names: [a]\ntrain: ../../etc", r"data.yaml:2: want train to name a folder"),
        ("names: [a\ntrain: images", r"data.yaml:2: want yaml"),
        ("names: !!python/object/apply:os.getcwd []\ntrain: images", r"data.yaml:1: want yaml"),
    ],
)
def test_faulty_data_yaml(tmp_path, config, message):
    with pytest.raises(ValueError, match=message):
        open_dataset(yolo(tmp_path, "0 .5 .5 .1 .1", config), "train+val")


def test_links_out_of_the_folder_need_a_word(tmp_path):
    outside = tmp_path / "outside"
    picture(outside / "a.jpg")
    inside = tmp_path / "set"
    (inside / "labels").mkdir(parents=True)
    (inside / "labels" / "a.txt").write_text("0 .5 .5 .1 .1\n")
    os.symlink(outside, inside / "images")
    with pytest.raises(ValueError, match=r"images: want files inside the data folder, got a link"):
        open_dataset(inside)
    assert len(open_dataset(inside, allow_outside=True)) == 1
    (inside / "images").unlink()
    os.symlink(outside / "a.jpg", inside / "a.jpg")
    with pytest.raises(ValueError, match=r"a.jpg: want files inside the data folder, got a link"):
        open_dataset(inside)
