"""encode_boxes against the Caffe original, torchvision and float64."""

import math

import pytest
import torch
from cases import assert_close, golden, gradients, needs_native, places, random_boxes, whole
from torch import library
from torchvision.models.detection._utils import BoxCoder

from ssdkern import decode_boxes, encode_boxes
from ssdkern.ops.encode_boxes import encode_boxes_torch

VARIANCES = (0.1, 0.2)
counts = pytest.mark.parametrize("count", [1, 37, 300])


def scale_of(priors):
    """What one unit in the last place of a coordinate is in an offset, for the smallest sides."""
    return (2 / (priors[:, 2:] - priors[:, :2]).min() / min(VARIANCES)).item()


@places("encode_boxes")
@counts
def test_matches_float64(count, device, backend):
    priors = random_boxes(count).to(device)
    boxes = random_boxes(3 * count).view(3, count, 4).to(device)
    truth = encode_boxes_torch(boxes.double(), priors.double(), *VARIANCES)
    assert_close(encode_boxes(boxes, priors, backend=backend), truth, scale_of(priors))
    same = encode_boxes_torch(boxes, priors, *VARIANCES)
    assert_close(encode_boxes(boxes, priors, backend=backend), same, scale=0.01)

    def run(boxes):
        return encode_boxes(boxes, priors, backend=backend)

    [want] = gradients(
        lambda b: encode_boxes_torch(b, priors.double(), *VARIANCES), [boxes.double()]
    )
    for inputs in (boxes, boxes.double()):
        [got] = gradients(run, [inputs])
        assert got.dtype == inputs.dtype
        assert_close(got, want, scale_of(boxes.view(-1, 4)) + scale_of(priors))


@places("encode_boxes")
def test_edges(device, backend):
    priors = random_boxes(6).to(device)
    assert encode_boxes(priors[:0], priors[:0], backend=backend).shape == (0, 4)
    assert encode_boxes(priors[None][:0], priors, backend=backend).shape == (0, 6, 4)
    nested = random_boxes(24).view(2, 2, 6, 4).to(device)
    flat = encode_boxes(nested.view(4, 6, 4), priors, backend=backend)
    assert torch.equal(encode_boxes(nested, priors, backend=backend).view(4, 6, 4), flat)
    strided = nested.transpose(0, 1)
    got = encode_boxes(strided, priors, backend=backend)
    assert torch.equal(got, encode_boxes(strided.contiguous(), priors, backend=backend))


@places("encode_boxes")
def test_boxes_without_area_stay_finite(device, backend):
    priors = torch.tensor([[0, 0, 0.5, 0.5], [0.2, 0.2, 0.2, 0.6], [0, 0, 1, 1]], device=device)
    boxes = torch.tensor([[0.1, 0.1, 0.1, 0.3], [0, 0, 1, 1], [0.6, 0.2, 0.4, 0.4]], device=device)
    boxes.requires_grad_()
    got = encode_boxes(boxes, priors, backend=backend)
    assert_close(got, encode_boxes_torch(boxes.double(), priors.double(), *VARIANCES), scale=1)
    assert got[0, 2].item() == pytest.approx(math.log(1e-8 / 0.5) / 0.2)
    [grad] = torch.autograd.grad(got.sum(), boxes)
    assert got.isfinite().all() and grad.isfinite().all()
    assert grad[0, 0].item() == pytest.approx(10)  # of the centre alone: the width is held


@places("encode_boxes")
def test_anchor_caffe(device, backend):
    vectors = {key: value.to(device) for key, value in golden("code").items()}
    got = encode_boxes(vectors["gt_boxes"], vectors["priors"], backend=backend)
    assert_close(got, vectors["encoded"], scale=0.1)


@places("encode_boxes")
def test_anchor_worked_example(device, backend):
    """SSD300's prior 2808 and a box, in pixels."""
    prior = torch.tensor([[133.0, 133, 163, 163]], device=device)
    box = torch.tensor([[60.0, 75, 180, 165]], device=device)
    got = encode_boxes(box / 300, prior / 300, backend=backend)
    assert got[0].tolist() == pytest.approx([-9.3333, -9.3333, 6.9315, 5.4931], abs=1e-4)


@places("encode_boxes")
def test_anchor_torchvision(device, backend):
    priors, boxes = (random_boxes(200).to(device) for _ in range(2))
    want = BoxCoder((10, 10, 5, 5)).encode_single(boxes.double(), priors.double())
    assert_close(encode_boxes(boxes, priors, backend=backend), want, scale_of(priors))


@places("encode_boxes")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64])
def test_other_dtypes_are_computed_in_float32(dtype, device, backend):
    priors, boxes = (random_boxes(20, low=0.3, high=0.8).to(device) * 300 for _ in range(2))
    boxes = boxes.to(dtype)
    got = encode_boxes(boxes, priors, backend=backend)
    assert torch.equal(got, encode_boxes(boxes.float(), priors, backend=backend))


@places("encode_boxes")
def test_decode_inverts(device, backend):
    priors, boxes = (random_boxes(300).to(device) for _ in range(2))
    variances = (0.3, 0.7)
    offsets = encode_boxes(boxes, priors, variances=variances, backend=backend)
    got = decode_boxes(offsets, priors, variances=variances, backend="torch")
    assert_close(got, boxes, scale=1)


def test_priors_get_no_gradient():
    priors, boxes = (random_boxes(5).requires_grad_() for _ in range(2))
    encode_boxes(boxes, priors, backend="torch").sum().backward()
    assert boxes.grad is not None and priors.grad is None


def test_rejects():
    boxes = random_boxes(3)
    with pytest.raises(ValueError, match=r"want priors \[P, 4\], got \[1, 3, 4\]"):
        encode_boxes(boxes, boxes[None])
    with pytest.raises(ValueError, match=r"want boxes \[\.\.\., 3, 4\], got \[2, 4\]"):
        encode_boxes(boxes[:2], boxes)
    with pytest.raises(
        ValueError, match=r"want variances \(center, size\), both > 0, got \(0.1, 0\)"
    ):
        encode_boxes(boxes, boxes, variances=(0.1, 0))
    with pytest.raises(ValueError, match="want all tensors on one device"):
        encode_boxes(boxes, boxes.to("meta"))


@needs_native("encode_boxes")
def test_opcheck(device):
    priors, boxes = random_boxes(8).to(device), random_boxes(16).view(2, 8, 4).to(device)
    library.opcheck(torch.ops.ssdkern.encode_boxes.default, (boxes, priors, 0.1, 0.2))
    args = (torch.rand_like(boxes), boxes, priors, 0.1, 0.2)
    library.opcheck(torch.ops.ssdkern.encode_boxes_backward.default, args)


@places("encode_boxes")
def test_compiles_whole(device, backend):
    priors, boxes = random_boxes(8).to(device), random_boxes(16).view(2, 8, 4).to(device)

    def run(boxes):
        return encode_boxes(boxes, priors, backend=backend)

    compiled = whole(run)
    assert_close(compiled(boxes), run(boxes), scale=0.01)
    assert_close(*gradients(compiled, [boxes]), *gradients(run, [boxes]))
