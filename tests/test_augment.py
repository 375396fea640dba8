"""The augmentation against the rules of the reference, written out slowly, and against pixels."""

import colorsys

import numpy as np
import pytest
import torch
from PIL import Image

from ssdkern.data import EvalTransform, Sample, TrainTransform, open_image
from ssdkern.data.crops import draw_crops, expand, inside, sample_crop
from ssdkern.data.distort import distort, shift_hsv

MEAN = (123, 117, 104)


class Scripted:
    """A generator that says what it was told: coins and the four amounts."""

    def __init__(self, coins, amounts):
        self.coins, self.amounts = np.array(coins), list(amounts)

    def random(self, count):
        return self.coins[:count]

    def uniform(self, low, high):
        return self.amounts.pop(0)


def slow_hsv(pixel, depth, degrees):
    """One pixel by the standard library, in float64."""
    hue, saturation, value = colorsys.rgb_to_hsv(*(pixel / 255))
    hue = (hue + degrees / 360) % 1
    return np.array(colorsys.hsv_to_rgb(hue, min(saturation * depth, 1), value)) * 255


def pixels(count=3000):
    """Random colours, and all of the corner cases of HSV."""
    rng = np.random.default_rng(0)
    some = rng.integers(0, 256, (count, 3))
    edges = np.stack(np.meshgrid(*[[0, 1, 127, 128, 255]] * 3), -1).reshape(-1, 3)
    return np.concatenate([some, edges]).astype(np.uint8)


@pytest.mark.parametrize("depth", [0.5, 1.0, 1.5])
@pytest.mark.parametrize("degrees", [0.0, 36.0, -36.0, 17.3])
def test_saturation_and_hue_as_the_standard_library(depth, degrees):
    colours = pixels()
    found = shift_hsv(np.ascontiguousarray(colours.T[:, None]), depth, degrees / 60)[:, 0].T
    wanted = np.array([slow_hsv(colour, depth, degrees) for colour in colours])
    assert np.abs(found - wanted).max() <= 0.5 + 1e-3


def test_chunks_do_not_show():
    planes = np.random.default_rng(0).integers(0, 256, (3, 150, 301), np.uint8)  # over two chunks
    whole = shift_hsv(planes, 1.4, 0.3)
    rows = np.concatenate([shift_hsv(planes[:, i : i + 1], 1.4, 0.3) for i in range(150)], axis=1)
    np.testing.assert_array_equal(whole, rows)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("chosen", [(1, 1, 1, 1), (1, 1, 0, 0), (0, 1, 1, 0), (1, 0, 0, 1)])
def test_order_of_the_distortion(first, chosen):
    bright, contrast, depth, degrees = 31.0, 1.4, 1.4, -30.0
    colours = pixels(500)
    rng = Scripted(
        [0.0 if on else 0.9 for on in (first, *chosen)], [bright, contrast, depth, degrees]
    )
    found = distort(np.ascontiguousarray(colours.T[:, None]), rng)[:, 0].T
    steps = {
        "brightness": lambda x: x + bright,
        "contrast": lambda x: x * contrast,
        "saturation": lambda x: np.array([slow_hsv(p, depth, 0) for p in x]),
        "hue": lambda x: np.array([slow_hsv(p, 1, degrees) for p in x]),
    }
    names = list(steps)
    on = dict(zip(names, chosen, strict=True))
    order = names if first else [names[0], names[2], names[3], names[1]]
    wanted = colours.astype(float)
    for name in order:
        if on[name]:
            wanted = steps[name](wanted).round().clip(0, 255)
    # halves are rounded either way, once where hue follows saturation, and contrast widens that
    assert np.abs(found - wanted).max() <= (3 if on["saturation"] and on["hue"] else 2)


def test_amounts_and_chances_of_the_distortion():
    grey = np.full((3, 1, 1), 100, np.uint8)  # which saturation and hue leave alone
    rng = np.random.default_rng(0)
    values = np.array([int(distort(grey, rng)[0, 0, 0]) for _ in range(4000)])
    assert abs((values == 100).mean() - 0.25) < 0.03  # neither, or next to nothing
    assert values.min() >= 34 - 1 and values.max() <= 198 + 1
    assert values.min() < 45 and values.max() > 185
    red = np.array([130, 34, 34], np.uint8).reshape(3, 1, 1)  # which nothing clips
    turned = np.array([distort(red, rng)[:, 0, 0] for _ in range(4000)], float)
    hues = np.array([colorsys.rgb_to_hsv(*(p / 255))[0] for p in turned])
    degrees = (hues * 360 + 180) % 360 - 180
    assert abs((np.abs(degrees) < 1).mean() - (0.5 + 0.5 / 36)) < 0.03
    assert -38 < degrees.min() < -34 and 34 < degrees.max() < 38


