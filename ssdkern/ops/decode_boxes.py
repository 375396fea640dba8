"""From the offsets that SSD predicts to boxes."""

import math

import torch

from ssdkern._backend import resolve
from ssdkern.ops._check import (
    as_kernel_input,
    compute_dtype,
    want,
    want_boxes,
    want_float,
    want_same_device,
    want_variances,
)
from ssdkern.ops._dispatch import fake, kernel
from ssdkern.ops.encode_boxes import center_and_size


def decode_boxes(offsets, priors, *, variances=(0.1, 0.2), max_log_scale=None, backend=None):
    """Decode the offsets SSD predicts into corner boxes, the inverse of `encode_boxes`.

    Args:
        offsets (Tensor[..., P, 4]): ``(dx, dy, dw, dh)``, floating point.
        priors (Tensor[P, 4]): xyxy. Constants: no gradient reaches them. Their widths and heights
            count as 1e-8 at least.
        variances: what the offsets were divided by, ``(center, size)``.
        max_log_scale: upper bound of ``dw * size_variance`` and ``dh * size_variance``
            (torchvision: log(1000 / 16)); None sets no bound, as the Caffe original.
        backend: ``"native"``, ``"triton"``, ``"torch"``; None takes the first that can run.

    Returns:
        Tensor[..., P, 4]: xyxy, units of `priors`, not clipped; float64 where either input is, else
        float32. Differentiable in `offsets`.

    Raises:
        ValueError: a shape, dtype, device, variance or bound does not fit.
        RuntimeError: `backend` cannot run on this device.

    Source: Liu et al. 2016, eq. 2, solved for the box; the variances are those of the authors'
    Caffe code.
    """
    want_boxes("priors", priors, "[P, 4]", ndim=2)
    if offsets.shape[-2:] != priors.shape:
        want(False, f"offsets [..., {len(priors)}, 4]", list(offsets.shape))
    want_float("offsets", offsets)
    want_variances(variances)
    want_same_device(offsets=offsets, priors=priors)
    backend = resolve("decode_boxes", backend, offsets.device)
    dtype = compute_dtype(offsets, priors)
    priors = priors.detach().to(dtype)
    bound = math.inf if max_log_scale is None else max_log_scale
    if backend == "torch":
        return decode_boxes_torch(offsets.to(dtype), priors, *variances, bound)
    rows = as_kernel_input(offsets, dtype).reshape(math.prod(offsets.shape[:-2]), *priors.shape)
    return _DecodeBoxes.apply(rows, priors, *variances, bound, backend).reshape(offsets.shape)


def decode_boxes_torch(offsets, priors, center_variance, size_variance, max_log_scale):
    """The reference: float offsets [..., P, 4] and priors [P, 4] of one dtype."""
    prior_center, prior_size = center_and_size(priors)
    center = offsets[..., :2] * center_variance * prior_size + prior_center
    log_scale = offsets[..., 2:] * size_variance
    # not clamp, whose gradient at the bound is 1 in torch 2.11 and 0 in 2.14
    log_scale = torch.where(log_scale >= max_log_scale, max_log_scale, log_scale)
    half = log_scale.exp() * prior_size / 2
    return torch.cat((center - half, center + half), dim=-1)


class _DecodeBoxes(torch.autograd.Function):
    @staticmethod
    def forward(ctx, offsets, priors, center_variance, size_variance, max_log_scale, backend):
        ctx.save_for_backward(offsets, priors)
        ctx.numbers, ctx.backend = (center_variance, size_variance, max_log_scale), backend
        return kernel("decode_boxes", backend)(offsets, priors, *ctx.numbers)

    @staticmethod
    def backward(ctx, grad):
        offsets, priors = ctx.saved_tensors
        backward = kernel("decode_boxes_backward", ctx.backend)
        grad = backward(grad, offsets, priors, *ctx.numbers)
        return grad.to(offsets.dtype), None, None, None, None, None


@fake("decode_boxes")
def _(offsets, priors, center_variance, size_variance, max_log_scale):
    return offsets.new_empty(offsets.shape, dtype=compute_dtype(offsets))


@fake("decode_boxes_backward")
def _(grad, offsets, priors, center_variance, size_variance, max_log_scale):
    return offsets.new_empty(offsets.shape, dtype=compute_dtype(offsets))
