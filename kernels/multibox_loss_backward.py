"""Gradients of the MultiBox loss, in one pass over what it writes."""

import torch
import triton
import triton.language as tl

from ssdkern.kernels.boxes import residuals, store_boxes, widen
from ssdkern.kernels.launcher import launcher


def tile(num_classes):
    """Rows and columns of logits that a program of four warps holds at a time."""
    cols = min(128, triton.next_power_of_2(num_classes))
    return min(128, 2048 // cols), cols


@triton.jit
def _slope(x):
    return tl.where(x < -1, -1.0, tl.where(x > 1, 1.0, x))


@triton.jit
def _multibox_loss_backward_kernel(
    grad_localization,
    grad_classification,
    logits,
    offsets,
    priors,
    gt_boxes,
    gt_labels,
    matched,
    lse,
    selected,
    grad_logits,
    grad_offsets,
    P,
    C,
    truths,
    center_variance: tl.float64,
    size_variance: tl.float64,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    lane, prior = tl.arange(0, ROWS), tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    live, row = prior < P, tl.program_id(1).to(tl.int64) * P + prior
    first = (tl.program_id(1).to(tl.int64) * P + tl.program_id(0) * ROWS) * C
    logits, grad_logits = logits + first, grad_logits + first
    match = tl.load(matched + row, mask=live, other=-2)
    positive = (match >= 0) & (match < truths)
    label = tl.load(gt_labels + match, mask=positive, other=0)
    pick = tl.load(selected + row, mask=live, other=0) != 0
    some, shift = tl.max(pick.to(tl.int32)) > 0, tl.load(lse + row, mask=pick, other=0.0)
    scale = tl.load(grad_classification)
    for start in range(0, C, COLS):
        col = start + tl.arange(0, COLS)
        place = lane[:, None] * C + col[None, :]
        grad = tl.zeros([ROWS, COLS], lse.dtype.element_ty)
        if some:
            mask = pick[:, None] & (col < C)[None, :]
            x = widen(tl.load(logits + place, mask=mask, other=0.0))
            grad = tl.exp(x - shift[:, None]) - (col[None, :] == label[:, None]).to(grad.dtype)
            grad = tl.where(pick[:, None], grad * scale, 0.0)
        tl.store(grad_logits + place, grad, mask=live[:, None] & (col < C)[None, :])

    zero = tl.zeros([ROWS], lse.dtype.element_ty)
    dx, dy, dw, dh = zero, zero, zero, zero
    if tl.max(positive.to(tl.int32)) > 0:
        dx, dy, dw, dh = residuals(
            offsets, priors, gt_boxes, row, prior, match, positive, center_variance, size_variance
        )
    factor = tl.load(grad_localization)
    dx, dy = _slope(dx) * factor, _slope(dy) * factor
    dw, dh = _slope(dw) * factor, _slope(dh) * factor
    store_boxes(grad_offsets, row, live, dx, dy, dw, dh)


def _fake(grad_localization, grad_classification, logits, offsets, *rest):
    return torch.empty_like(logits), torch.empty_like(offsets)


@launcher(_fake)
def multibox_loss_backward_triton(
    grad_localization: torch.Tensor,
    grad_classification: torch.Tensor,
    logits: torch.Tensor,
    offsets: torch.Tensor,
    priors: torch.Tensor,
    gt_boxes: torch.Tensor,
    gt_labels: torch.Tensor,
    matched: torch.Tensor,
    lse: torch.Tensor,
    selected: torch.Tensor,
    center_variance: float,
    size_variance: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    grads = torch.empty_like(logits), torch.empty_like(offsets)
    images, P, C = logits.shape
    if selected.numel():
        inputs = logits, offsets, priors, gt_boxes, gt_labels, matched, lse, selected
        numbers = P, C, gt_boxes.shape[0], center_variance, size_variance
        rows, cols = tile(C)
        _multibox_loss_backward_kernel[(triton.cdiv(P, rows), images)](
            *(grad_localization, grad_classification, *inputs, *grads, *numbers),
            ROWS=rows,
            COLS=cols,
            num_warps=4,
        )
    return grads
