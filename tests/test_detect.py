"""detect against the Caffe original, multiclass_nms and float64."""

import math

import numpy as np
import pytest
import torch
from cases import GPU, INTERPRETED, golden, needs_native, places, scene, whole
from torch import library

from ssdkern import Detections, decode_boxes, detect, multiclass_nms
from ssdkern.ops.detect import detect_torch

SIZES = [(1, 1, 2), (2, 37, 5), (3, 300, 6)] + ([] if INTERPRETED else [(2, 8732, 21)])
sizes = pytest.mark.parametrize("size", SIZES, ids=lambda s: "B{}P{}C{}".format(*s))
LIMITS = (0.01, 0.45, 400, 200)
REST = (0.1, 0.2, math.inf, False)


def heads(size, device):
    s = scene((*size, 0), device)
    return 2 * s.logits, 0.3 * s.offsets, s.priors


def rows_of(detections, image):
    count = int(detections.count[image])
    labels, priors = (detections[i][image, :count].tolist() for i in (2, 3))
    return dict(zip(zip(labels, priors, strict=True), range(count), strict=True))


def assert_same_detections(got, want, threshold=0.01):
    """Equal but for rows whose score lies within 4e-6 of the threshold or of the last one kept.

    Such rows are counted, one in fifty at most; two of them may also stand in swapped order.
    """
    flips, total = 0, 0
    for image in range(len(want.count)):
        ours, theirs = rows_of(got, image), rows_of(want, image)
        total += len(theirs)
        last = want.scores[image, max(len(theirs) - 1, 0)].item()
        for row in ours.keys() ^ theirs.keys():
            source, index = (got, ours[row]) if row in ours else (want, theirs[row])
            score = source.scores[image, index].item()
            near = min(abs(score / threshold - 1), abs(score / last - 1))
            assert near < 4e-6, f"{row} with score {score} is in one of them alone"
            flips += 1
        both = [row for row in theirs if row in ours]
        left, right = ([d[row] for row in both] for d in (ours, theirs))
        torch.testing.assert_close(
            got.scores[image, left].double(), want.scores[image, right].double(), rtol=4e-6, atol=0
        )
        torch.testing.assert_close(
            got.boxes[image, left].double(), want.boxes[image, right].double(), rtol=4e-6, atol=2e-6
        )
        assert (got.scores[image].diff() <= 0).all()
        assert not got.boxes[image, len(ours) :].any()
        assert (got.prior_index[image, len(ours) :] == -1).all()
        moved = [i for i, j in zip(left, right, strict=True) if i != j]
        flips += len(moved) if len(ours) == len(theirs) else 0
    assert flips <= total / 50, f"{flips} of {total} rows differ"


@places("detect")
@sizes
def test_matches_float64(size, device, backend):
    logits, offsets, priors = heads(size, device)
    wide = logits.double(), offsets.double(), priors.double()
    want = Detections(*detect_torch(*wide, *LIMITS, *REST))
    assert_same_detections(detect(logits, offsets, priors, backend=backend), want)
    double = detect(*wide, backend=backend)
    assert double.scores.dtype == double.boxes.dtype == torch.float64
    assert torch.equal(double.prior_index, want.prior_index)
    assert torch.equal(double.labels, want.labels)


@places("detect")
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("max_log_scale", [None, 0.1])
def test_is_decode_and_multiclass_nms(max_log_scale, clip, device, backend):
    logits, offsets, priors = heads((2, 200, 5), device)
    coding = {"variances": (0.3, 0.5), "max_log_scale": max_log_scale}
    limits = {"score_threshold": 0.1, "iou_threshold": 0.3, "nms_top_k": 50, "keep_top_k": 40}
    boxes = decode_boxes(offsets, priors, **coding, backend="torch")
    boxes = boxes.clamp(0, 1) if clip else boxes
    want = multiclass_nms(boxes, logits.softmax(-1), **limits, backend="torch")
    got = detect(logits, offsets, priors, **limits, **coding, clip=clip, backend=backend)
    assert_same_detections(got, want, threshold=0.1)
    assert clip == bool(((got.boxes >= 0) & (got.boxes <= 1)).all())


@places("detect")
def test_edges(device, backend):
    logits, offsets, priors = heads((2, 40, 4), device)
    for part in (
        (logits[:0], offsets[:0], priors),
        (logits[:, :0], offsets[:, :0], priors[:0]),
        (logits[..., :1], offsets, priors),
    ):
        got = detect(*part, keep_top_k=7, backend=backend)
        assert got.boxes.shape == (len(part[0]), 7, 4) and not got.count.any()
        assert not got.boxes.any() and (got.prior_index == -1).all()
    sure = torch.full_like(logits, -50)
    sure[..., 0] = 50
    assert not detect(sure, offsets, priors, backend=backend).count.any()
    strided = logits.transpose(0, 1).contiguous().transpose(0, 1)
    got = detect(strided, offsets.flip(0).flip(0), priors, backend=backend)
    want = detect(logits, offsets, priors, backend=backend)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@places("detect")
def test_equal_logits(device, backend):
    """Equal rows have equal scores wherever they stand: from the lowest label, then prior."""
    _, offsets, priors = heads((2, 137, 5), device)
    got = detect(torch.zeros(2, 137, 5, device=device), offsets, priors, backend=backend)
    scores = torch.full((2, 137, 5), 0.2, device=device)
    boxes = decode_boxes(offsets, priors, backend="torch")
    want = multiclass_nms(boxes, scores, backend="torch")
    assert torch.equal(got.prior_index, want.prior_index)
    assert torch.equal(got.labels, want.labels)


