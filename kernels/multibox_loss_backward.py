"""Gradients of the MultiBox loss, in one pass over what it writes."""

import torch
import triton
import triton.language as tl

from ssdkern.kernels.boxes import divide, residuals, store_boxes
from ssdkern.kernels.launcher import launcher
from ssdkern.kernels.softmax import load_logits, peak_and_total, tile


@triton.jit
def _slope(x):
    return tl.where(x < -1, -1.0, tl.where(x > 1, 1.0, x))


@triton.jit(do_not_specialize=["truths"])
def _multibox_loss_backward_kernel(
    grad_localization,
    grad_classification,
    logits,
    offsets,
    priors,
    gt_boxes,
    gt_labels,
    matched,
    selected,
    grad_logits,
    grad_offsets,
    P,
    truths,
    center_variance: tl.float64,
    size_variance: tl.float64,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    blocks = tl.cdiv(P, ROWS)
    block, image = tl.program_id(0) % blocks, (tl.program_id(0) // blocks).to(tl.int64)
    lane = tl.arange(0, ROWS)
    prior = block * ROWS + lane
    live, row = prior < P, image * P + prior
    first = (image * P + block * ROWS) * C
    logits, grad_logits = logits + first, grad_logits + first
    match = tl.load(matched + row, mask=live, other=-2)
    positive = (match >= 0) & (match < truths)
    label = tl.load(gt_labels + match, mask=positive, other=0).to(tl.int32)
    pick = tl.load(selected + row, mask=live, other=0) != 0
    some, scale = tl.max(pick.to(tl.int32)) > 0, tl.load(grad_classification)
    zero = tl.zeros([ROWS], priors.dtype.element_ty)
    peak, inverse = zero, zero
    if some:
        # exp(x - lse) of a kept logsumexp, which is rounded, would be off where logits are large
        peak, total = peak_and_total(logits, pick, zero.dtype, C, COLS)
        inverse = divide(zero + 1, total)
    for start in range(0, C, COLS):
        col = start + tl.arange(0, COLS)[None, :]
        grad = tl.zeros([ROWS, COLS], zero.dtype)
        if some:
            x = load_logits(logits, pick, start, C, COLS)
            grad = tl.exp(x - peak[:, None]) * inverse[:, None]
            grad -= (col == label[:, None]).to(grad.dtype)
            grad = tl.where(pick[:, None], grad * scale, 0.0)
        place = grad_logits + (lane[:, None] * C + col)
        tl.store(place, grad, mask=live[:, None] & (col < C))

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
    selected: torch.Tensor,
    center_variance: float,
    size_variance: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    grads = torch.empty_like(logits), torch.empty_like(offsets)
    images, P, C = logits.shape
    if selected.numel():
        inputs = logits, offsets, priors, gt_boxes, gt_labels, matched, selected
        numbers = P, gt_boxes.shape[0], center_variance, size_variance
        rows, cols = tile(C)
        _multibox_loss_backward_kernel[(triton.cdiv(P, rows) * images,)](
            *(grad_localization, grad_classification, *inputs, *grads, *numbers),
            C=C,
            ROWS=rows,
            COLS=cols,
            num_warps=4,
        )
    return grads
