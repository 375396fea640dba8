"""Matching without the IoU matrix: the best of each block of priors, then the rows' claims."""

import torch
import triton
import triton.language as tl

from ssdkern.kernels.boxes import load_boxes, number
from ssdkern.kernels.claims import claim_priors_kernel, highest, overlap, rows_of
from ssdkern.kernels.launcher import launcher

BLOCK = 128  # priors
ROWS = 32  # ground truth
NEAR = 4  # rows at a time
SPAN = 128  # blocks


@triton.jit
def _lowest_bits(word, NEAR: tl.constexpr):
    """Where the NEAR lowest bits of the word are, -1 for none, and the word without them."""
    words = word + tl.zeros([NEAR], tl.int32)
    for i in tl.static_range(1, NEAR):
        word &= word - 1
        words = tl.where(tl.arange(0, NEAR) >= i, word, words)
    power = (words & -words).to(tl.uint32, bitcast=True).to(tl.float32)
    place = (power.to(tl.int32, bitcast=True) >> 23) - 127
    return tl.where(words != 0, place, -1), word & (word - 1)


@triton.jit(do_not_specialize=["rows"])
def _match_priors_kernel(
    priors,
    gt_boxes,
    gt_offsets,
    matched,
    owner,
    part_value,
    part_prior,
    rows,
    P,
    blocks,
    iou_threshold: tl.float64,
    BIPARTITE: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    NEAR: tl.constexpr,
):
    """Matches by threshold, and finds the best prior of the block for each row of the image."""
    block, image = tl.program_id(0) % blocks, (tl.program_id(0) // blocks).to(tl.int64)
    prior = block * BLOCK + tl.arange(0, BLOCK)
    live = prior < P
    x1, y1, x2, y2 = load_boxes(priors, prior, live)
    left = tl.min(tl.where(live, x1, float("inf")))
    top = tl.min(tl.where(live, y1, float("inf")))
    right = tl.max(tl.where(live, x2, float("-inf")))
    down = tl.max(tl.where(live, y2, float("-inf")))
    x1 = tl.where(live, x1, float("nan"))  # overlaps nothing
    x1, y1, x2, y2 = x1[None, :], y1[None, :], x2[None, :], y2[None, :]
    low, high = rows_of(gt_offsets, image, rows)
    best, best_row = tl.full([BLOCK], -1.0, x1.dtype), tl.full([BLOCK], -1, tl.int32)
    lane, least = tl.arange(0, ROWS), tl.maximum(number(iou_threshold, best), 0.0)
    for start in range(low, high, ROWS):
        # 1. rows that lie apart from the whole block have no overlap, as nearly all have
        inside = start + lane < high
        u1, v1, u2, v2 = load_boxes(gt_boxes, start + lane, inside)
        apart = (u1 >= right) | (u2 <= left) | (v1 >= down) | (v2 <= top)
        near = inside & ((apart == 0) | (not BIPARTITE))
        part = tl.cast(start, tl.int64) * blocks + block
        values, places = part_value + part, part_prior + part
        none = tl.full([ROWS], -1.0, x1.dtype)
        tl.store(values + lane * blocks, none, mask=inside & (near == 0))

        # 2. the others, a few at a time, in their order
        word = tl.sum(near.to(tl.int32) << lane)
        while word != 0:
            place, word = _lowest_bits(word, NEAR)
            row, some = start + place, place >= 0
            a1, b1, a2, b2 = load_boxes(gt_boxes, row, some)
            a1 = tl.where(some, a1, float("nan"))
            a1, b1, a2, b2 = a1[:, None], b1[:, None], a2[:, None], b2[:, None]
            value = overlap(a1, b1, a2, b2, x1, y1, x2, y2, BIPARTITE)
            peak = highest(value)
            tl.store(values + place * blocks, peak, mask=some)
            at = tl.min(tl.where(value == peak[:, None], prior[None, :], P), axis=1)
            tl.store(places + place * blocks, at, mask=some)
            if tl.max(peak) >= least:
                first = tl.max(value, axis=0)
                row_of = tl.min(tl.where(value == first[None, :], row[:, None], high), axis=0)
                best_row = tl.where(first > best, row_of, best_row)
                best = tl.maximum(first, best)
    place = image * P + prior
    tl.store(matched + place, tl.where(best >= least, best_row, -1), mask=live)
    tl.store(owner + place, tl.full([BLOCK], -1, tl.int32), mask=live)


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
    args = priors, gt_boxes, gt_offsets, matched, owner, *parts
    _match_priors_kernel[(blocks * images,)](
        *args, rows, P, blocks, iou_threshold, **options, NEAR=NEAR, num_warps=1
    )
    if rows:
        args = *args, owner_value, wanted, rows, P, blocks
        claim_priors_kernel[(images,)](*args, **options, SPAN=SPAN, num_warps=8)
    return matched
