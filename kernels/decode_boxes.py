"""Offsets to boxes, a row a box."""

import torch
import triton
import triton.language as tl

from ssdkern.kernels.boxes import (
    EPS,
    at_least,
    decode_axis,
    exponential,
    load_boxes,
    number,
    store_boxes,
)
from ssdkern.kernels.launcher import launcher

BLOCK = 256


@triton.jit(do_not_specialize=["rows"])
def _decode_boxes_kernel(
    offsets,
    priors,
    out,
    rows,
    P,
    center_variance: tl.float64,
    size_variance: tl.float64,
    max_log_scale: tl.float64,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    dx, dy, dw, dh = load_boxes(offsets, row, row < rows)
    u1, v1, u2, v2 = load_boxes(priors, row % P, row < rows)
    x1, x2 = decode_axis(dx, dw, u1, u2, center_variance, size_variance, max_log_scale)
    y1, y2 = decode_axis(dy, dh, v1, v2, center_variance, size_variance, max_log_scale)
    store_boxes(out, row, row < rows, x1, y1, x2, y2)


@triton.jit
def _decode_axis_backward(
    grad_low,
    grad_high,
    scale,
    prior_low,
    prior_high,
    center_variance,
    size_variance,
    max_log_scale,
):
    prior_size = at_least(prior_high - prior_low, EPS)
    to_shift = (grad_low + grad_high) * number(center_variance, scale) * prior_size
    scale = scale * number(size_variance, scale)
    half = exponential(scale) * prior_size * 0.5
    to_scale = (grad_high - grad_low) * half * number(size_variance, scale)
    return to_shift, tl.where(scale < number(max_log_scale, scale), to_scale, 0.0)


@triton.jit(do_not_specialize=["rows"])
def _decode_boxes_backward_kernel(
    grad,
    offsets,
    priors,
    out,
    rows,
    P,
    center_variance: tl.float64,
    size_variance: tl.float64,
    max_log_scale: tl.float64,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x1, y1, x2, y2 = load_boxes(grad, row, row < rows)
    dx, dy, dw, dh = load_boxes(offsets, row, row < rows)
    u1, v1, u2, v2 = load_boxes(priors, row % P, row < rows)
    dx, dw = _decode_axis_backward(
        x1, x2, dw, u1, u2, center_variance, size_variance, max_log_scale
    )
    dy, dh = _decode_axis_backward(
        y1, y2, dh, v1, v2, center_variance, size_variance, max_log_scale
    )
    store_boxes(out, row, row < rows, dx, dy, dw, dh)


def _fake(offsets, priors, center_variance, size_variance, max_log_scale):
    return torch.empty_like(offsets, dtype=priors.dtype)


@launcher(_fake)
def decode_boxes_triton(
    offsets: torch.Tensor,
    priors: torch.Tensor,
    center_variance: float,
    size_variance: float,
    max_log_scale: float,
) -> torch.Tensor:
    out = _fake(offsets, priors, center_variance, size_variance, max_log_scale)
    rows = offsets.numel() // 4
    if rows:
        numbers = center_variance, size_variance, max_log_scale
        args = offsets, priors, out, rows, priors.shape[0], *numbers
        _decode_boxes_kernel[(triton.cdiv(rows, BLOCK),)](*args, BLOCK=BLOCK)
    return out


def _fake_backward(grad, offsets, priors, center_variance, size_variance, max_log_scale):
    return torch.empty_like(offsets, dtype=priors.dtype)


@launcher(_fake_backward)
def decode_boxes_backward_triton(
    grad: torch.Tensor,
    offsets: torch.Tensor,
    priors: torch.Tensor,
    center_variance: float,
    size_variance: float,
    max_log_scale: float,
) -> torch.Tensor:
    numbers = center_variance, size_variance, max_log_scale
    out = _fake_backward(grad, offsets, priors, *numbers)
    rows = offsets.numel() // 4
    if rows:
        args = grad, offsets, priors, out, rows, priors.shape[0], *numbers
        _decode_boxes_backward_kernel[(triton.cdiv(rows, BLOCK),)](*args, BLOCK=BLOCK)
    return out
