"""Greedy non-maximum suppression within groups."""

import torch
from torch import library

from ssdkern._backend import resolve
from ssdkern.ops._check import as_kernel_input, compute_dtype, want_same_device, want_shape
from ssdkern.ops._dispatch import fake, kernel
from ssdkern.ops.nms import ranking, suppress, want_scored_boxes


@torch.no_grad()
def batched_nms(boxes, scores, idxs, iou_threshold, *, backend=None):
    """`nms` within each group of boxes, such as a class or an image and class.

    Args:
        boxes (Tensor[N, 4]): xyxy, floating point. Coordinates are used as they are: negative,
            infinite and NaN ones do not disturb other groups (torchvision's offset trick does).
        scores (Tensor[N]): dtype of `boxes`. NaN counts as highest.
        idxs (Tensor[N]): the group of each box, any number, any dtype.
        iou_threshold: as in `nms`.
        backend: ``"native"``, ``"triton"``, ``"torch"``; None takes the first that can run.

    Returns:
        Tensor[K]: int64 indices of the kept boxes of all groups, score descending, equal scores
        from the lowest index on. Equal on every backend.

    Raises:
        ValueError: a shape, dtype or device does not fit.
        RuntimeError: `backend` cannot run on this device.
    """
    want_scored_boxes(boxes, scores)
    want_shape("idxs", idxs, len(boxes))
    want_same_device(boxes=boxes, idxs=idxs)
    backend = resolve("batched_nms", backend, boxes.device)
    dtype = compute_dtype(boxes)
    if idxs.is_floating_point():
        idxs = (idxs.double() + 0.0).view(torch.int64)  # equal numbers, equal bits
    idxs = idxs.to(torch.int64)
    if backend == "torch":
        return batched_nms_torch(boxes.to(dtype), scores, idxs, iou_threshold)
    boxes, scores = as_kernel_input(boxes, dtype), as_kernel_input(scores, dtype)
    return kernel("batched_nms", backend)(boxes, scores, idxs, iou_threshold)


def batched_nms_torch(boxes, scores, idxs, iou_threshold):
    """The reference."""
    order = ranking(scores)
    alive = torch.ones_like(order[None], dtype=torch.bool)
    most = max(len(order), 1)
    keep = suppress(boxes[order][None], alive, iou_threshold, most, idxs[order][None])
    return order[keep[0]]


@fake("batched_nms")
def _(boxes, scores, idxs, iou_threshold):
    kept = library.get_ctx().new_dynamic_size()
    return boxes.new_empty(kept, dtype=torch.int64)
