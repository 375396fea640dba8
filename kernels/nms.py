"""Greedy suppression of one list: bit masks of all pairs, resolved in blocks of 64."""

import torch
import triton
import triton.language as tl
from torch import library

from ssdkern.kernels.boxes import load_boxes
from ssdkern.kernels.greedy import (
    any_bits,
    join,
    keep_greedily,
    overlaps,
    pack,
    pack_rows,
    round_down,
    unpack,
)
from ssdkern.kernels.launcher import launcher


@triton.jit(do_not_specialize=["N"])
def _nms_kernel(boxes, groups, order, masks, N, limit: tl.float64, GROUPED: tl.constexpr):
    """Which boxes of block j does row i cover: `masks` [j, 2, i] holds 64 bits as two halves."""
    block = tl.program_id(1)
    if tl.program_id(0) > block:
        return
    row = tl.program_id(0) * 64 + tl.arange(0, 64)
    col = block * 64 + tl.arange(0, 64)
    a = tl.load(order + row, mask=row < N, other=0)
    b = tl.load(order + col, mask=col < N, other=0)
    ax1, ay1, ax2, ay2 = load_boxes(boxes, a, row < N)
    bx1, by1, bx2, by2 = load_boxes(boxes, b, col < N)
    over = overlaps(ax1, ay1, ax2, ay2, bx1, by1, bx2, by2, limit)
    over &= (row[:, None] < col[None, :]) & (col < N)[None, :]
    if GROUPED:
        ga = tl.load(groups + a, mask=row < N, other=0)
        gb = tl.load(groups + b, mask=col < N, other=0)
        over &= ga[:, None] == gb[None, :]
    low, high = pack_rows(over)
    masks += 2 * block.to(tl.int64) * tl.num_programs(1) * 64
    tl.store(masks + row, low)
    tl.store(masks + tl.num_programs(1) * 64 + row, high)


@triton.jit(do_not_specialize=["N"])
def _resolve_kernel(
    order, masks, gone, keeps, kept, count, N, AHEAD: tl.constexpr, BLOCK: tl.constexpr
):
    """Walks the blocks in order of score, and marks in `gone` [blocks, 2] what the kept ones cover.

    `masks` and `gone` end in room for AHEAD blocks more, so that nothing needs a mask.
    """
    lane, ahead = tl.arange(0, 64), tl.arange(0, 2 * AHEAD)
    blocks = tl.cdiv(N, 64)
    tile = ahead[:, None] * (blocks * 64) + lane[None, :]
    for block in range(0, blocks):
        # the halves of the next blocks are on their way while this one is settled
        row = block * 64 + lane
        own = masks + 2 * block * (blocks * tl.cast(64, tl.int64)) + block * 64
        next = own + 2 * blocks * 64
        halves = tl.load(next + tile)
        covers = join(tl.load(own + lane), tl.load(own + blocks * 64 + lane))
        alive = pack(row < N) & ~join(tl.load(gone + 2 * block), tl.load(gone + 2 * block + 1))
        word = keep_greedily(alive, covers)
        tl.store(keeps + block, word)
        keep = unpack(word)[None, :]
        later = gone + 2 * (block + 1) + ahead
        tl.store(later, tl.load(later) | any_bits(tl.where(keep, halves, 0), 1))
        for first in range(AHEAD, blocks - block - 1, AHEAD):
            place = next + 2 * first * (blocks * tl.cast(64, tl.int64)) + tile
            halves = tl.load(place, mask=keep, other=0)
            later = gone + 2 * (block + 1 + first) + ahead
            tl.store(later, tl.load(later) | any_bits(halves, 1))
        tl.debug_barrier()

    total = tl.full([], 0, tl.int32)
    for start in range(0, N, BLOCK):
        i = start + tl.arange(0, BLOCK)
        keep = ((tl.load(keeps + i // 64, mask=i < N, other=0) >> (i % 64)) & 1).to(tl.int32)
        place = total + tl.cumsum(keep, axis=0) - 1
        tl.store(kept + place, tl.load(order + i, mask=keep != 0, other=0), mask=keep != 0)
        total += tl.sum(keep)
    for start in range(total, N, BLOCK):
        i = start + tl.arange(0, BLOCK)
        tl.store(kept + i, tl.full([BLOCK], -1, tl.int64), mask=i < N)
    tl.store(count, total.to(tl.int64))


def _fake_padded(boxes, scores, groups, iou_threshold):
    return boxes.new_empty(scores.shape, dtype=torch.int64), boxes.new_empty((), dtype=torch.int64)


@launcher(_fake_padded)
def padded_nms_triton(
    boxes: torch.Tensor, scores: torch.Tensor, groups: torch.Tensor | None, iou_threshold: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The kept indices in N slots, -1 in the rest, and how many there are: no synchronisation."""
    kept, count = _fake_padded(boxes, scores, groups, iou_threshold)
    N = scores.shape[0]
    scores = scores.masked_fill(scores.isnan(), float("nan"))  # none whose sign is set: CUDA's last
    order = scores.sort(descending=True, stable=True).indices
    blocks = triton.cdiv(N, 64)
    if N == 0:
        return kept, count.zero_()
    ahead = 32 if blocks > 8 else 4
    masks = order.new_empty(blocks + ahead, 2, 64 * blocks, dtype=torch.int32)
    gone = order.new_zeros(blocks + ahead, 2, dtype=torch.int32)
    keeps = order.new_empty(blocks)
    _nms_kernel[(blocks, blocks)](
        *(boxes, groups, order, masks, N, round_down(iou_threshold, boxes.dtype)),
        GROUPED=groups is not None,
        num_warps=8,
        enable_fp_fusion=False,
    )
    args = order, masks, gone, keeps, kept, count, N
    _resolve_kernel[(1,)](*args, AHEAD=ahead, BLOCK=2048, num_warps=8)
    return kept, count


def _fake(boxes, scores, iou_threshold):
    return boxes.new_empty(library.get_ctx().new_dynamic_size(), dtype=torch.int64)


@launcher(_fake)
def nms_triton(boxes: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    kept, count = padded_nms_triton(boxes, scores, None, iou_threshold)
    return kept[:count]
