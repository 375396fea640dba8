"""Inputs of the benchmarks: sizes and statistics of real SSD work, the same on every run."""

import torch

from ssdkern import box_iou, decode_boxes, make_priors


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random_boxes(*shape, seed=0, smallest=0.05, largest=0.5):
    """Boxes [*shape, 4], centres in the unit square, more small ones than large."""
    source = generator(seed)
    centre = torch.rand(*shape, 2, generator=source)
    size = smallest + (largest - smallest) * torch.rand(*shape, 2, generator=source) ** 2
    return torch.cat((centre - size / 2, centre + size / 2), dim=-1)


def clusters(count, seed=0, each=10):
    """`count` boxes in clusters of about `each` that overlap, and distinct scores."""
    source = generator(seed)
    centres = random_boxes(max(count // each, 1), seed=seed, smallest=0.02, largest=0.1)
    owner = torch.randint(len(centres), (count,), generator=source)
    size = (centres[:, 2:] - centres[:, :2]).repeat(1, 2)[owner]
    boxes = centres[owner] + 0.1 * size * torch.randn(count, 4, generator=source)
    return boxes, torch.randperm(count, generator=source).float() / count


def truth(batch, each, classes, seed=0):
    """Packed ground truth: boxes [T, 4], labels [T], offsets [B+1]."""
    boxes = random_boxes(batch * each, seed=seed).clamp(0, 1)
    labels = torch.randint(1, classes, (batch * each,), generator=generator(seed))
    return boxes, labels, torch.arange(0, batch * each + 1, each, dtype=torch.int32)


def priors(name="ssd300-coco"):
    return make_priors(name)


def random_heads(batch, classes, seed=0):
    """Logits and offsets of an untrained net."""
    source = generator(seed)
    logits = torch.randn(batch, 8732, classes, generator=source)
    return logits, torch.randn(batch, 8732, 4, generator=source)


def trained_heads(batch, classes, objects=8, seed=0):
    """Logits and offsets like a trained net's: background almost everywhere, objects at boxes."""
    logits, offsets = random_heads(batch, classes, seed)
    logits[..., 0] += 9
    anchors = priors()
    boxes, labels, _ = truth(batch, objects, classes, seed)
    near = box_iou(decode_boxes(offsets * 0.1, anchors), boxes.view(batch, objects, 4))
    best, which = near.max(dim=2)  # [B, P]
    label = labels.view(batch, objects).gather(1, which)
    confidence = (12 * (best - 0.2)).clamp(min=0)
    logits.scatter_add_(2, label[..., None], confidence[..., None])
    return logits, offsets * 0.1
