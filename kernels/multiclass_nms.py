"""Suppression within the classes of each image, a program a class."""

import torch
import triton
import triton.language as tl

from ssdkern.kernels.boxes import load_boxes
from ssdkern.kernels.candidates import candidates_kernel
from ssdkern.kernels.detections import mark_kernel, merge_kernel
from ssdkern.kernels.greedy import (
    keep_greedily,
    overlaps,
    pack,
    round_down,
    suppressed_bits,
    unpack,
)
from ssdkern.kernels.launcher import launcher

PROGRAMS = 1024  # enough to fill a GPU; each has a scratch of P scores
CANDIDATES = 2**22  # at a time, in order: 100 MB
BLOCK = 1024


@triton.jit(do_not_specialize=["first"])
def _multiclass_nms_kernel(
    sorted_scores,
    sorted_indices,
    sorted_boxes,
    counts,
    kept_scores,
    kept_priors,
    first,
    top_k,
    slots,
    limit: tl.float64,
    WORDS: tl.constexpr,
):
    """Greedy suppression by blocks of 64, until the slots are full."""
    task, lane = tl.program_id(0).to(tl.int64), tl.arange(0, 64)
    sorted_scores, sorted_indices = sorted_scores + task * top_k, sorted_indices + task * top_k
    sorted_boxes += task * top_k * 4
    count, out = tl.load(counts + task), (first + task) * slots
    total, kept = tl.full([], 0, tl.int32), tl.zeros([WORDS], tl.int64)
    for start in range(0, count, 64):
        if total < slots:
            i = start + lane
            x1, y1, x2, y2 = load_boxes(sorted_boxes, i, i < count)
            covered, over = tl.zeros([64], tl.int32), tl.zeros([64, 64], tl.int1)
            for other in range(0, start + 64, 64):  # this block last, of which none is kept yet
                word = tl.sum(tl.where(tl.arange(0, WORDS) == other // 64, kept, 0))
                if (word != 0) | (other == start):
                    u1, v1, u2, v2 = load_boxes(sorted_boxes, other + lane, other + lane < count)
                    over = overlaps(u1, v1, u2, v2, x1, y1, x2, y2, limit)
                    covers = over & unpack(word)[:, None]
                    covered |= tl.max(covers.to(tl.int32), axis=0)
            alive = pack((i < count) & (covered == 0))
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
    """Four kernels; `coding` are the numbers of `decode_boxes`, `options` what the kernels do."""
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
    mark_kernel[(words * images,)](
        *(values, *marked, P, score_threshold),
        SOFTMAX=softmax,
        C=C,
        COLS=min(32, triton.next_power_of_2(C)),
        num_warps=8,
    )
    wave = min(tasks, max(PROGRAMS, CANDIDATES // top_k))
    n = min(PROGRAMS, wave)
    candidates = scratch(n, P), scratch(n, P, **int32)
    best = scratch(wave, top_k), scratch(wave, top_k, **int32), scratch(wave, top_k, 4)
    best = *best, scratch(wave, **int32)
    kept = scratch(tasks, slots), scratch(tasks, slots, **int32)
    limit = round_down(iou_threshold, outputs[0].dtype)
    for first in range(0, tasks, wave):
        now = min(wave, tasks - first)
        candidates_kernel[(min(n, now),)](
            *(values, *marked, boxes, priors, *candidates, *best),
            *(first, now, P, C, words, top_k, *coding),
            **options,
            BLOCK=BLOCK,
            num_warps=4,
            enable_fp_fusion=False,
        )
        _multiclass_nms_kernel[(now,)](
            *(*best, *kept, first, top_k, slots, limit),
            WORDS=triton.next_power_of_2(triton.cdiv(top_k, 64)),
            num_warps=8,
            enable_fp_fusion=False,
        )
    merged = scratch(images, keep_top_k), scratch(images, keep_top_k, **int32)
    merge_kernel[(images,)](
        *(boxes, priors, *kept, *merged, *outputs, P, slots, C - 1, keep_top_k, *coding),
        DECODE=options["DECODE"],
        CLIP=options["CLIP"],
        BLOCK=4096,
        HELD=max(4096, min(16384, triton.next_power_of_2((C - 1) * slots))),
        num_warps=16,
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
