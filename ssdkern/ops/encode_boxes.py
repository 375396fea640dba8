"""From boxes to the offsets that SSD learns."""

import math

import torch

from ssdkern._backend import resolve
from ssdkern.ops._check import compute_dtype, want, want_boxes, want_same_device, want_variances
from ssdkern.ops._dispatch import fake, kernel

EPS = 1e-8


def encode_boxes(boxes, priors, *, variances=(0.1, 0.2), backend=None):
    """Encode boxes as offsets from the priors, SSD's regression targets.

    Args:
        boxes (Tensor[..., P, 4]): one box for each prior, xyxy, any dtype, units of `priors`.
        priors (Tensor[P, 4]): xyxy. Constants: no gradient reaches them.
        variances: what the offsets are divided by, ``(center, size)``.
        backend: ``"native"``, ``"triton"``, ``"torch"``; None takes the first that can run.

    Returns:
        Tensor[..., P, 4]: ``(dx, dy, dw, dh)``, float64 where either input is, else float32.
        Differentiable in `boxes`. Widths and heights count as 1e-8 at least, so that boxes without
        area give large finite offsets (torchvision: -inf, or NaN for inverted boxes).

    Raises:
        ValueError: a shape, device or variance does not fit.
        RuntimeError: `backend` cannot run on this device.

    Source: Liu et al. 2016, eq. 2; the variances are those of the authors' Caffe code.
    """
    want_boxes("priors", priors, "[P, 4]", ndim=2)
    if boxes.shape[-2:] != priors.shape:
        want(False, f"boxes [..., {len(priors)}, 4]", list(boxes.shape))
    want_variances(variances)
    want_same_device(boxes=boxes, priors=priors)
    backend = resolve("encode_boxes", backend, boxes.device)
    dtype = compute_dtype(boxes, priors)
    boxes, priors = boxes.to(dtype), priors.detach().to(dtype)
    if backend == "torch":
        return encode_boxes_torch(boxes, priors, *variances)
    rows = boxes.reshape(math.prod(boxes.shape[:-2]), *priors.shape)
    return _EncodeBoxes.apply(rows, priors, *variances, backend).reshape(boxes.shape)


def center_and_size(boxes):
    """Centres [..., 2] and sizes [..., 2] of xyxy boxes, sizes at least EPS."""
    low, high = boxes[..., :2], boxes[..., 2:]
    size = high - low
    return (low + high) / 2, torch.where(size <= EPS, EPS, size)  # as in decode_boxes, not clamp


def encode_boxes_torch(boxes, priors, center_variance, size_variance):
    """The reference: float boxes [..., P, 4] and priors [P, 4] of one dtype."""
    center, size = center_and_size(boxes)
    prior_center, prior_size = center_and_size(priors)
    shift = (center - prior_center) / prior_size / center_variance
    return torch.cat((shift, (size / prior_size).log() / size_variance), dim=-1)


class _EncodeBoxes(torch.autograd.Function):
    @staticmethod
    def forward(ctx, boxes, priors, center_variance, size_variance, backend):
        ctx.save_for_backward(boxes, priors)
        ctx.variances, ctx.backend = (center_variance, size_variance), backend
        return kernel("encode_boxes", backend)(boxes, priors, center_variance, size_variance)

    @staticmethod
    def backward(ctx, grad):
        backward = kernel("encode_boxes_backward", ctx.backend)
        return backward(grad, *ctx.saved_tensors, *ctx.variances), None, None, None, None


@fake("encode_boxes")
def _(boxes, priors, center_variance, size_variance):
    return boxes.new_empty(boxes.shape)


@fake("encode_boxes_backward")
def _(grad, boxes, priors, center_variance, size_variance):
    return boxes.new_empty(boxes.shape)
