"""batched_nms against torchvision's nms, one group after the other: indices, exactly."""

import pytest
import torch
from cases import INTERPRETED, needs_native, places, random_boxes, whole
from torch import library
from torchvision.ops import nms as torchvision_nms

from ssdkern import batched_nms, nms

COUNTS = [0, 1, 37, 300] + ([] if INTERPRETED else [1500])
INF = float("inf")


def by_group(boxes, scores, idxs, threshold):
    """torchvision's nms of every group, in order of score, then index."""
    boxes, scores, idxs = boxes.cpu(), scores.cpu(), idxs.cpu()
    keep = torch.zeros(len(boxes), dtype=torch.bool)
    for group in idxs.unique():
        rows = (idxs == group).nonzero()[:, 0]
        keep[rows[torchvision_nms(boxes[rows], scores[rows], threshold)]] = True
    order = scores.sort(descending=True, stable=True).indices
    return order[keep[order]]


def check(boxes, scores, idxs, threshold, backend):
    got = batched_nms(boxes, scores, idxs, threshold, backend=backend)
    assert got.dtype == torch.int64
    assert got.tolist() == by_group(boxes, scores, idxs, threshold).tolist()


@places("batched_nms")
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("groups", [1, 4, 90])
def test_matches_float64(groups, count, device, backend):
    boxes, scores = random_boxes(count).to(device), torch.rand(count, device=device)
    idxs = torch.randint(0, groups, (count,), device=device)
    check(boxes, scores, idxs, 0.3, backend)
    check(boxes.double(), scores.double(), idxs, 0.3, backend)


@places("batched_nms")
def test_ties(device, backend):
    """Equal scores in different groups come out from the lowest index on."""
    boxes = random_boxes(300).to(device)
    scores = torch.randint(0, 3, (300,), device=device) / 2
    check(boxes, scores, torch.randint(0, 5, (300,), device=device), 0.2, backend)


@places("batched_nms")
@pytest.mark.parametrize(
    "dtype", [torch.int32, torch.int16, torch.uint8, torch.bool, torch.float32, torch.float64]
)
def test_groups_of_any_dtype(dtype, device, backend):
    boxes, scores = random_boxes(120).to(device), torch.rand(120, device=device)
    idxs = torch.randint(0, 5, (120,), device=device).to(dtype)
    check(boxes, scores, idxs, 0.2, backend)
    if dtype.is_floating_point:
        check(boxes, scores, idxs / 4 - 0.5, 0.2, backend)
        idxs[::2] *= -1  # 0.0 and -0.0 are one group
        check(boxes, scores, idxs, 0.2, backend)


@places("batched_nms")
def test_anchor_where_the_coordinate_trick_fails(device, backend):
    """Negative coordinates merge torchvision's groups, and one infinite box frees all others."""
    boxes = torch.tensor([[-9, -9, -1, -1], [-9, -9, -1, -1], [-9, -9, -1, -2]], device=device)
    scores = torch.tensor([0.9, 0.8, 0.7], device=device)
    idxs = torch.tensor([0, 1, 0], device=device)
    assert batched_nms(boxes.float(), scores, idxs, 0.5, backend=backend).tolist() == [0, 1]
    boxes = torch.cat((boxes, torch.tensor([[0, 0, INF, INF]], device=device)))
    scores, idxs = torch.cat((scores, scores[:1])), torch.cat((idxs, idxs[:1]))
    assert batched_nms(boxes, scores, idxs, 0.5, backend=backend).tolist() == [0, 3, 1]


@places("batched_nms")
def test_edges(device, backend):
    boxes, scores = random_boxes(150).to(device), torch.rand(150, device=device)
    scores[3], scores[7], boxes[9, 0] = float("nan"), INF, float("nan")
    check(boxes, scores, torch.arange(150, device=device) // 9 - 4, 0.1, backend)
    check(boxes, scores, torch.full((150,), 2**40, device=device), 0.1, backend)
    check(boxes, scores, torch.arange(150, device=device) << 33, 0.1, backend)
    one = batched_nms(boxes, scores, torch.zeros_like(scores), 0.1, backend=backend)
    assert torch.equal(one, nms(boxes, scores, 0.1, backend=backend))
    half = boxes.half(), scores.half()
    idxs = torch.arange(150, device=device) % 3
    got = batched_nms(*half, idxs, 0.3, backend=backend)
    assert got.tolist() == by_group(half[0].float(), half[1].float(), idxs, 0.3).tolist()


def test_rejects():
    boxes, scores, idxs = random_boxes(3), torch.rand(3), torch.arange(3)
    with pytest.raises(ValueError, match=r"want boxes \[N, 4\], got \[4\]"):
        batched_nms(boxes[0], scores, idxs, 0.5)
    with pytest.raises(ValueError, match=r"want idxs \[3\], got \[2\]"):
        batched_nms(boxes, scores, idxs[:2], 0.5)
    with pytest.raises(ValueError, match="want all tensors on one device"):
        batched_nms(boxes, scores, idxs.to("meta"), 0.5)


@needs_native("batched_nms")
def test_opcheck(device):
    args = random_boxes(40).to(device), torch.rand(40, device=device)
    args = (*args, torch.arange(40, device=device) % 3, 0.4)
    library.opcheck(torch.ops.ssdkern.batched_nms.default, args)


@places("batched_nms")
def test_compiles_whole(device, backend):
    def run(boxes, scores, idxs):
        return batched_nms(boxes, scores, idxs, 0.4, backend=backend) + 1

    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        compiled = whole(run)
        for count in (40, 71):
            args = random_boxes(count).to(device), torch.rand(count, device=device)
            idxs = torch.randint(0, 4, (count,), device=device)
            assert torch.equal(compiled(*args, idxs), run(*args, idxs))
