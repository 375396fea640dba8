"""From the outputs of the heads to detections."""

import math

import torch

from ssdkern._backend import resolve
from ssdkern.ops._check import (
    as_kernel_input,
    compute_dtype,
    want,
    want_float,
    want_number,
    want_same_device,
    want_shape,
    want_variances,
)
from ssdkern.ops._dispatch import fake, kernel
from ssdkern.ops.decode_boxes import decode_boxes_torch
from ssdkern.ops.multiclass_nms import Detections, empty_detections, multiclass_nms_torch


@torch.no_grad()
def detect(
    logits,
    offsets,
    priors,
    *,
    score_threshold=0.01,
    iou_threshold=0.45,
    nms_top_k=400,
    keep_top_k=200,
    variances=(0.1, 0.2),
    max_log_scale=None,
    clip=False,
    backend=None,
):
    """Turn the outputs of SSD's heads into detections: softmax, decode, `multiclass_nms`.

    Args:
        logits (Tensor[B, P, C]): class scores before softmax, class 0 the background. Half
            precision is computed in float32.
        offsets (Tensor[B, P, 4]): ``(dx, dy, dw, dh)``, floating point.
        priors (Tensor[P, 4]): xyxy.
        score_threshold, iou_threshold, nms_top_k, keep_top_k: as in `multiclass_nms`.
        variances, max_log_scale: as in `decode_boxes`.
        clip: move the boxes into [0, 1] before suppression, as torchvision does in pixels; the
            Caffe original does not.
        backend: ``"native"``, ``"triton"``, ``"torch"``; None takes the first that can run.

    Returns:
        Detections: boxes in units of `priors`. Equal on every backend but for decisions that hang
        on a score or IoU within 2e-6 of a threshold or of another. No synchronisation, but for the
        loop of the torch backend outside of a graph.

    Raises:
        ValueError: a shape, dtype, device or number does not fit.
        RuntimeError: `backend` cannot run on this device.

    Source: DetectionOutputLayer of the authors' Caffe code.
    """
    want(logits.ndim == 3, "logits [B, P, C]", list(logits.shape))
    want_shape("offsets", offsets, *logits.shape[:2], 4)
    want_shape("priors", priors, logits.shape[1], 4)
    want_float("logits", logits)
    want_float("offsets", offsets)
    want_number("nms_top_k", nms_top_k, 1)
    want_number("keep_top_k", keep_top_k, 1)
    want_variances(variances)
    want_same_device(logits=logits, offsets=offsets, priors=priors)
    backend = resolve("detect", backend, logits.device)
    dtype = compute_dtype(logits, offsets, priors)
    logits, offsets = as_kernel_input(logits, dtype), as_kernel_input(offsets, dtype)
    bound = math.inf if max_log_scale is None else max_log_scale
    run = detect_torch if backend == "torch" else kernel("detect", backend)
    tensors = logits, offsets, priors.to(dtype)
    limits = score_threshold, iou_threshold, nms_top_k, keep_top_k
    return Detections(*run(*tensors, *limits, *variances, bound, clip))


def detect_torch(
    logits,
    offsets,
    priors,
    score_threshold,
    iou_threshold,
    nms_top_k,
    keep_top_k,
    center_variance,
    size_variance,
    max_log_scale,
    clip,
):
    """The reference."""
    scores = logits.to(priors.dtype).softmax(dim=-1)
    variances = center_variance, size_variance
    boxes = decode_boxes_torch(offsets.to(priors.dtype), priors, *variances, max_log_scale)
    boxes = boxes.clamp(0, 1) if clip else boxes
    limits = score_threshold, iou_threshold, nms_top_k, keep_top_k
    return multiclass_nms_torch(boxes, scores, *limits)


@fake("detect")
def _(logits, offsets, priors, score_threshold, iou_threshold, nms_top_k, keep_top_k, *rest):
    return empty_detections(logits, priors.dtype, keep_top_k)
