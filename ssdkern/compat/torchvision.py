"""Torchvision's own SSD models on these ops, without a change to the code that uses them."""

from contextlib import ExitStack
from types import SimpleNamespace
from typing import NamedTuple

import torch
from torchvision.models.detection import ssd
from torchvision.models.detection._utils import SSDMatcher

from ssdkern.lists import list_detections, send
from ssdkern.ops import detect, match_priors, multibox_loss


class _Pairs(NamedTuple):
    """Stands for the IoU matrix of an image, which is never made."""

    boxes: torch.Tensor
    anchors: torch.Tensor


def patch(backend=None):
    """Let every SSD of torchvision match, compute its loss and detect by these ops.

    Models that exist already change too. What is found is torchvision's within rounding, except
    that where an image has fewer than ``neg_to_pos_ratio`` negatives a positive, its positives
    count once, not twice. TorchScript is not affected.

    Args:
        backend: of every op.

    Returns:
        contextlib.ExitStack: undoes the change at the end of a ``with``, or by ``close()``.
    """
    call = SSDMatcher.__call__

    def match(matcher, quality):
        if not isinstance(quality, _Pairs):
            return call(matcher, quality)
        rows = torch.arange(2, dtype=torch.int32, device=quality.boxes.device) * len(quality.boxes)
        matched = match_priors(
            quality.anchors,
            quality.boxes,
            rows,
            iou_threshold=matcher.high_threshold,
            rule="argmax",
            backend=backend,
        )
        return matched[0].long()

    def compute_loss(model, targets, head_outputs, anchors, matched_idxs):
        counts = torch.tensor([0] + [len(target["boxes"]) for target in targets])
        rows = send(counts.cumsum(0).int(), matched_idxs[0].device)
        matched = torch.stack(matched_idxs).int()
        loss = multibox_loss(
            head_outputs["cls_logits"],
            head_outputs["bbox_regression"],
            anchors[0],
            torch.cat([target["boxes"] for target in targets]),
            torch.cat([target["labels"] for target in targets]),
            rows,
            matched=torch.where(matched >= 0, matched + rows[:-1, None], matched),
            neg_pos_ratio=model.neg_to_pos_ratio,
            variances=_variances(model.box_coder),
            backend=backend,
        )
        return {"bbox_regression": loss.localization, "classification": loss.classification}

    def postprocess_detections(model, head_outputs, image_anchors, image_shapes):
        height, width = image_shapes[0]  # an SSD warps all images to one size
        sides = send(torch.tensor([width, height, width, height]), image_anchors[0].device)
        found = detect(
            head_outputs["cls_logits"],
            head_outputs["bbox_regression"],
            image_anchors[0] / sides,
            score_threshold=model.score_thresh,
            iou_threshold=model.nms_thresh,
            nms_top_k=model.topk_candidates,
            keep_top_k=model.detections_per_img,
            variances=_variances(model.box_coder),
            max_log_scale=model.box_coder.bbox_xform_clip,
            clip=True,
            backend=backend,
        )
        return list_detections(found, sides)

    undo = ExitStack()
    for owner, name, value in (
        (ssd, "box_ops", SimpleNamespace(**{**vars(ssd.box_ops), "box_iou": _Pairs})),
        (SSDMatcher, "__call__", match),
        (ssd.SSD, "compute_loss", compute_loss),
        (ssd.SSD, "postprocess_detections", postprocess_detections),
    ):
        undo.callback(setattr, owner, name, vars(owner)[name])
        setattr(owner, name, value)
    return undo


def _variances(coder):
    x, y, width, height = coder.weights
    if x != y or width != height:
        raise ValueError(f"want one weight for both axes of a box coder, got {coder.weights}")
    return 1 / x, 1 / width
