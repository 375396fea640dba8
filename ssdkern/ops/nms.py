"""Greedy non-maximum suppression."""

import torch
from torch import library

from ssdkern._backend import resolve
from ssdkern.ops._check import (
    as_kernel_input,
    compute_dtype,
    want,
    want_boxes,
    want_float,
    want_same_device,
    want_shape,
)
from ssdkern.ops._dispatch import fake, kernel
from ssdkern.ops._loop import repeat_while
from ssdkern.ops.box_iou import box_iou_torch


@torch.no_grad()
def nms(boxes, scores, iou_threshold, *, backend=None):
    """Keep the boxes that overlap no box of higher score too much.

    Args:
        boxes (Tensor[N, 4]): xyxy, floating point.
        scores (Tensor[N]): dtype of `boxes`. NaN counts as highest.
        iou_threshold: a box goes where its IoU with a kept one, rounded to the dtype it is computed
            in, exceeds this number strictly. A NaN IoU does not.
        backend: ``"native"``, ``"triton"``, ``"torch"``; None takes the first that can run.

    Returns:
        Tensor[K]: int64 indices of the kept boxes, score descending, equal scores from the lowest
        index on. Equal on every backend.

    Raises:
        ValueError: a shape, dtype or device does not fit.
        RuntimeError: `backend` cannot run on this device.

    Source: torchvision's `nms` on the CPU, whose answer this is; half precision is computed in
    float32.
    """
    want_scored_boxes(boxes, scores)
    backend = resolve("nms", backend, boxes.device)
    dtype = compute_dtype(boxes)
    if backend == "torch":
        return nms_torch(boxes.to(dtype), scores, iou_threshold)
    boxes, scores = as_kernel_input(boxes, dtype), as_kernel_input(scores, dtype)
    return kernel("nms", backend)(boxes, scores, iou_threshold)


def want_scored_boxes(boxes, scores):
    want_boxes("boxes", boxes, "[N, 4]", ndim=2)
    want_shape("scores", scores, len(boxes))
    want_float("boxes", boxes)
    if scores.dtype != boxes.dtype:
        want(False, f"scores of the dtype of boxes, {boxes.dtype}", scores.dtype)
    want_same_device(boxes=boxes, scores=scores)


def nms_torch(boxes, scores, iou_threshold):
    """The reference."""
    order = ranking(scores)
    alive = torch.ones_like(order[None], dtype=torch.bool)
    keep = suppress(boxes[order][None], alive, iou_threshold, max(len(order), 1))
    return order[keep[0]]


def ranking(scores):
    """Indices of each row from the highest score on, NaN above all, equal ones in order."""
    # CUDA's sort (torch 2.14) puts a NaN whose sign is set, such as 0 / 0 on x86, last
    scores = scores.masked_fill(scores.isnan(), float("nan"))
    return scores.sort(descending=True, stable=True).indices


def suppress(boxes, alive, iou_threshold, most, group=None):
    """Greedy suppression of many lists at once.

    In each list take the first box alive, keep it, drop all that overlap it, repeat.

    Args:
        boxes (Tensor[S, K, 4]): S lists in descending order of score.
        alive (Tensor[S, K]): bool, the boxes that take part.
        most: a list ends when it has kept that many.
        group (Tensor[S, K]): boxes suppress only boxes of their group; None is one group.

    Returns:
        Tensor[S, K]: bool, the kept boxes.
    """
    if alive.numel() == 0:
        return alive
    boxes = boxes.contiguous()
    # on the device and in float64, which a float IoU is compared in
    limit = torch.full((), iou_threshold, dtype=torch.float64, device=boxes.device)
    places = torch.arange(alive.shape[1], device=boxes.device)

    def any_alive(alive, keep):
        return alive.any()

    def take_first(alive, keep):
        # not argmax, which inductor (torch 2.14) gets wrong for a list with none alive
        first = torch.where(alive, places, len(places) - 1).amin(dim=1, keepdim=True)  # [S, 1]
        box = boxes.gather(1, first[..., None].expand(-1, -1, 4))
        covered = box_iou_torch(box, boxes)[:, 0].double() > limit
        if group is not None:
            covered = covered & (group == group.gather(1, first))
        has_any = alive.gather(1, first)
        keep = keep.scatter(1, first, has_any | keep.gather(1, first))
        alive = (alive & ~covered).scatter(1, first, False)
        return alive & (keep.sum(dim=1, keepdim=True) < most), keep

    return repeat_while(any_alive, take_first, (alive, torch.zeros_like(alive)))[1]


@fake("nms")
def _(boxes, scores, iou_threshold):
    kept = library.get_ctx().new_dynamic_size()
    return boxes.new_empty(kept, dtype=torch.int64)
