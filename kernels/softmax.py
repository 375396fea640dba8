"""Softmax of rows of logits: a warp a row, 32 columns at a time."""

import triton
import triton.language as tl

from ssdkern.kernels.boxes import divide, exponential, widen


def tile(num_classes):
    """Rows and columns of logits that a program of four warps holds at a time."""
    cols = min(32, triton.next_power_of_2(num_classes))
    return min(128, 512 // cols), cols


@triton.jit
def load_logits(rows, live, start, C: tl.constexpr, COLS: tl.constexpr):
    """COLS columns from `start` on of adjacent rows, -inf beyond them and where not `live`."""
    col = start + tl.arange(0, COLS)[None, :]
    place = rows + (tl.arange(0, live.shape[0])[:, None] * C + col)
    return widen(tl.load(place, mask=live[:, None] & (col < C), other=float("-inf")))


@triton.jit
def peak_and_total(rows, live, dtype: tl.constexpr, C: tl.constexpr, COLS: tl.constexpr):
    """The maximum of each row, and its sum of exponentials from there. The second pass hits L1."""
    lowest: tl.constexpr = (
        -1.7976931348623157e308 if dtype == tl.float64 else -3.4028234663852886e38
    )
    peaks = tl.full([live.shape[0], COLS], lowest, dtype)
    for start in range(0, C, COLS):
        peaks = tl.maximum(peaks, load_logits(rows, live, start, C, COLS))
    peak = tl.max(peaks, axis=1)
    totals = tl.zeros([live.shape[0], COLS], dtype)
    for start in range(0, C, COLS):
        totals += tl.exp(load_logits(rows, live, start, C, COLS) - peak[:, None])
    return peak, tl.sum(totals, axis=1)


@triton.jit
def probability(x, peak, total):
    """Softmax as torch computes it."""
    return divide(exponential(x - peak), total)
