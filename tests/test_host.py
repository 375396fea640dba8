"""The C++ host module against its NumPy twin, and both against the rule worked by hand."""

import numpy as np
import pytest

from ssdkern.host import host
from ssdkern.metrics import match_detections, match_detections_numpy

try:
    from ssdkern import _host
except ImportError:
    _host = None

MATCHERS = [
    pytest.param(match_detections_numpy, id="numpy"),
    pytest.param(
        _host and _host.match_detections,
        id="host",
        marks=pytest.mark.skipif(_host is None, reason="ssdkern._host is not built"),
    ),
]


def groups(rng, count, top):
    return np.append(0, rng.integers(0, top, count).cumsum())


def scene(seed, num_groups=400):
    """Boxes on a coarse grid: equal overlaps, doubles, zero areas and empty groups all occur."""
    rng = np.random.default_rng(seed)
    offsets, gt_offsets = groups(rng, num_groups, 12), groups(rng, num_groups, 6)
    low = rng.integers(0, 3, (offsets[-1] + gt_offsets[-1], 2)) * 4
    boxes = np.concatenate([low, low + rng.integers(0, 3, low.shape) * 5], 1).astype(np.float32)
    ignore = rng.random(gt_offsets[-1]) < 0.3
    return boxes[: offsets[-1]], offsets, boxes[offsets[-1] :], ignore, gt_offsets


@pytest.mark.skipif(_host is None, reason="ssdkern._host is not built")
@pytest.mark.parametrize("plus_one", [False, True])
@pytest.mark.parametrize("iou_threshold", [0.3, 0.5, 1.0])
@pytest.mark.parametrize("seed", range(8))
def test_host_equals_numpy(seed, iou_threshold, plus_one):
    args = *scene(seed), iou_threshold, plus_one
    outcome, matched = _host.match_detections(*args)
    expected, expected_matched = match_detections_numpy(*args)
    assert (outcome.dtype, matched.dtype) == (np.int8, np.int64)
    np.testing.assert_array_equal(outcome, expected)
    np.testing.assert_array_equal(matched, expected_matched)
    assert set(outcome) == {-1, 0, 1}, "the scene is too easy"


@pytest.mark.parametrize("match", MATCHERS)
def test_rule_by_hand(match):
    gt = np.array([[0, 0, 10, 10], [0, 0, 10, 8], [50, 50, 60, 60], [0, 0, 10, 10.0]])
    boxes = np.array(
        [
            [0, 0, 10, 10],  # takes row 0
            [0, 0, 10, 10],  # row 0 again: false, though row 1 is free and overlaps .8
            [0, 0, 10, 8],  # takes row 1
            [50, 50, 60, 60],  # ignored truth, as often as it likes
            [50, 50, 60, 60],
            [0, 0, 10, 5],  # IoU .5 with row 3, in a group of its own: the threshold is a hit
        ]
    )
    args = boxes, [0, 5, 5, 6], gt, [False, False, True, False], [0, 3, 3, 4]
    outcome, matched = match(*args, 0.5, False)
    assert outcome.tolist() == [1, 0, 1, -1, -1, 1]
    assert matched.tolist() == [0, 0, 1, 2, 2, 3]
    assert match(*args, 0.500001, False)[0].tolist() == [1, 0, 1, -1, -1, 0]


@pytest.mark.parametrize("match", MATCHERS)
def test_edges(match):
    none = np.zeros((0, 4), np.float32)
    box = np.array([[0, 0, 4, 4]], np.float32)
    assert match(none, [0], none, np.zeros(0, bool), [0], 0.5, True)[0].size == 0
    assert match(box, [0, 1], none, np.zeros(0, bool), [0, 0], 0.5, True)[0].tolist() == [0]
    assert match(none, [0, 0], box, [False], [0, 1], 0.5, True)[1].size == 0
    nan = np.array([[0, 0, np.nan, 4]])
    assert match(nan, [0, 1], box, [False], [0, 1], 0.5, True)[1].tolist() == [-1]
    assert match(box, [0, 1], nan, [False], [0, 1], 0.5, True)[1].tolist() == [-1]
    equal = np.repeat(box, 3, 0)
    assert match(box, [0, 1], equal, [False] * 3, [0, 3], 0.5, True)[1].tolist() == [0]
    assert match(box, [0, 1], none, np.zeros(0, bool), [0, 0], -1, True)[1].tolist() == [-1]
    strided = np.zeros((3, 8), np.float16)[:, ::2]
    strided[:, 2:] = 4
    assert match(strided, [0, 3], box, [False], [0, 1], 0.5, True)[0].tolist() == [1, 0, 0]


@pytest.mark.parametrize("match", MATCHERS)
def test_rejects(match):
    box = np.zeros((1, 4))
    with pytest.raises(ValueError, match=r"want boxes \[N, 4\]"):
        match(np.zeros((1, 5)), [0, 1], box, [False], [0, 1], 0.5, True)
    for offsets in ([0, 2], [1, 1], [], [0, 2, 1]):
        with pytest.raises(ValueError, match="want offsets ascending from 0 to 1"):
            match(box, offsets, box, [False], [0, 1], 0.5, True)
    with pytest.raises(ValueError, match="gt_ignore"):
        match(box, [0, 1], box, [False, True], [0, 1], 0.5, True)
    with pytest.raises(ValueError, match="groups"):
        match(box, [0, 1], box, [False], [0, 1, 1], 0.5, True)


def test_public_call_checks_and_falls_back(monkeypatch):
    box = np.zeros((1, 4))
    with pytest.raises(ValueError, match=r"want iou_threshold in \(0, 1\], got 0"):
        match_detections(box, [0, 1], box, [False], [0, 1], iou_threshold=0)
    args = scene(1)
    expected = match_detections_numpy(*args, 0.5, True)
    host.cache_clear()
    monkeypatch.setenv("SSDKERN_DISABLE", "native")
    assert host() is None
    np.testing.assert_array_equal(match_detections(*args), expected)
    host.cache_clear()
