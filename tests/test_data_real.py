"""Real sets, where SSDKERN_TEST_DATA names their folder: the figures their authors give."""

import os
from pathlib import Path

import numpy as np
import pytest

from ssdkern.data import TrainTransform, check, make_loader, open_dataset, summarize

DATA = os.environ.get("SSDKERN_TEST_DATA")
pytestmark = pytest.mark.skipif(not DATA, reason="SSDKERN_TEST_DATA names no folder of real data")


def opened(name, split):
    return open_dataset(Path(DATA) / name, split)


def test_bccd():
    sets = {split: opened("bccd", split) for split in ("train", "val", "test", "trainval")}
    assert [len(found) for found in sets.values()] == [205, 87, 72, 292]
    assert sets["train"].class_names == ["Platelets", "RBC", "WBC"]
    dropped = sets["trainval"].problems + sets["test"].problems
    assert [(Path(p.file).stem, p.line) for p in sorted(dropped)] == [
        ("BloodImage_00338", 158),
        ("BloodImage_00343", 50),
    ]
    assert all("has zero area: dropped" in problem.message for problem in dropped)
    assert sum(found.dropped for found in sets.values()) == 4  # trainval holds train and val
    assert "BloodImage_00343.xml:50: RBC box" in summarize(sets["train"])
    for found in sets.values():
        check(found, decode=True)


def test_cards():
    train, test = opened("cards", "train"), opened("cards", "test")
    assert (len(train), len(test)) == (296, 67)
    assert train.class_names == test.class_names == ["ace", "jack", "king", "nine", "queen", "ten"]
    assert {Path(path).suffix for path in train.paths} == {".JPG", ".jpg"}
    assert opened("cards", "val").paths == test.paths
    for found in (train, test):
        assert not found.problems
        check(found, decode=True)


def test_tiny_coco_against_pycocotools(capsys):
    coco = pytest.importorskip("pycocotools.coco")
    for split in ("train", "val"):
        found = opened("tiny_coco", split)
        assert (len(found), len(found.class_names)) == (50, 80)
        truth = coco.COCO(found.annotation_file)
        assert found.category_ids == sorted(truth.cats)
        for index, image_id in enumerate(found.ids):
            sample, rows = found.annotation(index), truth.imgToAnns[image_id]
            image = truth.imgs[image_id]
            assert sample.size == (image["height"], image["width"])
            boxes = np.array([row["bbox"] for row in rows]).reshape(-1, 4)
            np.testing.assert_allclose(sample.boxes[:, :2], boxes[:, :2], atol=1e-4)
            sides = sample.boxes[:, 2:] - sample.boxes[:, :2]
            np.testing.assert_allclose(sides, boxes[:, 2:], atol=1e-3)
            names = [truth.cats[row["category_id"]]["name"] for row in rows]
            assert [found.class_names[label - 1] for label in sample.labels] == names
            assert sample.difficult.tolist() == [bool(row["iscrowd"]) for row in rows]
            np.testing.assert_allclose(sample.area, [row["area"] for row in rows], rtol=1e-6)
        check(found, decode=True)


@pytest.mark.parametrize("name", ["bccd", "cards", "tiny_coco"])
def test_an_epoch_of_training(name):
    found = opened(name, "train")
    loader = make_loader(found, TrainTransform(96), 16, workers=2)
    boxes = 0
    for batch in loader:
        assert batch.images.shape == (16, 3, 96, 96)
        assert bool(((batch.gt_boxes >= 0) & (batch.gt_boxes <= 1)).all())
        assert bool((batch.gt_boxes[:, 2:] > batch.gt_boxes[:, :2]).all())
        assert bool(((batch.gt_labels >= 1) & (batch.gt_labels <= len(found.class_names))).all())
        boxes += len(batch.gt_labels)
    assert boxes > len(found.labels) / 3
