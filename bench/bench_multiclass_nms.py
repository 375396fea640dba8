import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

from bench.agreement import same_detections
from bench.scenes import random_boxes, trained_heads
from ssdkern import multiclass_nms


def real_heads():
    """What a real SSD says of 50 pictures: thousands of candidates an image."""
    folder = os.environ.get("SSDKERN_TEST_DATA")
    if folder is None:
        pytest.skip("SSDKERN_TEST_DATA names no folder with real_heads")
    file = np.load(Path(folder, "real_heads/coco_ssd_mobilenet_tiny_val.npz"))
    scores = torch.from_numpy(file["scores"]).float()[:8]
    background = torch.zeros(*scores.shape[:2], 1)
    return torch.from_numpy(file["boxes"])[:8], torch.cat((background, scores), dim=2)


def synthetic():
    return random_boxes(8, 8732), trained_heads(8, 21)[0].softmax(-1)


def per_class(boxes, scores, score_threshold=0.01, top=400, keep=200):
    """One image the way of torchvision's SSD: a loop over classes, then batched_nms."""
    parts = []
    for label in range(1, scores.shape[1]):
        chosen = scores[:, label] > score_threshold
        score, order = scores[chosen, label].topk(min(top, int(chosen.sum())))
        parts.append((boxes[chosen][order], score, torch.full_like(order, label)))
    box, score, label = (torch.cat(part) for part in zip(*parts, strict=True))
    kept = torchvision.ops.batched_nms(box, score, label, 0.45)[:keep]
    return {"boxes": box[kept], "scores": score[kept], "labels": label[kept]}


@pytest.mark.parametrize("source", [synthetic, real_heads], ids=["synthetic", "real"])
def bench_multiclass_nms(timed, device, source):
    boxes, scores = (t.to(device) for t in source())
    timed(
        "multiclass_nms",
        source.__name__,
        f"B{len(boxes)}-P{boxes.shape[1]}-C{scores.shape[2]}",
        ours=lambda backend: multiclass_nms(boxes, scores, backend=backend),
        torchvision=lambda: [per_class(*image) for image in zip(boxes, scores, strict=True)],
        nbytes=scores.nbytes,
        agree=same_detections,
    )
