"""Greedy suppression of one list: bit masks of all pairs, resolved in blocks of 64."""

import torch
import triton
import triton.language as tl
from torch import library

from ssdkern.kernels.boxes import load_boxes
from ssdkern.kernels.greedy import any_bits, keep_greedily, overlaps, pack, round_down, unpack
from ssdkern.kernels.launcher import launcher


@triton.jit
def _nms_kernel(boxes, groups, order, masks, N, limit: tl.float64, GROUPED: tl.constexpr):
    """Which boxes of block j does row i cover: 64 bits, at (j, i) of `masks` [blocks, N]."""
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
    lane = tl.arange(0, 64).to(tl.int64)
    word = tl.sum(over.to(tl.int64) << lane[None, :], axis=1)
    tl.store(masks + block.to(tl.int64) * N + row, word, mask=row < N)


@triton.jit
def _resolve_kernel(order, masks, rows, kept, count, N, BLOCK: tl.constexpr):
    """Walks the blocks in order of score. `rows` [N] is for the places of the kept in `order`."""
    lane = tl.arange(0, 64)
    total = tl.full([], 0, tl.int32)
    for block in range(0, tl.cdiv(N, 64)):
        words = masks + block * tl.cast(N, tl.int64)
        covered = tl.zeros([BLOCK], tl.int64)
        for start in range(0, total, BLOCK):
            i = start + tl.arange(0, BLOCK)
            row = tl.load(rows + i, mask=i < total, other=0)
            covered |= tl.load(words + row, mask=i < total, other=0)
        row = block * 64 + lane
        alive = pack(row < N) & ~any_bits(covered)
        keep = unpack(keep_greedily(alive, tl.load(words + row, mask=row < N, other=0)))
        place = total + tl.cumsum(keep.to(tl.int32), axis=0) - 1
        tl.store(rows + place, row, mask=keep)
        tl.store(kept + place, tl.load(order + row, mask=row < N, other=0), mask=keep)
        total += tl.sum(keep.to(tl.int32))
        tl.debug_barrier()
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
    masks, rows = order.new_empty(blocks, N), order.new_empty(N, dtype=torch.int32)
    _nms_kernel[(blocks, blocks)](
        *(boxes, groups, order, masks, N, round_down(iou_threshold, boxes.dtype)),
        GROUPED=groups is not None,
        num_warps=4,
        enable_fp_fusion=False,
    )
    block = min(2048, triton.next_power_of_2(N))
    args = order, masks, rows, kept, count, N
    _resolve_kernel[(1,)](*args, BLOCK=block, num_warps=max(1, block // 128))
    return kept, count


def _fake(boxes, scores, iou_threshold):
    return boxes.new_empty(library.get_ctx().new_dynamic_size(), dtype=torch.int64)


@launcher(_fake)
def nms_triton(boxes: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    kept, count = padded_nms_triton(boxes, scores, None, iou_threshold)
    return kept[:count]
