"""The functions of amdegroot's ``layers/box_utils.py``, by name, argument and result.

``from ssdkern.compat.amdegroot import *`` stands in for ``from layers.box_utils import *``. Where
that code fails these do not: `log_sum_exp` never gives -inf for finite rows, and boxes without area
are encoded to finite numbers.
"""

import torch

from ssdkern import ops

__all__ = [
    "center_size",
    "decode",
    "encode",
    "intersect",
    "jaccard",
    "log_sum_exp",
    "match",
    "nms",
    "point_form",
]


def point_form(boxes):
    """(cx, cy, w, h) to xyxy, [N, 4]."""
    return ops.box_convert(boxes, "cxcywh", "xyxy")


def center_size(boxes):
    """xyxy to (cx, cy, w, h), [N, 4]."""
    return ops.box_convert(boxes, "xyxy", "cxcywh")


def intersect(box_a, box_b):
    """Areas of intersection, [A, B]."""
    low = torch.maximum(box_a[:, None, :2], box_b[None, :, :2])
    high = torch.minimum(box_a[:, None, 2:], box_b[None, :, 2:])
    return (high - low).clamp(min=0).prod(2)


def jaccard(box_a, box_b):
    """IoU matrix, [A, B]."""
    return ops.box_iou(box_a, box_b)


def match(threshold, truths, priors, variances, labels, loc_t, conf_t, idx):
    """Match one image and write its targets into row `idx` of `loc_t` and `conf_t`.

    Args:
        threshold: least IoU of a match.
        truths (Tensor[G, 4]): xyxy.
        priors (Tensor[P, 4]): (cx, cy, w, h).
        variances: (centre, size).
        labels (Tensor[G]): from 0, without background.
        loc_t (Tensor[B, P, 4]): takes the offsets of the best truth of every prior.
        conf_t (Tensor[B, P]): takes label + 1, 0 for the background.
        idx: the image's row.
    """
    boxes = point_form(priors)
    rows = torch.arange(2, dtype=torch.int32, device=truths.device) * len(truths)
    best, hit = (
        ops.match_priors(boxes, truths, rows, iou_threshold=least, rule="argmax")[0].long()
        for least in (0.0, threshold)
    )
    conf_t[idx] = torch.where(hit >= 0, labels[best].to(conf_t.dtype) + 1, 0)
    loc_t[idx] = ops.encode_boxes(truths[best], boxes, variances=variances)


def encode(matched, priors, variances):
    """Offsets [P, 4] of xyxy boxes `matched` to (cx, cy, w, h) `priors`."""
    return ops.encode_boxes(matched, point_form(priors), variances=variances)


def decode(loc, priors, variances):
    """xyxy boxes [P, 4] of the offsets `loc` to (cx, cy, w, h) `priors`."""
    return ops.decode_boxes(loc, point_form(priors), variances=variances)


def log_sum_exp(x):
    """Of each row, [N, 1]."""
    return torch.logsumexp(x, 1, keepdim=True)


def nms(boxes, scores, overlap=0.5, top_k=200):
    """Suppress among the `top_k` best boxes.

    Returns:
        tuple[Tensor[N], int]: the kept indices, padded with zeros to the number of boxes, and how
        many there are.
    """
    keep = torch.zeros_like(scores, dtype=torch.int64)
    order = scores.sort(descending=True, stable=True).indices[:top_k]
    kept = order[ops.nms(boxes[order], scores[order], overlap)]
    keep[: len(kept)] = kept
    return keep, len(kept)
