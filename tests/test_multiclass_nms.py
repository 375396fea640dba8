"""multiclass_nms against torchvision's nms, image by image and class by class: exactly."""

import importlib

import pytest
import torch
from cases import INTERPRETED, assert_same, cannot, needs_native, places, random_boxes, scene, whole
from torch import library
from torchvision.ops import nms as torchvision_nms

from ssdkern import multiclass_nms

NAN = float("nan")
REASON = cannot("multiclass_nms", "triton", "cpu")
SIZES = [(1, 1, 2), (2, 37, 5), (3, 300, 6)] + ([] if INTERPRETED else [(2, 2000, 21)])
sizes = pytest.mark.parametrize("size", SIZES, ids=lambda s: "B{}P{}C{}".format(*s))
FIVE = ("boxes", "scores", "labels", "prior_index", "count")


def by_hand(boxes, scores, score_threshold=0.01, iou_threshold=0.45, nms_top_k=400, keep_top_k=200):
    """DetectionOutput, one list after the other: rows of (score, label, prior) for each image."""
    images = []
    for image_boxes, image_scores in zip(boxes.cpu(), scores.cpu(), strict=True):
        rows = []
        for label in range(1, image_scores.shape[1]):
            column = image_scores[:, label]
            prior = (column > score_threshold).nonzero()[:, 0]
            order = column[prior].sort(descending=True, stable=True).indices[:nms_top_k]
            prior = prior[order]
            kept = prior[torchvision_nms(image_boxes[prior], column[prior], iou_threshold)]
            rows += [(-column[p].item(), label, p.item()) for p in kept]
        images.append(sorted(rows)[:keep_top_k])
    return images


def check(boxes, scores, backend, **kwargs):
    got = multiclass_nms(boxes, scores, **kwargs, backend=backend)
    slots = kwargs.get("keep_top_k", 200)
    shapes = [(len(boxes), slots, 4), *[(len(boxes), slots)] * 3, (len(boxes),)]
    assert [tuple(t.shape) for t in got] == shapes
    assert [t.dtype for t in got[2:]] == [torch.int64] * 3
    for image, rows in enumerate(by_hand(boxes, scores, **kwargs)):
        count = len(rows)
        assert got.count[image] == count
        found = zip(got.labels[image].tolist(), got.prior_index[image].tolist(), strict=True)
        assert list(found)[:count] == [(label, prior) for _, label, prior in rows]
        prior, label = got.prior_index[image, :count], got.labels[image, :count]
        assert_same(got.boxes[image, :count], boxes[image, prior].to(got.boxes.dtype))
        assert_same(got.scores[image, :count], scores[image, prior, label].to(got.scores.dtype))
        rest = [getattr(got, name)[image, count:] for name in FIVE[:3]]
        assert not any(t.any() for t in rest) and (got.prior_index[image, count:] == -1).all()
    return got


def random_input(size, device, peak=2.0):
    batch, num_priors, _ = size
    boxes = random_boxes(batch * num_priors).view(batch, num_priors, 4)
    scores = (peak * torch.randn(size)).softmax(dim=-1)
    return boxes.to(device), scores.to(device)


@places("multiclass_nms")
@sizes
def test_matches_float64(size, device, backend):
    boxes, scores = random_input(size, device)
    got = check(boxes, scores, backend)
    assert got.boxes.dtype == got.scores.dtype == torch.float32
    wide = check(boxes.double(), scores.double(), backend, iou_threshold=0.3, keep_top_k=30)
    assert wide.boxes.dtype == wide.scores.dtype == torch.float64


@places("multiclass_nms")
@pytest.mark.parametrize(
    "limits",
    [
        (0.2, 0.45, 400, 200),
        (0.0, 0.0, 400, 200),
        (0.01, 0.6, 1, 200),
        (0.01, 0.6, 7, 3),
        (-1.0, 0.9, 1000, 1),
        (0.01, 1.0, 5, 1500),
        (0.99999, 0.5, 10, 10),
    ],
)
def test_limits(limits, device, backend):
    names = ("score_threshold", "iou_threshold", "nms_top_k", "keep_top_k")
    boxes, scores = random_input((2, 130, 7), device)
    check(boxes, scores, backend, **dict(zip(names, limits, strict=True)))


@places("multiclass_nms")
def test_ties(device, backend):
    """Five different scores: ties within a class, across classes, and at both limits."""
    boxes, scores = random_input((3, 260, 6), device)
    scores = (scores * 4).ceil() / 8
    check(boxes, scores, backend, nms_top_k=40, keep_top_k=60)
    check(boxes, torch.full_like(scores, 0.5), backend, nms_top_k=100, keep_top_k=150)
    corners = torch.randint(0, 5, (3, 260, 2), device=device) / 8
    check(torch.cat((corners, corners + 0.25), -1), scores, backend, iou_threshold=1 / 3)


