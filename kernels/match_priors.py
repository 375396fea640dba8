"""Matching without the IoU matrix: the best of each block of priors, then the rows' claims."""

import torch
import triton
import triton.language as tl

from ssdkern.kernels.boxes import iou, load_box, load_boxes, number
from ssdkern.kernels.launcher import launcher

BLOCK = 128  # priors
ROWS = 32  # ground truth
SPAN = 128  # blocks


@triton.jit
def _overlap(value, BIPARTITE: tl.constexpr):
    """IoU as the rules rank it: -1 for what cannot match, NaN among it. Caffe wants > 1e-6."""
    if BIPARTITE:
        return tl.where(value > 1e-6, value, -1.0)
    else:
        return tl.where(value >= 0, value, -1.0)


@triton.jit
def _match_priors_kernel(
    priors,
    gt_boxes,
    gt_offsets,
    matched,
    owner,
    part_value,
    part_prior,
    P,
    blocks,
    iou_threshold: tl.float64,
    BIPARTITE: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Matches by threshold, and finds the best prior of the block for each row of the image."""
    block, image = tl.program_id(0), tl.program_id(1)
    prior = block * BLOCK + tl.arange(0, BLOCK)
    live = prior < P
    x1, y1, x2, y2 = load_boxes(priors, prior, live)
    left = tl.min(tl.where(live, x1, float("inf")))
    top = tl.min(tl.where(live, y1, float("inf")))
    right = tl.max(tl.where(live, x2, float("-inf")))
    down = tl.max(tl.where(live, y2, float("-inf")))
    low, high = tl.load(gt_offsets + image), tl.load(gt_offsets + image + 1)
    best, best_row = tl.full([BLOCK], -1.0, x1.dtype), tl.full([BLOCK], -1, tl.int32)
    for start in range(low, high, ROWS):
        # 1. rows that lie apart from the whole block have no overlap, as nearly all have
        lane = tl.arange(0, ROWS)
        u1, v1, u2, v2 = load_boxes(gt_boxes, start + lane, start + lane < high)
        apart = (u1 >= right) | (u2 <= left) | (v1 >= down) | (v2 <= top)
        near = (start + lane < high) & ((apart == 0) | (not BIPARTITE))
        place = (start + lane).to(tl.int64) * blocks + block
        none = tl.full([ROWS], -1.0, x1.dtype)
        tl.store(part_value + place, none, mask=(start + lane < high) & (near == 0))

        # 2. the others, one by one, in their order
        row = tl.min(tl.where(near, start + lane, high))
        while row < high:
            a1, b1, a2, b2 = load_box(gt_boxes, row)
            value = tl.where(live, _overlap(iou(a1, b1, a2, b2, x1, y1, x2, y2), BIPARTITE), -1.0)
            better = value > best
            best, best_row = tl.where(better, value, best), tl.where(better, row, best_row)
            peak = tl.max(value)
            tl.store(part_value + row.to(tl.int64) * blocks + block, peak)
            at = tl.min(tl.where(value == peak, prior, P))
            tl.store(part_prior + row.to(tl.int64) * blocks + block, at)
            row = tl.min(tl.where(near & (start + lane > row), start + lane, high))
    place = image.to(tl.int64) * P + prior
    hit = (best >= 0) & (best >= number(iou_threshold, best))
    tl.store(matched + place, tl.where(hit, best_row, -1), mask=live)
    tl.store(owner + place, tl.full([BLOCK], -1, tl.int32), mask=live)


@triton.jit
def _best_of_row(part_value, part_prior, row, live, P, blocks, SPAN: tl.constexpr):
    """Highest overlap and then lowest prior of each row over all blocks; -1 for none."""
    value = tl.full(row.shape, -1.0, part_value.dtype.element_ty)
    prior = tl.full(row.shape, 0, tl.int32)
    for first in range(0, blocks, SPAN):
        block = first + tl.arange(0, SPAN)
        place = row.to(tl.int64)[:, None] * blocks + block[None, :]
        v = tl.load(part_value + place, mask=live & (block < blocks)[None, :], other=-1.0)
        p = tl.load(part_prior + place, mask=v >= 0, other=P)
        peak = tl.max(v, axis=1)
        at = tl.min(tl.where(v == peak[:, None], p, P), axis=1)
        prior = tl.where(peak > value, at, prior)
        value = tl.maximum(peak, value)
    return value, prior


@triton.jit
def _first_without(owner, wanted, rows, high):
    """The first of the rows that has not got the prior it wants, else `high`."""
    prior = tl.load(wanted + rows, mask=rows < high, other=-1)
    held = tl.load(owner + prior, mask=prior >= 0, other=-1)
    return tl.min(tl.where((prior >= 0) & (held != rows), rows, high))


@triton.jit
def _claim_priors_kernel(
    priors,
    gt_boxes,
    gt_offsets,
    matched,
    owner,
    owner_value,
    wanted,
    part_value,
    part_prior,
    P,
    blocks,
    BIPARTITE: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    SPAN: tl.constexpr,
):
    """Rows claim priors. `owner` [B, P] holds the row that has each, `wanted` [T] its prior or -1.

    Under the bipartite rule a row that lost its prior claims its best among those that no better
    row owns. As both sides rank pairs alike, this ends in what Caffe's greedy search over the whole
    matrix finds.
    """
    image = tl.program_id(0).to(tl.int64)
    low, high = tl.load(gt_offsets + image), tl.load(gt_offsets + image + 1)
    owner += image * P
    owner_value += image * P

    # 1. every row claims its best prior
    for start in range(low, high, ROWS):
        row = start + tl.arange(0, ROWS)
        value, prior = _best_of_row(
            part_value, part_prior, row, (row < high)[:, None], P, blocks, SPAN
        )
        claims = value >= 0
        same = (prior[:, None] == prior[None, :]) & claims[None, :]  # the rival is in axis 1
        if BIPARTITE:
            tie = (value[None, :] == value[:, None]) & (row[None, :] < row[:, None])
            same &= (value[None, :] > value[:, None]) | tie
        else:
            same &= row[None, :] > row[:, None]
        wins = claims & (tl.max(same.to(tl.int32), axis=1) == 0)
        if BIPARTITE:
            taken = tl.load(owner + prior, mask=claims, other=-1) >= 0
            wins &= value > tl.load(owner_value + prior, mask=claims & taken, other=-1.0)
            tl.debug_barrier()
            tl.store(owner_value + prior, value, mask=wins)
        tl.store(owner + prior, row, mask=wins)
        tl.store(wanted + row, tl.where(claims, prior, -1), mask=row < high)
        tl.debug_barrier()

    # 2. rows that lost theirs claim one after the other
    if BIPARTITE:
        for start in range(low, high, ROWS):
            rows = start + tl.arange(0, ROWS)
            row = _first_without(owner, wanted, rows, high)
            while row < high:
                value, prior = _best_of_row(
                    part_value, part_prior, row + tl.arange(0, 1), row < high, P, blocks, SPAN
                )
                value, prior = tl.max(value), tl.max(prior)
                rival = tl.load(owner + prior)
                rival_value = tl.load(owner_value + prior, mask=rival >= 0, other=-1.0)
                tl.debug_barrier()
                if value < 0:
                    tl.store(wanted + row, -1)
                    row = high
                elif (value > rival_value) | ((value == rival_value) & (row < rival)):
                    tl.store(owner + prior, row)
                    tl.store(owner_value + prior, value)
                    tl.store(wanted + row, prior)
                    row = tl.where(rival < 0, high, rival)
                else:  # a better row owns it: look for another in this block
                    others = prior // BLOCK * BLOCK + tl.arange(0, BLOCK)
                    u1, v1, u2, v2 = load_box(gt_boxes, row)
                    x1, y1, x2, y2 = load_boxes(priors, others, others < P)
                    values = _overlap(iou(u1, v1, u2, v2, x1, y1, x2, y2), BIPARTITE)
                    owners = tl.load(owner + others, mask=others < P, other=-1)
                    taken = owners >= 0
                    bounds = tl.load(owner_value + others, mask=taken, other=-1.0)
                    free = (values > bounds) | ((values == bounds) & (row < owners))
                    values = tl.where((others < P) & free, values, -1.0)
                    peak = tl.max(values)
                    place = row.to(tl.int64) * blocks + prior // BLOCK
                    tl.store(part_value + place, peak)
                    tl.store(part_prior + place, tl.min(tl.where(values == peak, others, P)))
                tl.debug_barrier()
                row = tl.where(row < high, row, _first_without(owner, wanted, rows, high))

    # 3. claims go before matches by threshold
    for start in range(low, high, ROWS):
        row = start + tl.arange(0, ROWS)
        prior = tl.load(wanted + row, mask=row < high, other=-1)
        mine = tl.load(owner + prior, mask=prior >= 0, other=-1) == row
        tl.store(matched + image * P + prior, row, mask=mine)


def _fake(priors, gt_boxes, gt_offsets, iou_threshold, bipartite):
    return gt_offsets.new_empty(gt_offsets.shape[0] - 1, priors.shape[0])


@launcher(_fake)
def match_priors_triton(
    priors: torch.Tensor,
    gt_boxes: torch.Tensor,
    gt_offsets: torch.Tensor,
    iou_threshold: float,
    bipartite: bool,
) -> torch.Tensor:
    matched = _fake(priors, gt_boxes, gt_offsets, iou_threshold, bipartite)
    images, P = matched.shape
    rows, blocks = gt_boxes.shape[0], triton.cdiv(P, BLOCK)
    if matched.numel() == 0:
        return matched
    owner, owner_value = torch.empty_like(matched), priors.new_empty(matched.shape)
    wanted = gt_offsets.new_empty(rows)
    parts = priors.new_empty(rows, blocks), gt_offsets.new_empty(rows, blocks)
    options = {"BIPARTITE": bipartite, "BLOCK": BLOCK, "ROWS": ROWS, "enable_fp_fusion": False}
    args = priors, gt_boxes, gt_offsets, matched, owner
    _match_priors_kernel[(blocks, images)](
        *args, *parts, P, blocks, iou_threshold, **options, num_warps=1
    )
    if rows:
        args = *args, owner_value, wanted
        _claim_priors_kernel[(images,)](*args, *parts, P, blocks, **options, SPAN=SPAN, num_warps=8)
    return matched