def test_shape_of_the_crops():
    crops = draw_crops(20000, np.random.default_rng(0))
    assert crops.min() >= 0 and crops.max() <= 1 + 1e-12
    width, height = (crops[:, 2:] - crops[:, :2]).T
    scale, ratio = np.sqrt(width * height), width / height
    assert 0.3 <= scale.min() < 0.301 and 0.999 < scale.max() <= 1
    assert 0.5 - 1e-9 <= ratio.min() < 0.501 and 1.99 < ratio.max() <= 2 + 1e-9
    assert abs(scale.mean() - 0.65) < 0.01
    assert (ratio <= 1 / scale**2 + 1e-9).all() and (ratio >= scale**2 - 1e-9).all()
    assert abs(crops[:, 0].mean() - (1 - width).mean() / 2) < 0.01


def slow_crop(boxes, rng):
    """The seven samplers as the Caffe code runs them: one trial after the other."""
    found = [np.array([0.0, 0.0, 1.0, 1.0])]
    for least in (0.1, 0.3, 0.5, 0.7, 0.9, None):
        for _ in range(50):
            scale = rng.uniform(0.3, 1)
            ratio = min(max(rng.uniform(0.5, 2), scale**2), 1 / scale**2)
            width, height = min(scale * ratio**0.5, 1), min(scale / ratio**0.5, 1)
            x, y = rng.uniform(0, 1 - width), rng.uniform(0, 1 - height)
            crop = np.array([x, y, x + width, y + height])
            if least is None or any(iou(crop, box) >= least for box in boxes):
                found.append(crop)
                break
    return found[rng.integers(len(found))]


def iou(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    overlap = max(width, 0) * max(height, 0)
    return overlap / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - overlap)


@pytest.mark.parametrize(
    "boxes",
    [
        [[0.1, 0.1, 0.9, 0.8]],
        [[0.4, 0.4, 0.55, 0.6], [0.0, 0.0, 0.3, 0.35]],
        [[0.5, 0.5, 0.52, 0.52]],
    ],
)
def test_crops_are_those_of_the_reference(boxes):
    boxes, count = np.array(boxes), 300
    ours, slow = np.random.default_rng(1), np.random.default_rng(2)
    found = np.array([sample_crop(boxes, ours) for _ in range(10 * count)])
    wanted = np.array([slow_crop(boxes, slow) for _ in range(count)])
    for figure in (
        lambda c: (c == [0, 0, 1, 1]).all(1),
        lambda c: (c[:, 2] - c[:, 0]) * (c[:, 3] - c[:, 1]),
        lambda c: np.array([max(iou(crop, box) for box in boxes) for crop in c]),
        lambda c: c[:, 0],
        lambda c: c[:, 3],
    ):
        a, b = figure(found).astype(float), figure(wanted).astype(float)
        assert abs(a.mean() - b.mean()) < 3.5 * b.std() / np.sqrt(count)
        assert abs(a.std() - b.std()) < 0.05


def test_crops_without_boxes_are_the_whole_picture():
    crop = sample_crop(np.zeros((0, 4)), np.random.default_rng(0))
    assert crop.tolist() == [0, 0, 1, 1]


def test_expansion():
    rng = np.random.default_rng(0)
    canvases = np.array([expand((100, 160), rng) for _ in range(4000)])
    width, height = canvases[:, 2] - canvases[:, 0], canvases[:, 3] - canvases[:, 1]
    assert (canvases[:, :2] <= 0).all()
    assert (canvases[:, 2] >= 160).all() and (canvases[:, 3] >= 100).all()
    ratio = height / 100
    assert abs(ratio.mean() - 2.5) < 0.06 and ratio.max() > 3.95 and ratio.max() <= 4
    assert np.abs(width / 160 - ratio).max() < 0.011
    assert abs((-canvases[:, 0] / np.maximum(width - 160, 1)).mean() - 0.5) < 0.03


def test_centre_rule_includes_the_border():
    view = np.array([10, 10, 20, 20])
    boxes = [[0, 0, 20, 20], [0, 0, 19, 20], [10, 10, 30, 30], [10, 10, 30, 31], [12, 12, 13, 13]]
    assert inside(np.array(boxes, float), view).tolist() == [True, False, True, False, True]


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
        if len(boxes):
            kept += 1
            assert labels.tolist() == [3]
            assert np.abs(seen - boxes[0].numpy()).max() < 1.6 / size
        elif seen is not None:  # cut off at the border, less than a half of each side left
            assert min(seen[0], seen[1]) == 0 or max(seen[2], seen[3]) == 1
    assert 300 < kept < 400


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
