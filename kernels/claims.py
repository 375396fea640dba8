"""Which prior each row of ground truth gets, from its best of each block of priors."""

import triton
import triton.language as tl

from ssdkern.kernels.boxes import iou, load_boxes


@triton.jit
def overlap(ax1, ay1, ax2, ay2, bx1, by1, bx2, by2, BIPARTITE: tl.constexpr):
    """IoU as the rules rank it: -1 for what cannot match, NaN among it. Caffe wants > 1e-6."""
    value = iou(ax1, ay1, ax2, ay2, bx1, by1, bx2, by2)
    if BIPARTITE:
        return tl.where(value > 1e-6, value, -1.0)
    else:
        return tl.where(value >= 0, value + 0.0, -1.0)


@triton.jit
def highest(value):
    """The maximum of each row, as integers in one instruction: all are >= +0, or -1."""
    if value.dtype == tl.float32:
        bits = tl.max(value.to(tl.int32, bitcast=True), axis=1)
        return bits.to(tl.float32, bitcast=True)
    else:
        return tl.max(value, axis=1)


@triton.jit
def rows_of(gt_offsets, image, rows):
    """The range of rows that an image owns, within the buffer whatever the offsets say."""
    low, high = tl.load(gt_offsets + image), tl.load(gt_offsets + image + 1)
    return tl.maximum(low, 0), tl.minimum(high, rows)


@triton.jit
def _best_of_rows(part_value, part_prior, start, live, blocks, SPAN: tl.constexpr):
    """Highest overlap and then lowest prior of each row over all blocks; -1 for none."""
    lane = tl.arange(0, live.shape[0])
    part_value += tl.cast(start, tl.int64) * blocks
    value = tl.full(lane.shape, -1.0, part_value.dtype.element_ty)
    at = tl.zeros_like(lane)
    for first in range(0, blocks, SPAN):
        block = first + tl.arange(0, SPAN)[None, :]
        mask = live[:, None] & (block < blocks)
        v = tl.load(part_value + (lane[:, None] * blocks + block), mask=mask, other=-1.0)
        peak = highest(v)
        place = tl.min(tl.where(v == peak[:, None], block, blocks), axis=1)
        at = tl.where(peak > value, place, at)
        value = tl.maximum(peak, value)
    place = part_prior + tl.cast(start, tl.int64) * blocks + (lane * blocks + at)
    return value, tl.load(place, mask=value >= 0, other=-1)


@triton.jit(do_not_specialize=["rows"])
def claim_priors_kernel(
    priors,
    gt_boxes,
    gt_offsets,
    matched,
    owner,
    part_value,
    part_prior,
    owner_value,
    wanted,
    rows,
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
    low, high = rows_of(gt_offsets, image, rows)
    owner += image * P
    owner_value += image * P
    fresh, going = True, 1
    while going != 0:
        going = 0
        for start in range(low, high, ROWS):
            # 1. the rows without the prior they want
            row = start + tl.arange(0, ROWS)
            inside = row < high
            prior = tl.load(wanted + row, mask=inside & (not fresh), other=-1)
            lost = tl.load(owner + prior, mask=prior >= 0, other=-1) != row
            free = inside & (fresh | ((prior >= 0) & lost))
            if tl.max(free.to(tl.int32)) > 0:
                # 2. claim their best: of a prior's rivals the best wins, or the last
                value, prior = _best_of_rows(part_value, part_prior, start, free, blocks, SPAN)
                claims = value >= 0
                # rivals are in axis 1
                same = (prior[:, None] == prior[None, :]) & claims[None, :]
                fits = claims
                if BIPARTITE:
                    going = 1
                    tie = (value[None, :] == value[:, None]) & (row[None, :] < row[:, None])
                    same &= (value[None, :] > value[:, None]) | tie
                    rival = tl.load(owner + prior, mask=claims, other=-1)
                    bound = tl.load(owner_value + prior, mask=rival >= 0, other=-1.0)
                    fits &= (value > bound) | ((value == bound) & (row < rival))
                else:
                    same &= row[None, :] > row[:, None]
                wins = fits & (tl.max(same.to(tl.int32), axis=1) == 0)
                tl.debug_barrier()
                tl.store(owner + prior, row, mask=wins)
                tl.store(wanted + row, tl.where(claims, prior, -1), mask=free)
                if BIPARTITE:
                    tl.store(owner_value + prior, value, mask=wins)
                    tl.debug_barrier()

                    # 3. a better row owns it: look for another in this block
                    beaten = claims & (fits == 0)
                    if tl.max(beaten.to(tl.int32)) > 0:
                        others = (prior // BLOCK * BLOCK)[:, None] + tl.arange(0, BLOCK)[None, :]
                        mask = beaten[:, None] & (others < P)
                        u1, v1, u2, v2 = load_boxes(gt_boxes, row, beaten)
                        place = priors + others.to(tl.int64) * 4
                        values = overlap(
                            *(u1[:, None], v1[:, None], u2[:, None], v2[:, None]),
                            tl.load(place, mask=mask, other=0.0),
                            tl.load(place + 1, mask=mask, other=0.0),
                            tl.load(place + 2, mask=mask, other=0.0),
                            tl.load(place + 3, mask=mask, other=0.0),
                            BIPARTITE,
                        )
                        rivals = tl.load(owner + others, mask=mask, other=-1)
                        bounds = tl.load(owner_value + others, mask=rivals >= 0, other=-1.0)
                        open_ = (values > bounds) | ((values == bounds) & (row[:, None] < rivals))
                        values = tl.where(mask & open_, values, -1.0)
                        peak = highest(values)
                        at = tl.min(tl.where(values == peak[:, None], others, P), axis=1)
                        place = row.to(tl.int64) * blocks + prior // BLOCK
                        tl.store(part_value + place, peak, mask=beaten)
                        tl.store(part_prior + place, at, mask=beaten)
            tl.debug_barrier()
        fresh = False

    # 4. claims go before matches by threshold
    for start in range(low, high, ROWS):
        row = start + tl.arange(0, ROWS)
        prior = tl.load(wanted + row, mask=row < high, other=-1)
        mine = tl.load(owner + prior, mask=prior >= 0, other=-1) == row
        tl.store(matched + image * P + prior, row, mask=mine)
