"""Exact selection of the k highest values of an array, by bisection over their bits."""

import triton
import triton.language as tl

from ssdkern.kernels.boxes import widen


@triton.jit
def order_key(x):
    """An integer that sorts as `x`: -0 as 0, NaN highest, -inf below all the rest."""
    x = x + 0.0
    if x.dtype == tl.float64:
        bits = x.to(tl.int64, bitcast=True)
        key = bits ^ ((bits >> 63) & 0x7FFFFFFFFFFFFFFF)
    else:
        bits = x.to(tl.int32, bitcast=True)
        key = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    key = tl.where(x == float("-inf"), lowest_key(x), key)
    return tl.where(x != x, ~lowest_key(x), key)


@triton.jit
def lowest_key(x):
    """The key of -inf, which stands for values that take no part. Its complement is NaN's."""
    if x.dtype == tl.float64:
        return tl.full([], -0x8000000000000000, tl.int64)
    else:
        return tl.full([], -0x80000000, tl.int32)


@triton.jit
def load_keys(values, skip, i, count, SKIP: tl.constexpr):
    """Keys of the values at `i`; those where `skip` is set, and beyond `count`, take no part."""
    x = widen(tl.load(values + i, mask=i < count, other=float("-inf")))
    if SKIP:
        x = tl.where(tl.load(skip + i, mask=i < count, other=0) != 0, float("-inf"), x)
    return order_key(x)


@triton.jit
def kth_highest(
    values, skip, count, k, SKIP: tl.constexpr, BLOCK: tl.constexpr, HELD: tl.constexpr
):
    """What picks `k` of the values: all above the first result, and at it the first so many.

    At least `k` >= 1 values take part. The first HELD stay in registers, the rest is read again and
    again.
    """
    lowest = lowest_key(tl.full([], 0.0, values.dtype.element_ty))
    held = load_keys(values, skip, tl.arange(0, HELD), count, SKIP)
    low, high = tl.min(tl.where(held == lowest, ~lowest, held)), tl.max(held)
    for start in range(HELD, count, BLOCK):
        key = load_keys(values, skip, start + tl.arange(0, BLOCK), count, SKIP)
        low = tl.minimum(low, tl.min(tl.where(key == lowest, ~lowest, key)))
        high = tl.maximum(high, tl.max(key))
    above = tl.full([], 0, tl.int32)  # how many lie above `high`
    while low < high:
        middle = (low | high) - ((low ^ high) >> 1)  # the upper mean, without overflow
        total = tl.sum((held >= middle).to(tl.int32))
        if count > HELD:
            hits = tl.zeros([BLOCK], tl.int32)
            for start in range(HELD, count, BLOCK):
                key = load_keys(values, skip, start + tl.arange(0, BLOCK), count, SKIP)
                hits += (key >= middle).to(tl.int32)
            total += tl.sum(hits)
        low = tl.where(total > k, middle, tl.where(total == k, middle - 1, low))
        high = tl.where(total > k, high, middle - 1)
        above = tl.where(total > k, above, total)
    return low, k - above


@triton.jit
def picked(key, least, ties, seen):
    """Which of the keys are among the k highest; `seen` values at `least` lie before them."""
    tie = key == least
    order = seen + tl.cumsum(tie.to(tl.int32), axis=0)
    return (key > least) | (tie & (order <= ties)), seen + tl.sum(tie.to(tl.int32))
