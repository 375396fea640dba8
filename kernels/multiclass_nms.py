"""Suppression within the classes of each image, one program a class at a time."""

import torch
import triton
import triton.language as tl

from ssdkern.kernels.boxes import load_boxes, store_boxes, widen
from ssdkern.kernels.detections import candidate, mark_kernel, merge_kernel, probability, rank_of
from ssdkern.kernels.greedy import (
    keep_greedily,
    overlaps,
    pack,
    round_down,
    suppressed_bits,
    unpack,
)
from ssdkern.kernels.launcher import launcher
from ssdkern.kernels.select import kth_highest, load_keys, picked

PROGRAMS = 512  # enough to fill a GPU; each has a scratch of P scores
BLOCK = 1024


@triton.jit
def _multiclass_nms_kernel(
    values,
    peaks,
    totals,
    marks,
    boxes,
    priors,
    scores,  # scratch of a program: P candidates
    indices,
    sorted_scores,  # and the top_k best of them in order
    sorted_indices,
    sorted_boxes,
    kept_scores,
    kept_priors,
    tasks,
    P,
    C,
    words,
    top_k,
    slots,
    limit: tl.float64,
    center_variance: tl.float64,
    size_variance: tl.float64,
    max_log_scale: tl.float64,
    SOFTMAX: tl.constexpr,
    DECODE: tl.constexpr,
    CLIP: tl.constexpr,
    BLOCK: tl.constexpr,
    WORDS: tl.constexpr,
):
    program, lane = tl.program_id(0).to(tl.int64), tl.arange(0, 64)
    scores, indices = scores + program * P, indices + program * P
    sorted_scores, sorted_indices = (
        sorted_scores + program * top_k,
        sorted_indices + program * top_k,
    )
    sorted_boxes += program * top_k * 4
    for task in range(tl.program_id(0), tasks, tl.num_programs(0)):
        image, label = (task // (C - 1)).to(tl.int64), task % (C - 1) + 1

        # 1. the marked priors, in their order
        count = tl.full([], 0, tl.int32)
        for start in range(0, P, BLOCK):
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
            least, ties = kth_highest(scores, scores, count, top_k, False, BLOCK)
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
        for start in range(0, count, 64):
            i = start + lane
            score = tl.load(scores + i, mask=i < count, other=0.0)
            prior = tl.load(indices + i, mask=i < count, other=0)
            rank = rank_of(score, i, scores, count)
            x1, y1, x2, y2 = candidate(
                *(boxes, priors, image * P + prior, prior, i < count),
                *(center_variance, size_variance, max_log_scale),
                DECODE,
                CLIP,
            )
            store_boxes(sorted_boxes, rank, i < count, x1, y1, x2, y2)
            tl.store(sorted_scores + rank, score, mask=i < count)
            tl.store(sorted_indices + rank, prior, mask=i < count)
        tl.debug_barrier()

        # 4. greedy suppression by blocks of 64, until the slots are full
        out = (image * (C - 1) + label - 1) * slots
        total, kept = tl.full([], 0, tl.int32), tl.zeros([WORDS], tl.int64)
        for start in range(0, count, 64):
            if total < slots:
                i = start + lane
                x1, y1, x2, y2 = load_boxes(sorted_boxes, i, i < count)
                covered = tl.zeros([64], tl.int32)
                for first in range(0, start, 64):
                    word = tl.sum(tl.where(tl.arange(0, WORDS) == first // 64, kept, 0))
                    if word != 0:
                        u1, v1, u2, v2 = load_boxes(sorted_boxes, first + lane, lane < 64)
                        over = overlaps(u1, v1, u2, v2, x1, y1, x2, y2, limit)
                        over &= unpack(word)[:, None]
                        covered |= tl.max(over.to(tl.int32), axis=0)
                alive = pack((i < count) & (covered == 0))
                over = overlaps(x1, y1, x2, y2, x1, y1, x2, y2, limit)
                keep = unpack(keep_greedily(alive, suppressed_bits(over)))
                place = total + tl.cumsum(keep.to(tl.int32), axis=0) - 1
                keep &= place < slots
                score = tl.load(sorted_scores + i, mask=keep, other=0.0)
                tl.store(kept_scores + out + place, score, mask=keep)
                prior = tl.load(sorted_indices + i, mask=keep, other=0)
                tl.store(kept_priors + out + place, prior, mask=keep)
                total += tl.sum(keep.to(tl.int32))
                kept = tl.where(tl.arange(0, WORDS) == start // 64, pack(keep), kept)
        for start in range(total, slots, 64):
            i = start + lane
            none = tl.full([64], float("-inf"), kept_scores.dtype.element_ty)
            tl.store(kept_scores + out + i, none, mask=i < slots)
        tl.debug_barrier()


def allocate(values, boxes, keep_top_k):
    """The five results of both ops, uninitialised."""
    double = torch.float64 in (values.dtype, boxes.dtype)
    dtype, images = torch.float64 if double else torch.float32, values.shape[0]
    labels = values.new_empty(images, keep_top_k, dtype=torch.int64)
    return (
        values.new_empty(images, keep_top_k, 4, dtype=dtype),
        values.new_empty(images, keep_top_k, dtype=dtype),
        labels,
        torch.empty_like(labels),
        values.new_empty(images, dtype=torch.int64),
    )


def launch(
    values, boxes, priors, score_threshold, iou_threshold, nms_top_k, keep_top_k, coding, options
):
    """Three kernels; `coding` are the numbers of `decode_boxes`, `options` what the kernels do."""
    images, P, C = values.shape
    outputs = allocate(values, priors, keep_top_k)
    top_k = min(nms_top_k, P)
    slots, tasks, words = min(keep_top_k, top_k), images * max(C - 1, 0), triton.cdiv(P, 32)
    if tasks * P == 0:
        for output, value in zip(outputs, (0, 0, 0, -1, 0), strict=True):
            output.fill_(value)
        return outputs

    def scratch(*shape, dtype=outputs[1].dtype):
        return values.new_empty(shape, dtype=dtype)

    softmax, int32 = options["SOFTMAX"], {"dtype": torch.int32}
    rows = images if softmax else 0
    marked = scratch(rows, P), scratch(rows, P), scratch(images, words, C, **int32)
    mark_kernel[(words, images)](
        *(values, *marked, P, C, score_threshold),
        SOFTMAX=softmax,
        COLS=min(128, triton.next_power_of_2(C)),
        num_warps=8,
    )
    n = min(PROGRAMS, tasks)
    candidates = scratch(n, P), scratch(n, P, **int32)
    best = scratch(n, top_k), scratch(n, top_k, **int32), scratch(n, top_k, 4)
    kept = scratch(tasks, slots), scratch(tasks, slots, **int32)
    limit = round_down(iou_threshold, outputs[0].dtype)
    _multiclass_nms_kernel[(n,)](
        *(values, *marked, boxes, priors, *candidates, *best, *kept),
        *(tasks, P, C, words, top_k, slots, limit, *coding),
        **options,
        BLOCK=BLOCK,
        WORDS=triton.next_power_of_2(triton.cdiv(top_k, 64)),
        num_warps=8,
        enable_fp_fusion=False,
    )
    merged = scratch(images, keep_top_k), scratch(images, keep_top_k, **int32)
    merge_kernel[(images,)](
        *(boxes, priors, *kept, *merged, *outputs, P, slots, C - 1, keep_top_k, *coding),
        DECODE=options["DECODE"],
        CLIP=options["CLIP"],
        BLOCK=2048,
        num_warps=8,
        enable_fp_fusion=False,
    )
    return outputs


def _fake(boxes, scores, score_threshold, iou_threshold, nms_top_k, keep_top_k):
    return allocate(scores, boxes, keep_top_k)


@launcher(_fake)
def multiclass_nms_triton(
    boxes: torch.Tensor,
    scores: torch.Tensor,
    score_threshold: float,
    iou_threshold: float,
    nms_top_k: int,
    keep_top_k: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    limits = score_threshold, iou_threshold, nms_top_k, keep_top_k
    options = {"SOFTMAX": False, "DECODE": False, "CLIP": False}
    return launch(scores, boxes, boxes, *limits, (0.1, 0.2, 0.0), options)
