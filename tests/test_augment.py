"""The whole transform against pixels: boxes stay on what they are boxes of."""

import numpy as np
import pytest
import torch
from PIL import Image

from ssdkern.data import EvalTransform, Sample, TrainTransform, crops, open_image, render

MEAN = (123, 117, 104)


def marked(height=240, width=320, box=(60, 80, 200, 180)):
    """A green rectangle on a black picture, which nothing else is like."""
    image = np.zeros((height, width, 3), np.uint8)
    image[box[1] : box[3], box[0] : box[2]] = (0, 255, 0)
    boxes = np.array([box], np.float32)
    return Sample(boxes, np.array([3]), (height, width), image)


def green(image):
    """Bounding box of the green pixels, in parts of the picture; None without any."""
    mask = (image[1].int() - image[0].int() > 127).numpy()
    if not mask.any():
        return None
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) / mask.shape[0]


@pytest.mark.parametrize("source", ["array", "jpeg"])
def test_boxes_follow_the_pixels(tmp_path, source):
    sample, size = marked(), 100
    if source == "jpeg":  # decoded at a fraction where it shrinks
        Image.fromarray(sample.image).save(tmp_path / "a.jpg", quality=95, subsampling=0)
        sample.pixels = lambda scale: open_image(tmp_path / "a.jpg", scale=scale)
    transform = TrainTransform(size, distort=False, flip_vertical=True)
    kept = 0
    for seed in range(400):
        image, boxes, labels = transform(sample, np.random.default_rng(seed))
        assert image.dtype == torch.uint8 and image.shape == (3, size, size)
        assert boxes.dtype == torch.float32 and labels.dtype == torch.int64
        seen = green(image)
        view = np.array(transform._view(sample.size, sample.boxes, np.random.default_rng(seed)))
        centre = [130, 130]
        assert len(boxes) == ((view[:2] <= centre) & (centre <= view[2:])).all()
        if len(boxes):
            kept += 1
            assert labels.tolist() == [3]
            assert np.abs(seen - boxes[0].numpy()).max() < 1.6 / size
    assert 300 < kept < 400


def test_without_the_host_module_it_is_the_same(tmp_path, monkeypatch):
    y, x = np.mgrid[:240, :320]
    waves = np.stack([np.sin(x / 9 + y / 30), np.cos(y / 13), np.sin((x + y) / 20)], -1)
    Image.fromarray((waves * 120 + 128).astype(np.uint8)).save(tmp_path / "a.jpg")
    sample, transform = marked(), TrainTransform(100, flip_vertical=True)
    sample.pixels = lambda scale: open_image(tmp_path / "a.jpg", scale=scale)
    ours = [transform(sample, np.random.default_rng(seed)) for seed in range(60)]
    for module in (crops, render):
        monkeypatch.setattr(module, "host", lambda: None)
    for seed, (image, boxes, labels) in enumerate(ours):
        slow, slow_boxes, slow_labels = transform(sample, np.random.default_rng(seed))
        assert torch.equal(boxes, slow_boxes) and torch.equal(labels, slow_labels)
        away = (image.int() - slow.int()).abs()
        # a pixel on the border of two areas may count to either
        assert (away > 6).float().mean() < 0.01 and away.float().mean() < 0.7


@pytest.mark.parametrize("augment", ["flip", "none"])
def test_milder_augmentation(augment):
    sample, transform = marked(), TrainTransform(160, augment)
    found = [transform(sample, np.random.default_rng(seed)) for seed in range(200)]
    flipped = np.array([boxes[0, 0] != 60 / 320 for _, boxes, _ in found])
    plain = EvalTransform(160)(sample)
    for (image, boxes, _), flip in zip(found, flipped, strict=True):
        wanted = plain[1].clone()
        if flip:
            wanted[:, [0, 2]] = 1 - wanted[:, [2, 0]]
        assert torch.equal(image, plain[0].flip(2) if flip else plain[0])
        torch.testing.assert_close(boxes, wanted)
    assert flipped.sum() == 0 if augment == "none" else 70 < flipped.sum() < 130


def test_the_expanded_part_has_the_mean_colour():
    sample = marked()
    sample.pixels = np.full_like(sample.image, 7)
    transform = TrainTransform(64, distort=False, crop=False)
    shares = []
    for seed in range(300):
        image, boxes, _ = transform(sample, np.random.default_rng(seed))
        fill = (image == torch.tensor(MEAN, dtype=torch.uint8)[:, None, None]).all(0)
        assert bool((fill | (image == 7).all(0)).all())
        assert len(boxes) == 1
        shares.append(float(1 - fill.float().mean()))
    assert 0.4 < np.mean(np.array(shares) == 1) < 0.6
    assert min(shares) < 0.08


def test_eval_resize_is_that_of_pillow():
    noise = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    sample = Sample(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), (60, 90), noise)
    for size in (30, 75, 200):
        found = EvalTransform(size)(sample)[0].permute(1, 2, 0).numpy().astype(int)
        wanted = np.asarray(Image.fromarray(noise).resize((size, size), Image.Resampling.BILINEAR))
        assert np.abs(found - wanted).max() <= 1


def test_crowds_are_left_out_and_difficult_kept():
    boxes = np.array([[0, 0, 50, 50], [10, 10, 90, 90]], np.float32)
    for crowds, count in ((False, 2), (True, 1)):
        difficult = np.array([False, True])
        image = np.zeros((100, 100, 3), np.uint8)
        sample = Sample(
            boxes, np.array([1, 2]), (100, 100), image, difficult=difficult, crowds=crowds
        )
        for transform in (EvalTransform(32), TrainTransform(32, "none")):
            assert transform(sample, np.random.default_rng(0))[2].tolist() == [1, 2][:count]


def test_extreme_pictures():
    for height, width in ((1, 1), (1, 500), (700, 2), (3, 3)):
        image = np.full((height, width, 3), 200, np.uint8)
        for boxes in (np.zeros((0, 4)), np.array([[0, 0, width, height]])):
            labels = np.ones(len(boxes), np.int64)
            sample = Sample(boxes.astype(np.float32), labels, (height, width), image)
            for seed in range(60):
                found, kept, _ = TrainTransform(50)(sample, np.random.default_rng(seed))
                assert found.shape == (3, 50, 50) and bool(((kept >= 0) & (kept <= 1)).all())


def test_arguments_are_left_alone():
    sample = marked()
    before = sample.image.copy(), sample.boxes.copy()
    for seed in range(20):
        TrainTransform(64)(sample, np.random.default_rng(seed))
    np.testing.assert_array_equal(sample.image, before[0])
    np.testing.assert_array_equal(sample.boxes, before[1])


def test_rejects():
    for size in (0, 1.5, "300"):
        with pytest.raises(ValueError, match="want size as a positive whole number"):
            TrainTransform(size)
    with pytest.raises(ValueError, match="want augment of ssd, flip, none, got 'all'"):
        TrainTransform(300, "all")
    with pytest.raises(ValueError, match="want max_expand >= 1"):
        TrainTransform(300, max_expand=0.5)
