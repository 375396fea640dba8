"""What the tests of the ops share: where to run, on what, and how close is equal."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from ssdkern._backend import BACKENDS, INTERPRETED, why_not

GOLDEN = Path(__file__).with_name("golden")
GPU = torch.cuda.is_available()
TOLERANCES = {
    torch.float32: 2e-6,  # the promise for values through exp and log: 17 units in the last place
    torch.float64: 1e-13,  # the same code in double
}
# batch, priors, classes, truths of the fullest image; priors off the sizes of any block
SIZES = [(1, 1, 2, 1), (2, 37, 5, 3), (3, 300, 21, 8)]
if not INTERPRETED:
    SIZES.append((4, 8732, 21, 30))

sizes = pytest.mark.parametrize("size", SIZES, ids=lambda s: "B{}P{}C{}G{}".format(*s))


def cannot(op, backend, device):
    """The reason that `backend` cannot run `op` on `device` here, or None."""
    if device == "cuda" and not GPU:
        return "no CUDA device"
    return why_not(op, backend, device)


def places(op):
    """Runs a test on every device and backend, or skips it with the reason."""
    params = []
    for device, backends in (("cpu", BACKENDS), ("cuda", BACKENDS if GPU else BACKENDS[:1])):
        for backend in backends:
            reason = cannot(op, backend, device)
            marks = pytest.mark.skipif(reason is not None, reason=f"{op}: {reason}")
            params.append(pytest.param(device, backend, marks=marks, id=f"{device}-{backend}"))
    return pytest.mark.parametrize(("device", "backend"), params)


def needs_native(op):
    """Runs a test on the devices that have a native `op`."""
    params = []
    for device in ("cpu", "cuda"):
        reason = cannot(op, "native", device)
        marks = pytest.mark.skipif(reason is not None, reason=f"{op}: {reason}")
        params.append(pytest.param(device, marks=marks))
    return pytest.mark.parametrize("device", params)


def whole(function, mode="aot_eager"):
    """`function` compiled as one graph, from nothing."""
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, backend=mode)


def random_boxes(count, low=0.02, high=0.4):
    """xyxy boxes [count, 4] about the unit square with sides in [low, high]."""
    center = torch.rand(count, 2, dtype=torch.float64)
    half = (low + (high - low) * torch.rand(count, 2, dtype=torch.float64)) / 2
    return torch.cat((center - half, center + half), dim=1).float()


class Scene(NamedTuple):
    logits: torch.Tensor
    offsets: torch.Tensor
    priors: torch.Tensor
    gt_boxes: torch.Tensor
    gt_labels: torch.Tensor
    gt_offsets: torch.Tensor

    def to(self, where):
        """To a device, or the floating-point tensors to a dtype."""
        moves = isinstance(where, (str, torch.device))
        return Scene(*(t.to(where) if moves or t.is_floating_point() else t for t in self))


def scene(size, device="cpu"):
    """A batch in which image 0 has no truth, the last one the most, and boxes lie about priors."""
    batch, num_priors, num_classes, truths = size
    priors = random_boxes(num_priors)
    counts = torch.randint(0, truths + 1, (batch,))
    counts[0], counts[-1] = 0, truths
    gt_offsets = torch.cat((torch.zeros(1), counts.cumsum(0))).int()
    total = int(gt_offsets[-1])
    gt_boxes = priors[torch.randint(num_priors, (total,))] + 0.02 * torch.randn(total, 4)
    gt_boxes[:, 2:] = torch.maximum(gt_boxes[:, 2:], gt_boxes[:, :2] + 0.01)
    gt_labels = torch.randint(1, num_classes, (total,))
    logits = torch.randn(batch, num_priors, num_classes)
    logits[..., 0] += 2
    offsets = torch.randn(batch, num_priors, 4)
    return Scene(logits, offsets, priors, gt_boxes, gt_labels, gt_offsets).to(device)


def golden(name):
    """The arrays of one file of golden vectors as tensors, by key."""
    with np.load(GOLDEN / f"{name}.npz") as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


def assert_close(actual, expected, scale=0.0):
    """Within the tolerance of its dtype, relative to `expected` or to the `scale` of its terms."""
    tolerance = TOLERANCES[actual.dtype]
    error = (actual.cpu().double() - expected.cpu().double()).abs()
    scale = scale.cpu() if isinstance(scale, torch.Tensor) else scale
    bound = tolerance * (expected.cpu().double().abs() + scale)
    worst = (error - bound).max().item() if error.numel() else -1.0
    assert worst <= 0, f"off by {error.max().item():.3g}, {worst:.3g} over the bound"


def assert_same(actual, expected):
    """Equal to the last bit, NaN where NaN is expected."""
    torch.testing.assert_close(actual.cpu(), expected.cpu(), rtol=0, atol=0, equal_nan=True)


def gradients(function, inputs, seed=0):
    """The gradients of `function` at `inputs` for one random weight of each output value."""
    inputs = [t.detach().requires_grad_() for t in inputs]
    out = function(*inputs)
    generator = torch.Generator().manual_seed(seed)
    weight = torch.rand(out.shape, generator=generator, dtype=torch.float64).to(out)
    return torch.autograd.grad(out, inputs, weight)
