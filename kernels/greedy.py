"""Greedy suppression inside a block of 64 boxes, as bits of a word."""

import numpy as np
import torch
import triton
import triton.language as tl

from ssdkern.kernels.boxes import divide, intersection_and_union, number


def round_down(limit, dtype):
    """The highest number of `dtype` <= limit: IoU exceeds the one where it exceeds the other."""
    if dtype == torch.float64:
        return limit
    rounded = np.float32(limit)
    above = float(rounded) > limit  # in float64: a bare comparison would be in float32
    return float(np.nextafter(rounded, np.float32("-inf")) if above else rounded)


@triton.jit
def _or(a, b):
    return a | b


@triton.jit
def any_bits(words, AXIS: tl.constexpr):
    """Their union; a warp takes 32 words of 32 bits in one instruction."""
    return tl.reduce(words, AXIS, _or)


@triton.jit
def join(low, high):
    """A word of 64 bits from its halves."""
    return (high.to(tl.int64) << 32) | (low.to(tl.int64) & 0xFFFFFFFF)


@triton.jit
def pack(bits):
    """Bit i of the word is element i of `bits` [64]."""
    bits = bits.to(tl.int32) << (tl.arange(0, 64) % 32)
    low, high = tl.split(tl.sum(tl.reshape(bits, [2, 32]), axis=1))
    return join(low, high)


@triton.jit
def pack_rows(bits):
    """Row i as the halves of a word; `bits` is [64, 64]."""
    bits = bits.to(tl.int32) << (tl.arange(0, 64) % 32)[None, :]
    return tl.split(tl.sum(tl.reshape(bits, [64, 2, 32]), axis=2))


@triton.jit
def unpack(word):
    return ((word >> tl.arange(0, 64).to(tl.int64)) & 1) != 0


@triton.jit
def overlaps(ax1, ay1, ax2, ay2, bx1, by1, bx2, by2, limit):
    """Whether the IoU of boxes a (axis 0) and b (axis 1) exceeds `limit`, from `round_down`.

    The margins cover all rounding; where none of a tile lies between them, nothing is divided.
    """
    inter, union = intersection_and_union(
        ax1[:, None],
        ay1[:, None],
        ax2[:, None],
        ay2[:, None],
        bx1[None, :],
        by1[None, :],
        bx2[None, :],
        by2[None, :],
    )
    limit = number(limit, inter)
    bar = tl.maximum(limit, 0) * union  # 0 for a limit below, and so never clear
    over = inter > bar * (1 + 1e-6)
    clear = (bar > 1e-30) & (over | (inter < bar * (1 - 1e-6)))
    if tl.max((clear == 0).to(tl.int32)) > 0:
        over = divide(inter, union) > limit
    return over


@triton.jit
def suppressed_bits(over):
    """Row i as a word: the boxes of higher index that box i covers; `over` is [64, 64]."""
    lane = tl.arange(0, 64)
    low, high = pack_rows(over & (lane[:, None] < lane[None, :]))
    return join(low, high)


@triton.jit
def keep_greedily(alive, covers):
    """The word of boxes that greedy suppression keeps of the word `alive`.

    `covers` [64] are `suppressed_bits`. Keeping what no kept box covers, again and again, settles
    at least one more box a round, and has greedy suppression as its one fixed point.
    """
    low, high = covers.to(tl.int32), (covers >> 32).to(tl.int32)
    keep = alive
    previous = ~keep
    while keep != previous:
        previous, some = keep, unpack(keep)
        covered = any_bits(tl.where(some, low, 0), 0), any_bits(tl.where(some, high, 0), 0)
        keep = alive & ~join(covered[0], covered[1])
    return keep