@places("multiclass_nms")
def test_edges(device, backend):
    boxes, scores = random_input((2, 40, 4), device)
    for b, s in (
        (boxes[:0], scores[:0]),
        (boxes[:, :0], scores[:, :0]),
        (boxes, scores[..., :1]),
        (boxes, 0 * scores),
        (boxes[:, :1], scores[:, :1]),
    ):
        check(b, s, backend, keep_top_k=9)
    check(boxes.transpose(1, 2).contiguous().transpose(1, 2), scores.flip(1)[:, ::1], backend)
    odd_scores, odd_boxes = scores.clone(), boxes.clone()
    odd_scores[0, 3:9, 1:] = NAN
    odd_boxes[1, 5:9] = NAN
    odd_boxes[1, 9] = torch.tensor([0, 0, float("inf"), float("inf")])
    check(odd_boxes, odd_scores, backend)


@places("multiclass_nms")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_is_computed_in_float32(dtype, device, backend):
    boxes, scores = (t.to(dtype) for t in random_input((2, 90, 5), device))
    got = multiclass_nms(boxes, scores, backend=backend)
    want = check(boxes.float(), scores.float(), backend)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@places("multiclass_nms")
def test_anchor_worked_example(device, backend):
    """A suppresses B and D, C only overlaps B, E's score of .01 is not above .01."""
    rows = [[0.1, 0.1, 0.5, 0.5], [0.15, 0.1, 0.55, 0.5], [0.3, 0.1, 0.7, 0.5]]
    rows += [[0.12, 0.12, 0.48, 0.48], [0.6, 0.6, 0.9, 0.9], [0.6, 0.6, 0.9, 0.9]]
    boxes = torch.tensor([rows], device=device)
    scores = torch.tensor([0.9, 0.85, 0.8, 0.7, 0.01, 0.3], device=device)
    scores = torch.stack((1 - scores, scores), dim=1)[None]
    got = multiclass_nms(boxes, scores, backend=backend)
    assert got.prior_index[0, : got.count[0]].tolist() == [0, 2, 5]
    got = multiclass_nms(boxes, scores, nms_top_k=3, backend=backend)
    assert got.prior_index[0, : got.count[0]].tolist() == [0, 2]


def test_rejects():
    s = scene((2, 30, 4, 3))
    boxes, scores = s.offsets, s.logits
    for arguments, kwargs, message in (
        ((boxes, scores[0]), {}, r"want scores \[B, P, C\], got \[30, 4\]"),
        ((boxes[:, :9], scores), {}, r"want boxes \[2, 30, 4\], got \[2, 9, 4\]"),
        ((boxes.int(), scores), {}, "want boxes of a floating-point dtype"),
        ((boxes, scores.int()), {}, "want scores of a floating-point dtype"),
        ((boxes, scores), {"nms_top_k": 0}, "want 1 <= nms_top_k <= inf, got 0"),
        ((boxes, scores), {"keep_top_k": -1}, "want 1 <= keep_top_k <= inf, got -1"),
        ((boxes, scores.to("meta")), {}, "want all tensors on one device"),
    ):
        with pytest.raises(ValueError, match=message):
            multiclass_nms(*arguments, **kwargs)


@pytest.mark.skipif(REASON is not None, reason=f"multiclass_nms: {REASON}")
def test_more_classes_than_programs_triton(monkeypatch):
    """A program takes several classes, and a wave of them what fits the scratch."""
    module = importlib.import_module("ssdkern.kernels.multiclass_nms")
    monkeypatch.setattr(module, "PROGRAMS", 2)
    monkeypatch.setattr(module, "CANDIDATES", 5 * 40)
    check(*random_input((3, 60, 5), "cpu"), "triton", nms_top_k=40, keep_top_k=30)


@needs_native("multiclass_nms")
def test_no_limit_is_too_high(device):
    boxes, scores = random_input((1, 2500, 2), device)
    for nms_top_k in (2**62, 2**63 - 1):
        check(boxes, scores, "native", nms_top_k=nms_top_k)


@needs_native("multiclass_nms")
def test_opcheck(device):
    args = (*random_input((2, 60, 4), device), 0.01, 0.45, 40, 20)
    library.opcheck(torch.ops.ssdkern.multiclass_nms.default, args)


@places("multiclass_nms")
def test_compiles_whole(device, backend):
    def run(boxes, scores):
        return multiclass_nms(boxes, scores, nms_top_k=30, keep_top_k=20, backend=backend)

    compiled = whole(run)
    for size in ((2, 50, 4), (3, 70, 4)):
        args = random_input(size, device)
        for got, want in zip(compiled(*args), run(*args), strict=True):
            assert_same(got, want)
