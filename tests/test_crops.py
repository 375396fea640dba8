"""Expansion and crops against the rules of the reference, written out slowly."""

import numpy as np
import pytest

from ssdkern.data import crops as module
from ssdkern.data.crops import crops_of, expand, find_crops_numpy, inside, sample_crop

try:
    from ssdkern import _host
except ImportError:
    _host = None


@pytest.fixture(params=["host", "numpy"])
def both(request, monkeypatch):
    """The test runs in C++ and in NumPy."""
    if request.param == "host" and _host is None:
        pytest.skip("ssdkern._host is not built")
    monkeypatch.setattr(module, "host", lambda: _host if request.param == "host" else None)


def test_shape_of_the_crops():
    crops = crops_of(np.random.default_rng(0).random((4, 20000)))
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
def test_crops_are_those_of_the_reference(boxes, both):
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


class Choosing:
    """A generator that takes the crop of a given sampler."""

    def __init__(self, choice):
        rng = np.random.default_rng(7)
        self.random, self.choice = rng.random, choice

    def integers(self, count):
        assert count == 7  # every sampler found a crop
        return self.choice


@pytest.mark.parametrize(("choice", "least"), list(enumerate([0.1, 0.3, 0.5, 0.7, 0.9, 0.0, 1.0])))
def test_each_sampler_keeps_its_overlap(choice, least, both):
    boxes, rng = np.array([[0.02, 0.0, 1.0, 1.0], [0.1, 0.1, 0.45, 0.4]]), Choosing(choice)
    if least == 1.0:
        assert sample_crop(boxes, rng, max_trials=1000).tolist() == [0, 0, 1, 1]
        return
    found = [sample_crop(boxes, rng, max_trials=1000) for _ in range(300)]
    best = np.array([max(iou(crop, box) for box in boxes) for crop in found])
    assert least <= best.min() < least + (0.1 if least else 0.15)


@pytest.mark.skipif(_host is None, reason="ssdkern._host is not built")
@pytest.mark.parametrize("min_scale", [0.1, 0.3, 1.0])
def test_host_finds_the_crops_of_numpy(min_scale):
    rng, counts = np.random.default_rng(4), []
    for trial in range(400):
        low = rng.random((rng.integers(1, 12), 2))
        boxes = np.concatenate([low, low + (1 - low) * rng.random(low.shape)], 1)
        boxes = boxes.astype(np.float32) if trial % 2 else boxes
        draws = rng.random((4, 6 * rng.integers(1, 30)))
        found, wanted = (f(boxes, draws, min_scale) for f in (_host.find_crops, find_crops_numpy))
        assert found.dtype == np.float64
        np.testing.assert_array_equal(found, wanted)
        counts.append(len(found))
    assert set(counts) > {1, 3}
    with pytest.raises(ValueError, match=r"want boxes \[N, 4\], got"):
        _host.find_crops(np.zeros((1, 5)), draws, min_scale)
    for wrong in (draws[:3], draws[:, :7], draws[0]):
        with pytest.raises(ValueError, match=r"want draws \[4, a multiple of 6\], got"):
            _host.find_crops(boxes, wrong, min_scale)


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
