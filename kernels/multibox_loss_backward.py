"""Gradients of the MultiBox loss, in one pass over what it writes."""

import torch
import triton
import triton.language as tl

from ssdkern.kernels.boxes import residuals, store_boxes
from ssdkern.kernels.launcher import launcher
from ssdkern.kernels.softmax import load_logits, tile


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
    lse,
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
    some, shift = tl.max(pick.to(tl.int32)) > 0, tl.load(lse + row, mask=pick, other=0.0)
    scale = tl.load(grad_classification)
    for start in range(0, C, COLS):
        col = start + tl.arange(0, COLS)[None, :]
        grad = tl.zeros([ROWS, COLS], lse.dtype.element_ty)
        if some:
            x = load_logits(logits, pick, start, C, COLS)
            grad = tl.exp(x - shift[:, None]) - (col == label[:, None]).to(grad.dtype)
            grad = tl.where(pick[:, None], grad * scale, 0.0)
        place = grad_logits + (lane[:, None] * C + col)
        tl.store(place, grad, mask=live[:, None] & (col < C))

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
