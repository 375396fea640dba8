"""Greedy suppression inside a block of 64 boxes, as bits of a word."""

import numpy as np
import torch
import triton
import triton.language as tl

from ssdkern.kernels.boxes import iou


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
def any_bits(words):
    return tl.reduce(words, 0, _or)


@triton.jit
def pack(bits):
    """Bit i of the word is element i of `bits` [64]."""
    return tl.sum(bits.to(tl.int64) << tl.arange(0, 64).to(tl.int64), axis=0)


@triton.jit
def unpack(word):
    return ((word >> tl.arange(0, 64).to(tl.int64)) & 1) != 0


@triton.jit
def overlaps(ax1, ay1, ax2, ay2, bx1, by1, bx2, by2, limit):
    """Whether the IoU of boxes a (axis 0) and b (axis 1) exceeds `limit`, from `round_down`."""
    value = iou(
        ax1[:, None],
        ay1[:, None],
        ax2[:, None],
        ay2[:, None],
        bx1[None, :],
        by1[None, :],
        bx2[None, :],
        by2[None, :],
    )
    if value.dtype == tl.float64:
        return value > limit
    else:
        return value > tl.cast(limit, tl.float32)


@triton.jit
def suppressed_bits(over):
    """Row i as a word: the boxes of higher index that box i covers; `over` is [64, 64]."""
    lane = tl.arange(0, 64)
    over &= lane[:, None] < lane[None, :]
    return tl.sum(over.to(tl.int64) << lane.to(tl.int64)[None, :], axis=1)


@triton.jit
def keep_greedily(alive, covers):
    """The word of boxes that greedy suppression keeps of the word `alive`.

    `covers` [64] are `suppressed_bits`. Keeping what no kept box covers, again and again, settles
    at least one more box a round, and has greedy suppression as its one fixed point.
    """
    keep = alive
    previous = ~keep
    while keep != previous:
        previous = keep
        keep = alive & ~any_bits(tl.where(unpack(keep), covers, 0))
    return keep
