"""Detections from the outputs of the heads: `multiclass_nms` with softmax and decoding inside."""

import torch

from ssdkern.kernels.launcher import launcher
from ssdkern.kernels.multiclass_nms import allocate, launch


def _fake(logits, offsets, priors, score_threshold, iou_threshold, nms_top_k, keep_top_k, *rest):
    return allocate(logits, priors, keep_top_k)


@launcher(_fake)
def detect_triton(
    logits: torch.Tensor,
    offsets: torch.Tensor,
    priors: torch.Tensor,
    score_threshold: float,
    iou_threshold: float,
    nms_top_k: int,
    keep_top_k: int,
    center_variance: float,
    size_variance: float,
    max_log_scale: float,
    clip: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    limits = score_threshold, iou_threshold, nms_top_k, keep_top_k
    coding = center_variance, size_variance, max_log_scale
    options = {"SOFTMAX": True, "DECODE": True, "CLIP": clip}
    return launch(logits, offsets, priors, *limits, coding, options)
