"""What comes before and after suppression: which priors score in which class, and the merge."""

import triton
import triton.language as tl

from ssdkern.kernels.boxes import decode_axis, load_boxes, number, store_boxes
from ssdkern.kernels.select import kth_highest, load_keys, lowest_key, picked
from ssdkern.kernels.softmax import load_logits, peak_and_total, probability


@triton.jit
def _store_marks(marks, hit, col, C: tl.constexpr):
    """A column of 32 priors as a word."""
    word = tl.sum(hit.to(tl.int32) << tl.arange(0, 32)[:, None], axis=0)
    tl.store(marks + col, word, mask=col < C)


@triton.jit
def mark_kernel(
    values,
    peaks,
    totals,
    marks,
    P,
    score_threshold: tl.float64,
    SOFTMAX: tl.constexpr,
    C: tl.constexpr,
    COLS: tl.constexpr,
):
    """Marks scores above the threshold: 32 priors a bit each in a word of `marks` [B, words, C].

    `values` are scores, or logits, of which `peaks` and `totals` [B, P] keep what softmax needs.
    """
    words = tl.cdiv(P, 32)
    group, image = tl.program_id(0) % words, (tl.program_id(0) // words).to(tl.int64)
    prior = group * 32 + tl.arange(0, 32)
    live, row = prior < P, image * P + prior
    values += (image * P + group * 32) * C
    marks += tl.program_id(0).to(tl.int64) * C
    unclear = True
    if SOFTMAX:
        peak, total = peak_and_total(values, live, peaks.dtype.element_ty, C, COLS)
        tl.store(peaks + row, peak, mask=live)
        tl.store(totals + row, total, mask=live)
        # 1. in logarithms, with a margin that covers all rounding
        limit = number(score_threshold, total)
        bar = tl.log(limit * total)
        bar = tl.where(limit > 1e-30, bar, float("nan"))[:, None]
        doubts = tl.zeros([32, COLS], tl.int32)
        for start in range(0, C, COLS):
            x = load_logits(values, live, start, C, COLS) - peak[:, None]
            hit = x > bar + 1e-4
            doubts |= ((hit | (x < bar - 1e-4)) == 0).to(tl.int32)
            _store_marks(marks, hit, start + tl.arange(0, COLS), C)
        unclear = tl.max(doubts) > 0
    if unclear:
        # 2. as the scores are
        tl.debug_barrier()
        for start in range(0, C, COLS):
            score = load_logits(values, live, start, C, COLS)
            if SOFTMAX:
                score = probability(score, peak[:, None], total[:, None])
            hit = score > number(score_threshold, score)
            _store_marks(marks, hit, start + tl.arange(0, COLS), C)


@triton.jit
def candidate(
    boxes,
    priors,
    row,
    prior,
    mask,
    center_variance,
    size_variance,
    max_log_scale,
    DECODE: tl.constexpr,
    CLIP: tl.constexpr,
):
    """The boxes at `row` of [B * P, 4], decoded from offsets and clipped where asked for."""
    x1, y1, x2, y2 = load_boxes(boxes, row, mask)
    if DECODE:
        u1, v1, u2, v2 = load_boxes(priors, prior, mask)
        x1, x2 = decode_axis(x1, x2, u1, u2, center_variance, size_variance, max_log_scale)
        y1, y2 = decode_axis(y1, y2, v1, v2, center_variance, size_variance, max_log_scale)
    if CLIP:
        x1, y1, x2, y2 = _clip(x1), _clip(y1), _clip(x2), _clip(y2)
    return x1, y1, x2, y2


@triton.jit
def _clip(x):
    return tl.where(x < 0, 0.0, tl.where(x > 1, 1.0, x))


@triton.jit
def rank_of(score, i, scores, count):
    """How many of the first `count` scores go before score `i`: higher ones, and earlier equals."""
    rank = tl.zeros([64], tl.int32)
    for start in range(0, count, 64):
        j = start + tl.arange(0, 64)
        other = tl.load(scores + j, mask=j < count, other=float("-inf"))[None, :]
        tie = (other == score[:, None]) & (j[None, :] < i[:, None])
        rank += tl.sum(((other > score[:, None]) | tie).to(tl.int32), axis=1)
    return rank


@triton.jit
def merge_kernel(
    boxes,
    priors,
    kept_scores,
    kept_priors,
    list_scores,
    list_slots,
    out_boxes,
    out_scores,
    out_labels,
    out_priors,
    out_count,
    P,
    slots,
    classes,
    keep_top_k,
    center_variance: tl.float64,
    size_variance: tl.float64,
    max_log_scale: tl.float64,
    DECODE: tl.constexpr,
    CLIP: tl.constexpr,
    BLOCK: tl.constexpr,
    HELD: tl.constexpr,
):
    """The `keep_top_k` best of an image out of `slots` kept in each class, -inf where unused.

    Slots lie in the order of labels and then scores, which is the order that ties want.
    """
    image = tl.program_id(0).to(tl.int64)
    count = classes * slots
    kept_scores, kept_priors = kept_scores + image * count, kept_priors + image * count
    list_scores, list_slots = list_scores + image * keep_top_k, list_slots + image * keep_top_k
    lowest = lowest_key(tl.full([], 0.0, list_scores.dtype.element_ty))

    # 1. the best, in the order of their slots
    used = tl.zeros([BLOCK], tl.int32)
    for start in range(0, count, BLOCK):
        i = start + tl.arange(0, BLOCK)
        used += (load_keys(kept_scores, kept_scores, i, count, False) != lowest).to(tl.int32)
    total = tl.minimum(tl.sum(used), keep_top_k)
    least, ties = lowest, tl.full([], 0, tl.int32)
    if tl.sum(used) > keep_top_k:
        least, ties = kth_highest(kept_scores, kept_scores, count, total, False, BLOCK, HELD)
    seen, found = tl.full([], 0, tl.int32), tl.full([], 0, tl.int32)
    for start in range(0, count, BLOCK):
        i = start + tl.arange(0, BLOCK)
        key = load_keys(kept_scores, kept_scores, i, count, False)
        pick, seen = picked(key, least, ties, seen)
        place = found + tl.cumsum(pick.to(tl.int32), axis=0) - 1
        tl.store(list_scores + place, tl.load(kept_scores + i, mask=pick, other=0.0), mask=pick)
        tl.store(list_slots + place, i, mask=pick)
        found += tl.sum(pick.to(tl.int32))
    tl.debug_barrier()

    # 2. to their ranks
    for start in range(0, keep_top_k, 64):
        i = start + tl.arange(0, 64)
        live = i < total
        score = tl.load(list_scores + i, mask=live, other=0.0)
        slot = tl.load(list_slots + i, mask=live, other=0)
        prior = tl.load(kept_priors + slot, mask=live, other=-1)
        x1, y1, x2, y2 = candidate(
            *(boxes, priors, image * P + prior, prior, live),
            *(center_variance, size_variance, max_log_scale),
            DECODE,
            CLIP,
        )
        rank = tl.where(live, rank_of(score, i, list_scores, total), i)
        row, inside = image * keep_top_k + rank, i < keep_top_k
        x1, y1 = tl.where(live, x1, 0.0), tl.where(live, y1, 0.0)
        x2, y2 = tl.where(live, x2, 0.0), tl.where(live, y2, 0.0)
        store_boxes(out_boxes, row, inside, x1, y1, x2, y2)
        tl.store(out_scores + row, score, mask=inside)
        tl.store(out_labels + row, tl.where(live, slot // slots + 1, 0).to(tl.int64), mask=inside)
        tl.store(out_priors + row, prior.to(tl.int64), mask=inside)
    tl.store(out_count + image, total.to(tl.int64))
