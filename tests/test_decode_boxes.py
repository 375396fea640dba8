"""decode_boxes against the Caffe original, torchvision and float64."""

import math

import pytest
import torch
from cases import assert_close, golden, gradients, needs_native, places, random_boxes, whole
from torch import library
from torchvision.models.detection._utils import BoxCoder

from ssdkern import decode_boxes
from ssdkern.ops.decode_boxes import decode_boxes_torch

NUMBERS = (0.1, 0.2, math.inf)
TORCHVISION_BOUND = math.log(1000 / 16)
counts = pytest.mark.parametrize("count", [1, 37, 300])


@places("decode_boxes")
@counts
@pytest.mark.parametrize("bound", [None, 0.3])
def test_matches_float64(count, bound, device, backend):
    priors = random_boxes(count).to(device)
    offsets = 2 * torch.randn(3, count, 4, device=device)
    numbers = (0.1, 0.2, math.inf if bound is None else bound)

    def run(offsets):
        return decode_boxes(offsets, priors, max_log_scale=bound, backend=backend)

    truth = decode_boxes_torch(offsets.double(), priors.double(), *numbers)
    assert_close(run(offsets), truth, scale=2)
    assert_close(run(offsets), decode_boxes_torch(offsets, priors, *numbers), scale=0.1)
    [want] = gradients(
        lambda o: decode_boxes_torch(o, priors.double(), *numbers), [offsets.double()]
    )
    for inputs in (offsets, offsets.double()):
        [got] = gradients(run, [inputs])
        assert got.dtype == inputs.dtype
        assert_close(got, want, scale=0.1)


@places("decode_boxes")
def test_edges(device, backend):
    priors = random_boxes(6).to(device)
    assert decode_boxes(priors[:0], priors[:0], backend=backend).shape == (0, 4)
    assert decode_boxes(priors[None][:0], priors, backend=backend).shape == (0, 6, 4)
    strided = torch.randn(6, 4, 2, 3, device=device).permute(3, 2, 0, 1)
    got = decode_boxes(strided, priors, backend=backend)
    assert torch.equal(got, decode_boxes(strided.contiguous(), priors, backend=backend))


@places("decode_boxes")
def test_extremes_are_not_nan(device, backend):
    priors = torch.tensor([[0, 0, 0.5, 0.5], [0.2, 0.2, 0.2, 0.6]], device=device)
    offsets = torch.tensor([[[1e4, -1e4, 1e4, -1e4], [3e6, 0, 1e5, 500]]], device=device)
    got = decode_boxes(offsets, priors, backend=backend)
    want = decode_boxes_torch(offsets, priors, *NUMBERS)
    assert not got.isnan().any()
    assert torch.equal(got.isinf(), want.isinf()) and got[0, 0, 2] == math.inf
    bounded = decode_boxes(offsets, priors, max_log_scale=TORCHVISION_BOUND, backend=backend)
    assert bounded.isfinite().all()


@places("decode_boxes")
def test_gradient_at_the_bound(device, backend):
    """Above it there is none."""
    priors = random_boxes(3, low=0.2).to(device)
    offsets = torch.zeros(3, 4, device=device)
    offsets[:, 2] = torch.tensor([0.25, 0.4, 0.75])
    bounds = {"variances": (0.5, 0.5), "max_log_scale": 0.25}
    [grad] = gradients(lambda o: decode_boxes(o, priors, **bounds, backend=backend), [offsets])
    want = gradients(lambda o: decode_boxes_torch(o, priors, 0.5, 0.5, 0.25), [offsets])[0]
    assert_close(grad, want)
    assert (grad[:, 2] != 0).tolist() == [True, True, False]


@places("decode_boxes")
def test_anchor_caffe(device, backend):
    vectors = {key: value.to(device) for key, value in golden("code").items()}
    got = decode_boxes(vectors["offsets"], vectors["priors"], backend=backend)
    assert_close(got, vectors["decoded"], scale=0.1)


@places("decode_boxes")
def test_anchor_worked_example(device, backend):
    prior = torch.tensor([[0, 0, 0.5, 0.5]], device=device)
    offsets = torch.tensor([[1, -1, math.log(2) / 0.2, 0]], device=device)
    got = decode_boxes(offsets, prior, backend=backend)
    assert got[0].tolist() == pytest.approx([-0.2, -0.05, 0.8, 0.45], abs=1e-6)


@places("decode_boxes")
def test_anchor_torchvision(device, backend):
    priors = 300 * random_boxes(200).to(device)
    offsets = 6 * torch.randn(200, 4, device=device)
    want = BoxCoder((10, 10, 5, 5)).decode_single(offsets.double(), priors.double())
    got = decode_boxes(offsets, priors, max_log_scale=TORCHVISION_BOUND, backend=backend)
    size = (want[:, 2:] - want[:, :2]).repeat(1, 2)
    assert_close(got, want, scale=600 + size)


@places("decode_boxes")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_is_computed_in_float32(dtype, device, backend):
    priors = random_boxes(20).to(device)
    offsets = torch.randn(2, 20, 4, device=device).to(dtype)
    got = decode_boxes(offsets, priors, backend=backend)
    assert torch.equal(got, decode_boxes(offsets.float(), priors, backend=backend))
    [grad] = gradients(lambda o: decode_boxes(o, priors, backend=backend), [offsets])
    assert grad.dtype == dtype


def test_rejects():
    priors = random_boxes(3)
    with pytest.raises(ValueError, match=r"want priors \[P, 4\], got \[3, 3\]"):
        decode_boxes(priors, priors[:, :3])
    with pytest.raises(ValueError, match=r"want offsets \[\.\.\., 3, 4\], got \[4\]"):
        decode_boxes(priors[0], priors)
    with pytest.raises(ValueError, match="want offsets of a floating-point dtype"):
        decode_boxes(priors.long(), priors)
    with pytest.raises(ValueError, match="want variances"):
        decode_boxes(priors, priors, variances=(0.1, 0.1, 0.2, 0.2))


@needs_native("decode_boxes")
def test_opcheck(device):
    priors, offsets = random_boxes(8).to(device), torch.randn(2, 8, 4, device=device)
    library.opcheck(torch.ops.ssdkern.decode_boxes.default, (offsets, priors, *NUMBERS))
    args = (torch.rand_like(offsets), offsets, priors, *NUMBERS)
    library.opcheck(torch.ops.ssdkern.decode_boxes_backward.default, args)


@places("decode_boxes")
def test_compiles_whole(device, backend):
    priors, offsets = random_boxes(8).to(device), torch.randn(2, 8, 4, device=device)

    def run(offsets):
        return decode_boxes(offsets, priors, max_log_scale=4.0, backend=backend)

    compiled = whole(run)
    assert_close(compiled(offsets), run(offsets), scale=0.1)
    assert_close(*gradients(compiled, [offsets]), *gradients(run, [offsets]), scale=0.1)
