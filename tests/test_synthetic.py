"""Synthetic scenes: boxes are where the shapes are, and nothing but the arguments matters."""

import numpy as np
import pytest

from ssdkern.data import SyntheticScenes, summarize
from ssdkern.data.shapes import SHAPES, draw_shape


def test_same_arguments_same_scenes():
    one, other = SyntheticScenes(5, (90, 120), seed=2), SyntheticScenes(50, (90, 120), seed=2)
    for a, b in zip(one, other, strict=False):
        np.testing.assert_array_equal(a.image, b.image)
        np.testing.assert_array_equal(a.boxes, b.boxes)
        np.testing.assert_array_equal(a.labels, b.labels)
    held_back = SyntheticScenes(5, (90, 120), seed=3)
    assert not np.array_equal(one[0].image, held_back[0].image)


def test_protocol():
    scenes = SyntheticScenes(60, (90, 120), num_classes=4)
    assert scenes.class_names == list(SHAPES[:4])
    for sample in scenes:
        assert sample.image.shape == (90, 120, 3) and sample.image.dtype == np.uint8
        assert sample.size == (90, 120)
        assert sample.boxes.dtype == np.float32 and sample.boxes.shape[1:] == (4,)
        assert sample.labels.dtype == np.int64 and len(sample.labels) == len(sample.boxes)
        assert (sample.boxes[:, 2:] > sample.boxes[:, :2]).all()
        assert (sample.boxes >= 0).all() and (sample.boxes <= [120, 90, 120, 90]).all()
        assert ((sample.labels >= 1) & (sample.labels <= 4)).all()
    assert scenes[-1].image_id == 59
    with pytest.raises(IndexError):
        scenes[60]


def test_classes_sizes_and_numbers_vary():
    scenes = SyntheticScenes(200, (128, 128), seed=1)
    samples = list(scenes)
    counts = np.bincount(np.concatenate([sample.labels for sample in samples]))[1:]
    assert len(counts) == 6 and counts.min() > 0.6 * counts.mean()
    boxes = np.concatenate([sample.boxes for sample in samples])
    sides = np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(1))
    assert np.percentile(sides, 5) < 14 and np.percentile(sides, 98) > 100
    numbers = np.array([len(sample.boxes) for sample in samples])
    assert 2 <= (numbers == 0).sum() <= 25 and numbers.max() >= 7
    overlaps = 0
    for sample in samples:
        for i, a in enumerate(sample.boxes):
            for b in sample.boxes[i + 1 :]:
                overlaps += (np.minimum(a[2:], b[2:]) > np.maximum(a[:2], b[:2])).all()
    assert overlaps > 100


@pytest.mark.parametrize("shape", SHAPES)
def test_outlines_fill_their_box(shape):
    rng = np.random.default_rng(0)
    for width, height in ((8, 8), (40, 60), (200, 150)):
        filled, edge = draw_shape(shape, width, height, rng)
        assert filled.shape == edge.shape == (height, width)
        rows, columns = np.flatnonzero(filled.any(1)), np.flatnonzero(filled.any(0))
        assert (rows[0], columns[0]) == (0, 0)
        assert (rows[-1], columns[-1]) == (height - 1, width - 1)
        assert (edge <= filled).all() and edge.any()
        assert 0.2 < (filled > 127).mean() <= 1


def test_boxes_enclose_what_is_painted(monkeypatch):
    """On black ground without grain, one object: the pixels that are not black are its box."""
    monkeypatch.setattr(
        "ssdkern.data.synthetic.ground", lambda h, w, rng: np.zeros((3, h, w), np.float32)
    )
    monkeypatch.setattr(
        "ssdkern.data.synthetic.finish",
        lambda image, rng: image.clip(0, 255).astype(np.uint8).transpose(1, 2, 0),
    )
    scenes = SyntheticScenes(60, (100, 140), max_objects=1, num_classes=8)
    seen = 0
    for sample in scenes:
        lit = sample.image.max(axis=2) > 40
        if not len(sample.boxes):
            continue
        seen += 1
        rows, columns = np.flatnonzero(lit.any(1)), np.flatnonzero(lit.any(0))
        wanted = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        assert np.abs(sample.boxes[0] - wanted).max() <= 2
    assert seen > 50


def test_hidden_objects_have_no_box(monkeypatch):
    """Counts, from the painting order, how much of each labelled object is still to be seen."""
    painted = []

    def paint(image, filled, edge, rng):
        number = len(painted) + 1
        painted.append(int((filled > 127).sum()))
        image[:, filled > 127] = number

    monkeypatch.setattr("ssdkern.data.synthetic.paint", paint)
    monkeypatch.setattr(
        "ssdkern.data.synthetic.ground", lambda h, w, rng: np.zeros((3, h, w), np.float32)
    )
    monkeypatch.setattr(
        "ssdkern.data.synthetic.finish", lambda image, rng: image.transpose(1, 2, 0)
    )
    scenes = SyntheticScenes(150, (100, 100), seed=4, max_objects=12)
    hidden = 0
    for index in range(len(scenes)):
        painted.clear()
        sample = scenes[index]
        left = np.bincount(sample.image[:, :, 0].astype(int).ravel(), minlength=len(painted) + 1)
        share = left[1:] / np.array(painted)
        assert not ((share > 0.1) & (share < 0.5)).any()
        assert len(sample.boxes) == (share >= 0.5).sum()
        hidden += (share <= 0.1).sum()
    assert hidden > 10


def test_summary_draws_nothing():
    text = summarize(SyntheticScenes(10**9, num_classes=2))
    assert text == "1000000000 pictures, 2 classes: circle, square"


def test_rejects():
    with pytest.raises(ValueError, match=r"want 1..8 classes, got 9"):
        SyntheticScenes(1, num_classes=9)
    with pytest.raises(ValueError, match=r"want at least one picture of 16 pixels, got 1 of"):
        SyntheticScenes(1, (10, 100))
