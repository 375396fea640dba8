"""Other projects' interfaces on these ops: torchvision's models, amdegroot's box_utils."""

from collections import OrderedDict

import pytest
import torch
import torchvision
from cases import random_boxes
from torch import nn
from torchvision.models.detection._utils import BoxCoder, SSDMatcher
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD

from ssdkern.compat import amdegroot
from ssdkern.compat.torchvision import patch

VARIANCES = (0.1, 0.2)


class Backbone(nn.Module):
    out_channels = (8, 8)

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, 8, 1), nn.Conv2d(8, 8, 3, 2, 1)

    def forward(self, x):
        x = self.first(x)
        return OrderedDict([("0", x), ("1", self.second(x).relu())])


@pytest.fixture
def model():
    anchors = DefaultBoxGenerator([[2], [2, 3]], scales=[0.15, 0.4, 0.8])
    ssd = SSD(Backbone(), anchors, (96, 96), 5, nms_thresh=0.3, detections_per_img=50)
    for head in (ssd.head.classification_head, ssd.head.regression_head):
        for layer in head.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.3)
    return ssd


def scene():
    images = [torch.rand(3, 120, 90), torch.rand(3, 64, 64), torch.rand(3, 80, 100)]
    targets = []
    for image, count in zip(images, (3, 0, 6), strict=True):
        height, width = image.shape[1:]
        boxes = random_boxes(count, 0.1, 0.5) * torch.tensor([width, height, width, height])
        targets.append({"boxes": boxes, "labels": torch.randint(1, 5, (count,))})
    return images, targets


def test_torchvision_loss_and_gradients(model):
    images, targets = scene()

    def run():
        model.zero_grad()
        losses = model.train()(images, targets)
        sum(losses.values()).backward()
        return losses, [p.grad.clone() for p in model.parameters()]

    losses, grads = run()
    with patch():
        patched, patched_grads = run()
    for name, value in losses.items():
        torch.testing.assert_close(patched[name], value, rtol=1e-5, atol=1e-6)
    for got, want in zip(patched_grads, grads, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4 * float(want.abs().max()))


def test_torchvision_detections(model):
    images, _ = scene()
    model.eval()
    with torch.no_grad():
        want = model(images)
        with patch(backend="torch"):
            got = model(images)
    for mine, theirs in zip(got, want, strict=True):
        assert len(mine["labels"]) == len(theirs["labels"]) == 50
        assert torch.equal(mine["labels"], theirs["labels"])
        torch.testing.assert_close(mine["scores"], theirs["scores"])
        torch.testing.assert_close(mine["boxes"], theirs["boxes"], rtol=1e-4, atol=1e-3)


def test_torchvision_patch_is_used_and_undone(model, monkeypatch):
    before = dict(vars(SSD)), dict(vars(SSDMatcher)), torchvision.models.detection.ssd.box_ops
    undo = patch()
    matrix = torch.rand(3, 40)
    inside = SSDMatcher(0.5)(matrix)
    images, targets = scene()
    with monkeypatch.context() as context:
        context.setattr(torchvision.ops.boxes, "box_iou", None)
        model.train()(images, targets)
    undo.close()
    assert torch.equal(inside, SSDMatcher(0.5)(matrix))
    assert before == (
        dict(vars(SSD)),
        dict(vars(SSDMatcher)),
        torchvision.models.detection.ssd.box_ops,
    )


def test_torchvision_rejects_uneven_weights(model):
    model.box_coder = BoxCoder((10.0, 5.0, 5.0, 5.0))
    with patch(), pytest.raises(ValueError, match="want one weight for both axes"):
        model.eval()([torch.rand(3, 96, 96)])


def test_amdegroot_boxes():
    boxes, others = random_boxes(7), random_boxes(9)
    torch.testing.assert_close(amdegroot.point_form(amdegroot.center_size(boxes)), boxes)
    assert amdegroot.center_size(torch.tensor([[1.0, 2, 4, 8]])).tolist() == [[2.5, 5, 3, 6]]
    areas = [torchvision.ops.box_area(b) for b in (boxes, others)]
    overlap = amdegroot.intersect(boxes, others)
    union = areas[0][:, None] + areas[1] - overlap
    torch.testing.assert_close(amdegroot.jaccard(boxes, others), overlap / union)
    assert torch.equal(amdegroot.jaccard(boxes, others), torchvision.ops.box_iou(boxes, others))


def test_amdegroot_match():
    """By its own rule, written out: each truth takes its best prior, later ones over earlier."""
    boxes, truths = random_boxes(60), random_boxes(5)
    priors, labels = amdegroot.center_size(boxes), torch.tensor([3, 0, 1, 0, 2])
    iou = torchvision.ops.box_iou(truths, boxes)
    value, best = iou.max(0)
    for row in range(5):
        best[iou[row].argmax()], value[iou[row].argmax()] = row, 2
    conf = torch.where(value < 0.4, 0, labels[best] + 1)
    want = BoxCoder((10.0, 10.0, 5.0, 5.0)).encode_single(truths[best], boxes)
    loc_t, conf_t = torch.zeros(2, 60, 4), torch.zeros(2, 60, dtype=torch.int64)
    amdegroot.match(0.4, truths, priors, VARIANCES, labels, loc_t, conf_t, 1)
    assert torch.equal(conf_t[1], conf) and not conf_t[0].any() and not loc_t[0].any()
    torch.testing.assert_close(loc_t[1], want, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(amdegroot.encode(truths[best], priors, VARIANCES), loc_t[1])
    torch.testing.assert_close(amdegroot.decode(loc_t[1], priors, VARIANCES), truths[best])


def test_amdegroot_nms_and_log_sum_exp():
    boxes, scores = random_boxes(80), torch.rand(80)
    keep, count = amdegroot.nms(boxes, scores, 0.3, 50)
    best = scores.sort(descending=True).indices[:50]
    want = best[torchvision.ops.nms(boxes[best], scores[best], 0.3)]
    assert keep.shape == (80,) and torch.equal(keep[:count], want) and not keep[count:].any()
    rows = torch.tensor([[60.0, 0.0], [-50.0, -49.0]])
    torch.testing.assert_close(amdegroot.log_sum_exp(rows), rows.logsumexp(1, keepdim=True))
