"""The MultiBox loss: rows of logits, selection in each image, ordered sums."""

import torch
import triton
import triton.language as tl

from ssdkern.kernels.boxes import residuals, widen
from ssdkern.kernels.launcher import launcher
from ssdkern.kernels.mine_hard_negatives import BLOCK, held, negatives_to_pick
from ssdkern.kernels.multibox_loss_backward import multibox_loss_backward_triton
from ssdkern.kernels.select import kth_highest, load_keys, lowest_key, picked
from ssdkern.kernels.softmax import peak_and_total, tile

__all__ = ["multibox_loss_backward_triton", "multibox_loss_triton"]


@triton.jit
def _smooth_l1(x):
    return tl.where(tl.abs(x) < 1, 0.5 * x * x, tl.abs(x) - 0.5)


@triton.jit(do_not_specialize=["truths"])
def _multibox_loss_kernel(
    logits,
    offsets,
    priors,
    gt_boxes,
    gt_labels,
    matched,
    rank,
    parts,
    P,
    truths,
    center_variance: tl.float64,
    size_variance: tl.float64,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    """Cross-entropy of ROWS priors. `rank` [B, P] is what negatives are chosen by, -inf for others.

    `parts` [2, B, blocks] takes the sums over the positives of both terms.
    """
    blocks = tl.cdiv(P, ROWS)
    block, image = tl.program_id(0) % blocks, (tl.program_id(0) // blocks).to(tl.int64)
    lane = tl.arange(0, ROWS)
    prior = block * ROWS + lane
    live, row = prior < P, image * P + prior
    logits += (image * P + block * ROWS) * C
    match = tl.load(matched + row, mask=live, other=-2)
    positive = (match >= 0) & (match < truths)
    label = tl.load(gt_labels + match, mask=positive, other=0)
    known = live & (label >= 0) & (label < C)
    chosen = widen(tl.load(logits + lane * C + label.to(tl.int32), mask=known, other=0.0))

    # 1. softmax
    peak, total = peak_and_total(logits, live, parts.dtype.element_ty, C, COLS)
    cross_entropy = tl.log(total) - (chosen - peak)
    tl.store(rank + row, tl.where(match == -1, cross_entropy, float("-inf")), mask=live)

    # 2. positives, which most blocks have none of
    smooth = tl.zeros_like(total)
    if tl.max(positive.to(tl.int32)) > 0:
        dx, dy, dw, dh = residuals(
            offsets, priors, gt_boxes, row, prior, match, positive, center_variance, size_variance
        )
        smooth = _smooth_l1(dx) + _smooth_l1(dy) + _smooth_l1(dw) + _smooth_l1(dh)
    parts += tl.program_id(0)
    tl.store(parts, tl.sum(tl.where(positive, smooth, 0.0)))
    parts += tl.num_programs(0)
    tl.store(parts, tl.sum(tl.where(positive, cross_entropy, 0.0)))


@triton.jit
def _pick_kernel(
    matched,
    rank,
    selected,
    parts,
    sums,
    counts,
    P,
    blocks,
    neg_pos_ratio: tl.float64,
    BLOCK: tl.constexpr,
    HELD: tl.constexpr,
):
    """Chooses the negatives of one image and sums over it, into `sums` [2, B] and `counts` [B]."""
    image, images = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    matched, rank, selected = matched + image * P, rank + image * P, selected + image * P
    zero = tl.zeros([BLOCK], parts.dtype.element_ty)
    lowest = lowest_key(zero)
    positives, candidates = tl.zeros([BLOCK], tl.int32), tl.zeros([BLOCK], tl.int32)
    for start in range(0, P, BLOCK):
        i = start + tl.arange(0, BLOCK)
        positives += (tl.load(matched + i, mask=i < P, other=-1) >= 0).to(tl.int32)
        candidates += (load_keys(rank, rank, i, P, False) != lowest).to(tl.int32)
    k = negatives_to_pick(tl.sum(positives), tl.sum(candidates), neg_pos_ratio)
    least, ties = ~lowest, k
    if k > 0:
        least, ties = kth_highest(rank, rank, P, k, False, BLOCK, HELD)

    smooth, cross_entropy, seen = zero, zero, tl.full([], 0, tl.int32)
    for start in range(0, P, BLOCK):
        i = start + tl.arange(0, BLOCK)
        pick, seen = picked(load_keys(rank, rank, i, P, False), least, ties, seen)
        cross_entropy += tl.load(rank + i, mask=pick, other=0.0)
        positive = tl.load(matched + i, mask=i < P, other=-1) >= 0
        tl.store(selected + i, pick | positive, mask=i < P)
    parts += image * blocks
    for start in range(0, blocks, BLOCK):
        i = start + tl.arange(0, BLOCK)
        smooth += tl.load(parts + i, mask=i < blocks, other=0.0)
        place = parts + images.to(tl.int64) * blocks + i
        cross_entropy += tl.load(place, mask=i < blocks, other=0.0)
    tl.store(sums + image, tl.sum(smooth))
    tl.store(sums + images + image, tl.sum(cross_entropy))
    tl.store(counts + image, tl.sum(positives))


@triton.jit(do_not_specialize=["B"])
def _total_kernel(sums, counts, localization, classification, positives, B, BLOCK: tl.constexpr):
    zero = tl.zeros([BLOCK], sums.dtype.element_ty)
    smooth, cross_entropy, count = zero, zero, tl.zeros([BLOCK], tl.int64)
    for start in range(0, B, BLOCK):
        i = start + tl.arange(0, BLOCK)
        smooth += tl.load(sums + i, mask=i < B, other=0.0)
        cross_entropy += tl.load(sums + B + i, mask=i < B, other=0.0)
        count += tl.load(counts + i, mask=i < B, other=0)
    tl.store(localization, tl.sum(smooth))
    tl.store(classification, tl.sum(cross_entropy))
    tl.store(positives, tl.sum(count))


def _fake(logits, offsets, priors, gt_boxes, gt_labels, matched, *numbers):
    localization, classification = priors.new_empty(()), priors.new_empty(())
    positives = priors.new_empty((), dtype=torch.int64)
    selected = matched.new_empty(matched.shape, dtype=torch.bool)
    return localization, classification, positives, selected


@launcher(_fake)
def multibox_loss_triton(
    logits: torch.Tensor,
    offsets: torch.Tensor,
    priors: torch.Tensor,
    gt_boxes: torch.Tensor,
    gt_labels: torch.Tensor,
    matched: torch.Tensor,
    neg_pos_ratio: float,
    center_variance: float,
    size_variance: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    images, P, C = logits.shape
    inputs, variances = (
        (logits, offsets, priors, gt_boxes, gt_labels),
        (center_variance, size_variance),
    )
    outputs = _fake(*inputs, matched, neg_pos_ratio, *variances)
    localization, classification, positives, selected = outputs
    rows, cols = tile(C)
    blocks = triton.cdiv(P, rows)
    rank, parts = priors.new_empty(images, P), priors.new_empty(2, images, blocks)
    sums, counts = priors.new_empty(2, images), positives.new_empty(images)
    if selected.numel():
        args = *inputs, matched, rank, parts, P, gt_boxes.shape[0], *variances
        _multibox_loss_kernel[(blocks * images,)](*args, C=C, ROWS=rows, COLS=cols, num_warps=4)
    if images:
        args = matched, rank, selected, parts, sums, counts, P, blocks, neg_pos_ratio
        _pick_kernel[(images,)](*args, BLOCK=BLOCK, HELD=held(P), num_warps=16)
    args = sums, counts, localization, classification, positives, images
    _total_kernel[(1,)](*args, BLOCK=128, num_warps=1)
    return outputs
