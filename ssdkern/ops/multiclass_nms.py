"""From scored boxes to the detections of an image."""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from ssdkern._backend import resolve
from ssdkern.ops._check import (
    as_kernel_input,
    compute_dtype,
    want,
    want_float,
    want_number,
    want_same_device,
    want_shape,
)
from ssdkern.ops._dispatch import fake, kernel
from ssdkern.ops.nms import suppress


class Detections(NamedTuple):
    """Fixed-size detections of a batch, K = keep_top_k slots an image.

    Rows are ordered by score descending, then label, then prior. Slots from ``count[b]`` on hold
    zeros, and -1 in `prior_index`.
    """

    boxes: torch.Tensor  # [B, K, 4] xyxy
    scores: torch.Tensor  # [B, K]
    labels: torch.Tensor  # [B, K] int64
    prior_index: torch.Tensor  # [B, K] int64
    count: torch.Tensor  # [B] int64


@torch.no_grad()
def multiclass_nms(
    boxes,
    scores,
    *,
    score_threshold=0.01,
    iou_threshold=0.45,
    nms_top_k=400,
    keep_top_k=200,
    backend=None,
):
    """Per-class suppression of decoded, scored boxes: Caffe's DetectionOutput after the softmax.

    For each class but the background: the priors whose score exceeds `score_threshold`, the
    `nms_top_k` best of them, greedy suppression. Then the `keep_top_k` best of all classes.

    Args:
        boxes (Tensor[B, P, 4]): xyxy, floating point, shared by the classes.
        scores (Tensor[B, P, C]): floating point, class 0 the background. NaN takes no part.
        score_threshold: compared strictly, in the dtype the scores are computed in.
        iou_threshold: as in `nms`, strictly.
        nms_top_k: priors of a class that enter suppression, at least 1.
        keep_top_k: detections of an image, at least 1.
        backend: ``"native"``, ``"triton"``, ``"torch"``; None takes the first that can run.

    Returns:
        Detections: boxes and scores float64 where either input is, else float32. Equal scores
        count from the lowest prior, and across classes from the lowest label. Equal on every
        backend. No synchronisation, but for the loop of the torch backend outside of a graph.

    Raises:
        ValueError: a shape, dtype, device or number does not fit.
        RuntimeError: `backend` cannot run on this device.

    Source: DetectionOutputLayer of the authors' Caffe code.
    """
    want(scores.ndim == 3, "scores [B, P, C]", list(scores.shape))
    want_shape("boxes", boxes, *scores.shape[:2], 4)
    want_float("boxes", boxes)
    want_float("scores", scores)
    want_number("nms_top_k", nms_top_k, 1)
    want_number("keep_top_k", keep_top_k, 1)
    want_same_device(boxes=boxes, scores=scores)
    backend = resolve("multiclass_nms", backend, boxes.device)
    dtype = compute_dtype(boxes, scores)
    boxes, scores = as_kernel_input(boxes, dtype), as_kernel_input(scores, dtype)
    run = multiclass_nms_torch if backend == "torch" else kernel("multiclass_nms", backend)
    return Detections(*run(boxes, scores, score_threshold, iou_threshold, nms_top_k, keep_top_k))


def multiclass_nms_torch(
    boxes, scores, score_threshold, iou_threshold, nms_top_k, keep_top_k, suppress=suppress
):
    """The reference; `suppress` of `ssdkern.ops.nms`, or what stands for it in an export."""
    dtype = compute_dtype(boxes, scores)
    batch, num_priors, num_classes = scores.shape
    if num_priors == 0 or num_classes < 2:
        boxes, scores = boxes.new_zeros(batch, 1, 4), scores.new_zeros(batch, 1, 2)
        score_threshold = torch.inf
    boxes, scores = boxes.to(dtype), scores.to(dtype)[..., 1:].transpose(1, 2)  # [B, C-1, P]
    scores = torch.where(scores > score_threshold, scores, -torch.inf)
    scores, prior = scores.sort(dim=2, descending=True, stable=True)
    scores, prior = scores[..., :nms_top_k], prior[..., :nms_top_k]  # [B, C-1, K]
    candidates = boxes.gather(1, prior.flatten(1)[..., None].expand(-1, -1, 4))
    alive = (scores > -torch.inf).flatten(0, 1)
    keep = suppress(candidates.view(*alive.shape, 4), alive, iou_threshold, keep_top_k)

    # lists lie in the order of labels, so that a stable sort settles ties
    scores = torch.where(keep.view_as(scores), scores, -torch.inf).flatten(1)
    scores, slot = scores.sort(dim=1, descending=True, stable=True)
    scores, slot = scores[:, :keep_top_k], slot[:, :keep_top_k]
    kept = scores > -torch.inf
    labels = torch.where(kept, slot // prior.shape[2] + 1, 0)
    prior = torch.where(kept, prior.flatten(1).gather(1, slot), -1)
    candidates = candidates.gather(1, slot[..., None].expand(-1, -1, 4))
    candidates = torch.where(kept[..., None], candidates, 0)
    scores = torch.where(kept, scores, 0)
    free = keep_top_k - kept.shape[1]
    return (
        F.pad(candidates, (0, 0, 0, free)),
        F.pad(scores, (0, free)),
        F.pad(labels, (0, free)),
        F.pad(prior, (0, free), value=-1),
        kept.sum(dim=1),
    )


@fake("multiclass_nms")
def _(boxes, scores, score_threshold, iou_threshold, nms_top_k, keep_top_k):
    return empty_detections(scores, compute_dtype(boxes, scores), keep_top_k)


def empty_detections(like, dtype, keep_top_k):
    """The five outputs of a native op, for fakes."""
    floats, rows = {"dtype": dtype}, like.new_empty(like.shape[0], keep_top_k, dtype=torch.int64)
    return (
        like.new_empty(like.shape[0], keep_top_k, 4, **floats),
        like.new_empty(like.shape[0], keep_top_k, **floats),
        rows,
        torch.empty_like(rows),
        like.new_empty(like.shape[0], dtype=torch.int64),
    )
