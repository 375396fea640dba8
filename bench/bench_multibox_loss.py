from types import SimpleNamespace

import pytest
import torch
import torchvision
from torchvision.models.detection._utils import BoxCoder, SSDMatcher
from torchvision.models.detection.ssd import SSD

from bench.scenes import priors, trained_heads, truth
from ssdkern import multibox_loss


@pytest.mark.parametrize("classes", [21, 91])
def bench_multibox_loss(timed, device, classes, batch=8, each=8):
    """Matching, loss and gradients, as in a training step."""
    anchors = priors().to(device)
    heads = [t.to(device).requires_grad_() for t in trained_heads(batch, classes)]
    boxes, labels, rows = (t.to(device) for t in truth(batch, each, classes))
    matcher = SSDMatcher(0.5)
    ssd = SimpleNamespace(box_coder=BoxCoder((10.0, 10.0, 5.0, 5.0)), neg_to_pos_ratio=3.0)
    pairs = zip(boxes.split(each), labels.split(each), strict=True)
    targets = [{"boxes": b, "labels": k} for b, k in pairs]

    def ours(backend):
        loss = multibox_loss(*heads, anchors, boxes, labels, rows, rule="argmax", backend=backend)
        gradients = torch.autograd.grad(loss.localization + loss.classification, heads)
        return [loss.localization.detach(), loss.classification.detach(), *gradients]

    def theirs():
        matched = [matcher(torchvision.ops.box_iou(t["boxes"], anchors)) for t in targets]
        outputs = {"cls_logits": heads[0], "bbox_regression": heads[1]}
        loss = SSD.compute_loss(ssd, targets, outputs, [anchors] * batch, matched)
        gradients = torch.autograd.grad(sum(loss.values()), heads)
        values = [loss["bbox_regression"], loss["classification"]]
        return [*(value.detach() for value in values), *gradients]

    def agree(result, expected):
        """Sums of different order agree to 1e-5 relative."""
        for got, want in zip(result, expected, strict=True):
            assert (got - want).abs().max() <= 1e-5 * want.abs().max()

    timed(
        "multibox_loss",
        "match-forward-backward",
        f"B{batch}-C{classes}-G{each}",
        ours=ours,
        torchvision=theirs,
        nbytes=2 * sum(t.nbytes for t in heads) + anchors.nbytes,
        agree=agree,
    )
