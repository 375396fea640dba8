"""box_iou against torchvision, bit for bit, and against float64."""

import pytest
import torch
import torchvision
from cases import assert_close, assert_same, gradients, needs_native, places, random_boxes, whole
from torch import library

from ssdkern import box_convert, box_iou
from ssdkern.ops.box_iou import box_iou_torch

PAIRS = [(1, 1), (7, 300), (37, 65), (130, 16)]
pairs = pytest.mark.parametrize("pair", PAIRS, ids=lambda p: "N{}M{}".format(*p))
NAN, INF = float("nan"), float("inf")
ODD = torch.tensor(
    [
        [0.1, 0.1, 0.5, 0.5],
        [0.5, 0.1, 0.9, 0.5],  # touches the first
        [0.3, 0.3, 0.3, 0.3],  # a point
        [0.2, 0.3, 0.6, 0.3],  # a line
        [0.5, 0.5, 0.1, 0.1],  # inverted
        [0.5, 0.1, 0.1, 0.5],  # inverted in x
        [-INF, 0.0, INF, 1.0],
        [0.0, 0.0, INF, INF],
        [NAN, 0.0, 1.0, 1.0],
        [0.0, 0.0, 0.0, 0.0],
        [-0.4, -0.3, -0.1, 0.2],
    ]
)


@places("box_iou")
@pairs
def test_matches_float64(pair, device, backend):
    boxes1, boxes2 = (random_boxes(n, high=0.8).to(device) for n in pair)
    truth = box_iou_torch(boxes1.double(), boxes2.double())
    assert_close(box_iou(boxes1, boxes2, backend=backend), truth)

    def run(boxes1, boxes2):
        return box_iou(boxes1, boxes2, backend=backend)

    wanted = gradients(box_iou_torch, [boxes1.double(), boxes2.double()])
    for inputs in ([boxes1, boxes2], [boxes1.double(), boxes2.double()]):
        for got, want in zip(gradients(run, inputs), wanted, strict=True):
            assert_close(got, want, scale=sum(pair) / 2)


@places("box_iou")
def test_gradient_at_kinks(device, backend):
    """Equal corners share the gradient and touching boxes have one, as in PyTorch's own rules."""
    boxes = torch.tensor([[0, 0, 2, 2], [0, 0, 2, 2], [2, 0, 4, 2], [1, 0, 3, 4.0]], device=device)
    wanted = gradients(box_iou_torch, [boxes.double(), boxes[1:].double()])
    got = gradients(lambda a, b: box_iou(a, b, backend=backend), [boxes, boxes[1:]])
    for left, right in zip(got, wanted, strict=True):
        assert_close(left, right, scale=1)


@places("box_iou")
@pytest.mark.parametrize("side", [1e-12, 1e12])
def test_gradient_of_tiny_and_huge_boxes(side, device, backend):
    """Areas whose square no float32 holds."""
    boxes = random_boxes(20, low=0.3, high=0.8).to(device)
    pair = boxes * side, boxes[5:] * side
    wanted = gradients(box_iou_torch, [b.double() for b in pair])
    got = gradients(lambda a, b: box_iou(a, b, backend=backend), pair)
    for left, right in zip(got, wanted, strict=True):
        assert_close(left * side, right * side, scale=40)


@places("box_iou")
def test_edges(device, backend):
    odd, boxes = ODD.to(device), random_boxes(67).to(device)
    for left, right in ((odd, odd), (odd, boxes), (boxes[::2], boxes[1::3]), (boxes.T[:4].T, odd)):
        assert_same(box_iou(left, right, backend=backend), torchvision.ops.box_iou(left, right))
    for left, right in ((boxes[:0], boxes), (boxes, boxes[:0]), (boxes[:0], boxes[:0])):
        assert box_iou(left, right, backend=backend).shape == (len(left), len(right))
    stack = random_boxes(24).view(2, 3, 4, 4).to(device)
    wanted = torchvision.ops.box_iou(stack, boxes[:5])
    assert_same(box_iou(stack, boxes[:5], backend=backend), wanted)
    wanted = torchvision.ops.box_iou(stack[:, :1], stack)
    assert_same(box_iou(stack[:, :1], stack, backend=backend), wanted)


@places("box_iou")
@pairs
def test_anchor(pair, device, backend):
    """torchvision, bit for bit."""
    boxes1, boxes2 = (random_boxes(n, high=0.8).to(device) for n in pair)
    for scale in (1, 300):
        left, right = boxes1 * scale, boxes2 * scale
        assert_same(box_iou(left, right, backend=backend), torchvision.ops.box_iou(left, right))
    pixels = (boxes1 * 300).long(), (boxes2 * 300).int()
    assert_same(box_iou(*pixels, backend=backend), torchvision.ops.box_iou(*pixels))
    for fmt in ("xywh", "cxcywh"):
        left, right = (box_convert(b, "xyxy", fmt) for b in (boxes1, boxes2))
        wanted = torchvision.ops.box_iou(left.double(), right.double(), fmt=fmt)
        assert_close(box_iou(left, right, fmt, backend=backend), wanted, scale=2)


@places("box_iou")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_is_computed_in_float32(dtype, device, backend):
    boxes = random_boxes(40).to(device, dtype)
    got = box_iou(boxes, boxes[:7], backend=backend)
    assert_same(got, torchvision.ops.box_iou(boxes.float(), boxes[:7].float()))


@places("box_iou")
def test_float64_wins(device, backend):
    boxes = random_boxes(40).to(device)
    got = box_iou(boxes, boxes.double(), backend=backend)
    assert_same(got, torchvision.ops.box_iou(boxes.double(), boxes.double()))


def test_rejects():
    boxes = random_boxes(3)
    with pytest.raises(ValueError, match=r"want boxes1 \[\.\.\., N, 4\], got \[3, 3\]"):
        box_iou(boxes[:, :3], boxes)
    with pytest.raises(ValueError, match=r"want boxes2 \[\.\.\., M, 4\], got \[4\]"):
        box_iou(boxes, boxes[0])
    with pytest.raises(ValueError, match=r"want fmt in .*, got 'yxyx'"):
        box_iou(boxes, boxes, "yxyx")
    with pytest.raises(ValueError, match=r"want all tensors on one device, got .*meta"):
        box_iou(boxes, boxes.to("meta"))
    with pytest.raises(ValueError, match="want a backend of"):
        box_iou(boxes, boxes, backend="numpy")


@needs_native("box_iou")
def test_opcheck(device):
    boxes1, boxes2 = (random_boxes(24).view(2, 12, 4).to(device) for _ in range(2))
    library.opcheck(torch.ops.ssdkern.box_iou.default, (boxes1, boxes2))
    grad = torch.rand(2, 12, 12, device=device)
    library.opcheck(torch.ops.ssdkern.box_iou_backward.default, (grad, boxes1, boxes2))


@places("box_iou")
def test_compiles_whole(device, backend):
    boxes = random_boxes(40).to(device)

    def run(boxes1, boxes2):
        return box_iou(boxes1, boxes2, backend=backend)

    compiled = whole(run)
    for count in (9, 23):
        pair = boxes[:count], boxes[5:]
        assert_same(compiled(*pair), run(*pair))
        for got, want in zip(gradients(compiled, pair), gradients(run, pair), strict=True):
            assert_close(got, want, scale=count)
