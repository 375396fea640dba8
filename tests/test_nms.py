"""nms against torchvision and the Caffe original: indices, exactly."""

import numpy as np
import pytest
import torch
from cases import INTERPRETED, golden, needs_native, places, random_boxes, whole
from torch import library
from torchvision.ops import nms as torchvision_nms

from ssdkern import nms

COUNTS = [0, 1, 37, 400] + ([] if INTERPRETED else [1500])
NAN, INF = float("nan"), float("inf")


def check(boxes, scores, threshold, backend):
    got = nms(boxes, scores, threshold, backend=backend)
    assert got.dtype == torch.int64
    assert got.tolist() == torchvision_nms(boxes.cpu(), scores.cpu(), threshold).tolist()
    return got


@places("nms")
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("threshold", [0.05, 0.45, 0.9])
def test_matches_float64(threshold, count, device, backend):
    boxes, scores = random_boxes(count).to(device), torch.rand(count, device=device)
    check(300 * boxes, scores, threshold, backend)
    check(boxes, scores, threshold, backend)
    check(boxes.double(), scores.double(), threshold, backend)


@places("nms")
def test_chains(device, backend):
    """Each box overlaps its neighbours alone, so that every second one stays."""
    left = torch.arange(200.0, device=device)
    boxes = torch.stack((left, 0 * left, left + 1.9, 0 * left + 1), dim=1)
    got = check(boxes, 1 - left / 200, 0.3, backend)
    assert got.tolist() == list(range(0, 200, 2))
    check(boxes, left, 0.3, backend)
    check(boxes, torch.rand(200, device=device), 0.3, backend)


@places("nms")
def test_ties(device, backend):
    corners = torch.randint(0, 6, (300, 2), device=device) / 8
    sides = torch.randint(1, 4, (300, 2), device=device) / 8
    boxes = torch.cat((corners, corners + sides), dim=1)
    scores = torch.randint(0, 4, (300,), device=device) / 4
    for threshold in (0.25, 0.5, 1 / 3):
        check(boxes, scores, threshold, backend)
    check(boxes, torch.zeros_like(scores), 0.5, backend)
    check(boxes, torch.tensor([0.0, -0.0] * 150, device=device), 0.5, backend)


@places("nms")
@pytest.mark.parametrize("threshold", [0.0, -1.0, NAN, 1.0, 0.1])
def test_edges(threshold, device, backend):
    odd = [[0, 0, 1, 1], [1, 0, 2, 1], [0, 0, 1, 1], [0.5, 0.5, 0.5, 0.5], [0.5, 0.5, 0.5, 0.5]]
    odd += [[1, 1, 0, 0], [1, 0, 0, 1], [-INF, 0, INF, 1], [0, 0, INF, INF], [NAN, 0, 1, 1]]
    odd += [[0, 0, 1, 0.1], [-3, -3, -2, -2], [-3, -3, -2, -2]]  # IoU 0.1f with the first
    odd += [[0, INF, 1, 1], [5, 5, INF, -INF]]
    boxes = torch.tensor(odd, device=device)
    wild = torch.tensor([NAN, 1, INF, NAN, -INF, -NAN] + [0.5] * 9)  # -NAN has its sign set
    for scores in (torch.rand(15), torch.arange(15.0), wild):
        check(boxes, scores.to(device), threshold, backend)
    check(boxes.T.contiguous().T, torch.rand(30, device=device)[::2], threshold, backend)
    negative = random_boxes(128)[:, [2, 1, 0, 3]]  # areas
    check(negative.to(device), torch.rand(128, device=device), threshold, backend)


@places("nms")
def test_iou_that_is_no_normal_number(device, backend):
    boxes = torch.tensor([[0, 0, 1e8, 1e7], [-1e8, -1e7, 2e-15, 1e-15]], device=device)
    assert check(boxes, torch.tensor([1.0, 0.5], device=device), 0.0, backend).tolist() == [0]


@places("nms")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_is_computed_in_float32(dtype, device, backend):
    boxes, scores = random_boxes(200).to(device, dtype), torch.rand(200, device=device).to(dtype)
    got = nms(boxes, scores, 0.4, backend=backend)
    want = torchvision_nms(boxes.float().cpu(), scores.float().cpu(), 0.4)
    assert got.tolist() == want.tolist()


@places("nms")
def test_anchor_caffe(device, backend):
    """ApplyNMSFast on 24 lists: those above the score threshold, the top_k best of them."""
    vectors = golden("nms")
    for case in range(24):
        boxes, scores, params, keep = (
            vectors[f"{case}/{key}"] for key in ("boxes", "scores", "params", "keep")
        )
        score_threshold, iou_threshold, _, top_k = params.tolist()
        index = np.flatnonzero(scores.numpy() > np.float32(score_threshold))
        index = index[np.argsort(-scores.numpy()[index], kind="stable")]
        index = torch.from_numpy(index[: int(top_k)] if top_k >= 0 else index)
        best = boxes[index].to(device), scores[index].to(device)
        kept = nms(*best, iou_threshold, backend=backend)
        assert index[kept.cpu()].tolist() == keep.tolist()


def test_rejects():
    boxes, scores = random_boxes(3), torch.rand(3)
    for arguments, message in (
        ((boxes[:, :3], scores), r"want boxes \[N, 4\], got \[3, 3\]"),
        ((torch.empty(0), scores[:0]), r"want boxes \[N, 4\], got \[0\]"),
        ((boxes, scores[:2]), r"want scores \[3\], got \[2\]"),
        ((boxes, scores[:, None]), r"want scores \[3\], got \[3, 1\]"),
        ((boxes, scores.double()), "want scores of the dtype of boxes, torch.float32, got"),
        ((boxes.int(), scores.int()), "want boxes of a floating-point dtype, got torch.int32"),
        ((boxes, scores.to("meta")), "want all tensors on one device"),
    ):
        with pytest.raises(ValueError, match=message):
            nms(*arguments, 0.5)


@places("nms")
def test_no_gradient(device, backend):
    boxes, scores = random_boxes(9).to(device).requires_grad_(), torch.rand(9, device=device)
    assert not nms(boxes, scores.requires_grad_(), 0.5, backend=backend).requires_grad


@needs_native("nms")
def test_opcheck(device):
    args = random_boxes(40).to(device), torch.rand(40, device=device), 0.4
    library.opcheck(torch.ops.ssdkern.nms.default, args)


@places("nms")
def test_compiles_whole(device, backend):
    """One graph, though the number of kept boxes is known only as it runs."""

    def run(boxes, scores):
        return nms(boxes, scores, 0.4, backend=backend) + 1

    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        compiled = whole(run)
        for count in (40, 71):
            args = random_boxes(count).to(device), torch.rand(count, device=device)
            assert torch.equal(compiled(*args), run(*args))