@places("detect")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_is_computed_in_float32(dtype, device, backend):
    logits, offsets, priors = heads((2, 90, 5), device)
    half = logits.to(dtype), offsets.to(dtype)
    got = detect(*half, priors, backend=backend)
    want = detect(half[0].float(), half[1].float(), priors, backend=backend)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@places("detect")
def test_extremes(device, backend):
    """Saturated logits and offsets: no NaN, and infinite boxes suppress nothing."""
    logits, offsets, priors = heads((2, 60, 4), device)
    got = detect(1e4 * logits, 1e3 * offsets, priors, backend=backend)
    assert not got.boxes.isnan().any() and not got.scores.isnan().any()
    want = detect(1e4 * logits, 1e3 * offsets, priors, backend="torch")
    assert torch.equal(got.prior_index, want.prior_index)


@places("detect")
def test_threshold_is_compared_in_the_dtype_of_the_scores(device, backend):
    """In float32 a score of 1 lies above 1 - 4e-8, which is rounded down."""
    _, offsets, priors = heads((1, 1, 2), device)
    logits = torch.tensor([[[0.0, 16.8]]], device=device)
    got = detect(logits, offsets, priors, score_threshold=1 - 4e-8, backend=backend)
    assert got.count == 1 and got.scores[0, 0] == 1


@places("detect")
@pytest.mark.parametrize("case", range(4))
def test_anchor_caffe(case, device, backend):
    """Softmax and DetectionOutput of the original, 5, 21 and 81 classes."""
    vectors = {k[2:]: v.to(device) for k, v in golden("detect").items() if k.startswith(f"{case}/")}
    if INTERPRETED and not GPU and vectors["logits"].shape[1] > 5:
        pytest.skip("minutes in the Triton interpreter")
    keep = int(vectors["keep_top_k"])
    tensors = vectors["logits"][None], vectors["offsets"][None], vectors["priors"]
    got = detect(*tensors, keep_top_k=keep, backend=backend)
    names = ("boxes", "scores", "labels", "prior_index")
    count = torch.tensor([len(vectors["scores"])])
    assert_same_detections(got, Detections(*(vectors[name][None] for name in names), count))


@places("detect")
def test_low_scores_keep_their_digits(device, backend, monkeypatch):
    """Scores down to 1e-36 in float32."""
    if INTERPRETED:
        interpreter = pytest.importorskip("triton.runtime.interpreter")
        monkeypatch.setattr(interpreter.InterpreterBuilder, "create_exp", exp_of_gpus)
    _, offsets, priors = heads((1, 300, 2), device)
    logits = torch.stack((torch.zeros(300), torch.linspace(-83, -1, 300)), dim=1)[None].to(device)
    limits = {"score_threshold": 0, "iou_threshold": 1, "keep_top_k": 300}
    got = detect(logits, offsets, priors, **limits, backend=backend)
    want = logits[0, :, 1].double().sigmoid().flip(0)
    torch.testing.assert_close(got.scores[0].double(), want, rtol=2e-6, atol=0)


def exp_of_gpus(self, x):
    """What Triton makes of `tl.exp` in float32: ex2.approx of a rounded product."""
    log2_e = x.data.dtype.type(math.log2(math.e))
    return self.unary_op(x, lambda x: np.exp2(x * log2_e))


def test_rejects():
    logits, offsets, priors = heads((2, 30, 4), "cpu")
    for arguments, kwargs, message in (
        ((logits[0], offsets, priors), {}, r"want logits \[B, P, C\], got \[30, 4\]"),
        ((logits, offsets[:1], priors), {}, r"want offsets \[2, 30, 4\], got \[1, 30, 4\]"),
        ((logits, offsets, priors[:9]), {}, r"want priors \[30, 4\], got \[9, 4\]"),
        ((logits.int(), offsets, priors), {}, "want logits of a floating-point dtype"),
        ((logits, offsets, priors), {"keep_top_k": 0}, "want 1 <= keep_top_k <= inf, got 0"),
        ((logits, offsets, priors), {"variances": (0.1,)}, "want variances"),
        ((logits, offsets, priors.to("meta")), {}, "want all tensors on one device"),
    ):
        with pytest.raises(ValueError, match=message):
            detect(*arguments, **kwargs)


@needs_native("detect")
def test_opcheck(device):
    args = (*heads((2, 60, 4), device), 0.01, 0.45, 40, 20, *REST)
    library.opcheck(torch.ops.ssdkern.detect.default, args)


class Tail(torch.nn.Module):
    def __init__(self, priors, backend):
        super().__init__()
        self.register_buffer("priors", priors)
        self.backend = backend

    def forward(self, logits, offsets):
        limits = {"nms_top_k": 30, "keep_top_k": 20}
        return tuple(detect(logits, offsets, self.priors, **limits, backend=self.backend))


@places("detect")
def test_compiles_whole(device, backend):
    for size in ((2, 50, 4), (3, 50, 4)):
        logits, offsets, priors = heads(size, device)
        tail = Tail(priors, backend)
        compiled = whole(tail)
        for got, want in zip(compiled(logits, offsets), tail(logits, offsets), strict=True):
            torch.testing.assert_close(got, want, rtol=2e-6, atol=0)


@places("detect")
def test_exports(device, backend):
    logits, offsets, priors = heads((2, 50, 4), device)
    tail = Tail(priors, backend)
    program = torch.export.export(tail, (logits, offsets))
    for got, want in zip(program.module()(logits, offsets), tail(logits, offsets), strict=True):
        assert torch.equal(got, want)
