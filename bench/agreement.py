"""torchvision's detection beside ours: its settings, and how far two sets of detections agree."""

from types import SimpleNamespace

import torch
from torchvision.models.detection._utils import BoxCoder


def torchvision_ssd():
    """What `SSD.postprocess_detections` reads of its model, with the settings of `detect`."""
    return SimpleNamespace(
        box_coder=BoxCoder((10.0, 10.0, 5.0, 5.0)),
        score_thresh=0.01,
        topk_candidates=400,
        nms_thresh=0.45,
        detections_per_img=200,
    )


def as_lists(detections, side):
    """Detections, or torchvision's list of dicts in pixels, as (labels, scores, boxes) an image."""
    if isinstance(detections, list):
        return [(d["labels"], d["scores"], d["boxes"] / side) for d in detections]
    rows = zip(*detections, strict=True)
    return [(labels[:n], scores[:n], boxes[:n]) for boxes, scores, labels, _, n in rows]


def same_detections(result, expected, side=1, share=0.01):
    """Fails where more than `share` of the detections have no like: label, score and box to 1e-4.

    A few differ by right: scores next to the threshold and suppression on shifted pixel boxes.
    """
    unlike = total = 0
    pairs = zip(as_lists(result, side), as_lists(expected, side), strict=True)
    for (labels, scores, boxes), (labels2, scores2, boxes2) in pairs:
        alike = labels[:, None] == labels2
        alike &= (scores[:, None] - scores2).abs() < 1e-4
        alike &= (boxes[:, None] - boxes2).abs().amax(-1) < 1e-4
        unlike += int((~alike.any(1)).sum() + (~alike.any(0)).sum())
        total += len(labels) + len(labels2)
    assert total > 0
    assert unlike <= share * total, f"{unlike} of {total} detections differ"
    return torch.tensor(unlike / total)
