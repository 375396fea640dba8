"""Boxes to offsets, a row a box."""

import torch
import triton
import triton.language as tl

from ssdkern.kernels.boxes import (
    EPS,
    at_least,
    divide,
    encode_axis,
    load_boxes,
    number,
    store_boxes,
)
from ssdkern.kernels.launcher import launcher

BLOCK = 256


@triton.jit(do_not_specialize=["rows"])
def _encode_boxes_kernel(
    boxes,
    priors,
    out,
    rows,
    P,
    center_variance: tl.float64,
    size_variance: tl.float64,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x1, y1, x2, y2 = load_boxes(boxes, row, row < rows)
    u1, v1, u2, v2 = load_boxes(priors, row % P, row < rows)
    dx, dw = encode_axis(x1, x2, u1, u2, center_variance, size_variance)
    dy, dh = encode_axis(y1, y2, v1, v2, center_variance, size_variance)
    store_boxes(out, row, row < rows, dx, dy, dw, dh)


@triton.jit
def _encode_axis_backward(
    grad_shift, grad_scale, low, high, prior_low, prior_high, center_variance, size_variance
):
    prior_size = at_least(prior_high - prior_low, EPS)
    to_both = divide(grad_shift * 0.5, prior_size * number(center_variance, prior_size))
    to_size = divide(grad_scale, at_least(high - low, EPS) * number(size_variance, prior_size))
    to_size = tl.where(high - low > EPS, to_size, 0.0)
    return to_both - to_size, to_both + to_size


@triton.jit(do_not_specialize=["rows"])
def _encode_boxes_backward_kernel(
    grad,
    boxes,
    priors,
    out,
    rows,
    P,
    center_variance: tl.float64,
    size_variance: tl.float64,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    dx, dy, dw, dh = load_boxes(grad, row, row < rows)
    x1, y1, x2, y2 = load_boxes(boxes, row, row < rows)
    u1, v1, u2, v2 = load_boxes(priors, row % P, row < rows)
    to_x1, to_x2 = _encode_axis_backward(dx, dw, x1, x2, u1, u2, center_variance, size_variance)
    to_y1, to_y2 = _encode_axis_backward(dy, dh, y1, y2, v1, v2, center_variance, size_variance)
    store_boxes(out, row, row < rows, to_x1, to_y1, to_x2, to_y2)


def _fake(boxes, priors, center_variance, size_variance):
    return torch.empty_like(boxes)


@launcher(_fake)
def encode_boxes_triton(
    boxes: torch.Tensor, priors: torch.Tensor, center_variance: float, size_variance: float
) -> torch.Tensor:
    out = torch.empty_like(boxes)
    rows = boxes.numel() // 4
    if rows:
        args = boxes, priors, out, rows, priors.shape[0], center_variance, size_variance
        _encode_boxes_kernel[(triton.cdiv(rows, BLOCK),)](*args, BLOCK=BLOCK)
    return out


def _fake_backward(grad, boxes, priors, center_variance, size_variance):
    return torch.empty_like(boxes)


@launcher(_fake_backward)
def encode_boxes_backward_triton(
    grad: torch.Tensor,
    boxes: torch.Tensor,
    priors: torch.Tensor,
    center_variance: float,
    size_variance: float,
) -> torch.Tensor:
    out = torch.empty_like(boxes)
    rows = boxes.numel() // 4
    if rows:
        args = grad, boxes, priors, out, rows, priors.shape[0], center_variance, size_variance
        _encode_boxes_backward_kernel[(triton.cdiv(rows, BLOCK),)](*args, BLOCK=BLOCK)
    return out
