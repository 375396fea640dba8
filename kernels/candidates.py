"""The candidates of each class of each image, in order of score."""

import triton
import triton.language as tl

from ssdkern.kernels.boxes import store_boxes, widen
from ssdkern.kernels.detections import candidate, rank_of
from ssdkern.kernels.select import kth_highest, load_keys, picked
from ssdkern.kernels.softmax import probability


@triton.jit(do_not_specialize=["first", "tasks"])
def candidates_kernel(
    values,
    peaks,
    totals,
    marks,
    boxes,
    priors,
    scores,  # scratch of a program: P candidates
    indices,
    sorted_scores,  # and for each task the top_k best of them in order
    sorted_indices,
    sorted_boxes,
    counts,
    first,
    tasks,
    P,
    C,
    words,
    top_k,
    center_variance: tl.float64,
    size_variance: tl.float64,
    max_log_scale: tl.float64,
    SOFTMAX: tl.constexpr,
    DECODE: tl.constexpr,
    CLIP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program, lane = tl.program_id(0).to(tl.int64), tl.arange(0, 64)
    scores, indices = scores + program * P, indices + program * P
    for slot in range(tl.program_id(0), tasks, tl.num_programs(0)):
        task = first + slot
        image, label = (task // (C - 1)).to(tl.int64), task % (C - 1) + 1

        # 1. the marked priors, in their order
        some = tl.zeros([512], tl.int32)
        for start in range(0, words, 512):
            word = start + tl.arange(0, 512)
            place = marks + (image * words + word) * C + label
            some |= tl.load(place, mask=word < words, other=0)
        count, end = tl.full([], 0, tl.int32), 0
        if tl.max((some != 0).to(tl.int32)) > 0:
            end = P
        for start in range(0, end, BLOCK):
            prior = start + tl.arange(0, BLOCK)
            word = marks + (image * words + prior // 32) * C + label
            hit = (tl.load(word, mask=prior < P, other=0) >> (prior % 32)) & 1
            if tl.max(hit) > 0:
                row = image * P + prior
                score = widen(tl.load(values + row * C + label, mask=hit != 0, other=0.0))
                if SOFTMAX:
                    peak = tl.load(peaks + row, mask=hit != 0, other=0.0)
                    total = tl.load(totals + row, mask=hit != 0, other=1.0)
                    score = probability(score, peak, total)
                place = count + tl.cumsum(hit, axis=0) - 1
                tl.store(scores + place, score, mask=hit != 0)
                tl.store(indices + place, prior, mask=hit != 0)
                count += tl.sum(hit)
        tl.debug_barrier()

        # 2. the top_k best move to the front, still in the order of priors
        if count > top_k:
            least, ties = kth_highest(scores, scores, count, top_k, False, BLOCK, BLOCK)
            seen, found = tl.full([], 0, tl.int32), tl.full([], 0, tl.int32)
            for start in range(0, count, BLOCK):
                i = start + tl.arange(0, BLOCK)
                score = tl.load(scores + i, mask=i < count, other=0.0)
                index = tl.load(indices + i, mask=i < count, other=0)
                key = load_keys(scores, scores, i, count, False)
                pick, seen = picked(key, least, ties, seen)
                place = found + tl.cumsum(pick.to(tl.int32), axis=0) - 1
                tl.debug_barrier()
                tl.store(scores + place, score, mask=pick)
                tl.store(indices + place, index, mask=pick)
                found += tl.sum(pick.to(tl.int32))
            tl.debug_barrier()
        count = tl.minimum(count, top_k)

        # 3. in order of score, then prior
        best = slot * tl.cast(top_k, tl.int64)
        for start in range(0, count, 64):
            i = start + lane
            score = tl.load(scores + i, mask=i < count, other=0.0)
            prior = tl.load(indices + i, mask=i < count, other=0)
            rank = best + rank_of(score, i, scores, count)
            x1, y1, x2, y2 = candidate(
                *(boxes, priors, image * P + prior, prior, i < count),
                *(center_variance, size_variance, max_log_scale),
                DECODE,
                CLIP,
            )
            store_boxes(sorted_boxes, rank, i < count, x1, y1, x2, y2)
            tl.store(sorted_scores + rank, score, mask=i < count)
            tl.store(sorted_indices + rank, prior, mask=i < count)
        tl.store(counts + slot, count)
        tl.debug_barrier()
