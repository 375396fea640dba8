"""Torchvision's lists of dicts in and out of a model: a constant number of calls for any batch."""

from itertools import accumulate

import torch

from ssdkern.ops._check import can_read, want


def send(tensor, device):
    """`tensor` on a device; on the way to a GPU nothing waits."""
    return tensor.to(device, non_blocking=tensor.device.type == "cpu")


def sides_of(sizes):
    """(width, height, width, height) of each (height, width), [B, 4]."""
    return torch.tensor([(*size[::-1], *size[::-1]) for size in sizes], dtype=torch.float32)


def list_detections(found, sides):
    """Detections as torchvision has them; the one read, of all counts, waits for a GPU.

    Args:
        found: `ssdkern.Detections` of B images.
        sides (Tensor[B, 4] or Tensor[4]): what the boxes are multiplied by.

    Returns:
        list[dict]: ``boxes``, ``scores`` and ``labels`` of each image, views of one memory.
    """
    boxes = found.boxes * sides.view(-1, 1, 4)
    columns = {"boxes": boxes, "scores": found.scores, "labels": found.labels}
    most = boxes.shape[1]
    parts = [size for count in found.count.tolist() for size in (count, most - count)]
    rows = zip(*(each.flatten(0, 1).split(parts)[::2] for each in columns.values()), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in rows]


def pack_targets(targets, sizes, num_classes, device=None):
    """Torchvision's targets as the packed ground truth of the ops.

    Args:
        targets: list of dicts with ``boxes`` Tensor[n, 4], xyxy pixels, and ``labels`` int64 [n].
        sizes: the (height, width) of each image in pixels.
        num_classes: background included.
        device: where the results go; None leaves them.

    Returns:
        tuple: gt_boxes [T, 4] float32 in fractions of the image, gt_labels [T] int64,
        gt_offsets [B + 1] int32.

    Raises:
        ValueError: wrong shapes or dtypes; on the CPU also labels outside 1..C-1 and boxes without
            area or not finite. Values on a GPU are not read.
    """
    if len(targets) != len(sizes):
        raise ValueError(f"want a target for each of {len(sizes)} images, got {len(targets)}")
    counts = []
    for index, target in enumerate(targets):
        boxes, labels = target["boxes"], target["labels"]
        counts.append(labels.numel())
        fits = boxes.shape == (counts[-1], 4) and labels.dim() == 1
        shapes = f"{tuple(boxes.shape)} and {tuple(labels.shape)}"
        want(fits, f"boxes [n, 4] and labels [n] for image {index}", shapes)
        want(labels.dtype == torch.int64, f"int64 labels for image {index}", labels.dtype)
    offsets = torch.tensor([0, *accumulate(counts)], dtype=torch.int32)
    if not targets:
        empty = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), offsets
        return tuple(each.to(device) for each in empty)
    boxes = torch.cat([target["boxes"] for target in targets])
    labels = torch.cat([target["labels"] for target in targets])
    known = (labels >= 1) & (labels < num_classes)
    _want_rows(known, labels, counts, f"labels 1..{num_classes - 1}")
    sound = (boxes[:, 2:] > boxes[:, :2]).all(1) & boxes.isfinite().all(1)
    _want_rows(sound, boxes, counts, "boxes with x1 < x2 and y1 < y2")
    sides = sides_of(sizes).repeat_interleave(torch.tensor(counts), 0)
    gt_boxes = send(boxes.float() / send(sides, boxes.device), device)
    return gt_boxes, send(labels, device), send(offsets, gt_boxes.device)


def _want_rows(fits, values, counts, what):
    """Raises for the first image with a row that does not fit, where looking costs nothing."""
    if not can_read(fits) or fits.all():
        return
    parts = zip(fits.split(counts), values.split(counts), strict=True)
    for index, (good, rows) in enumerate(parts):
        want(good.all(), f"{what} for image {index}", rows[~good].tolist())
