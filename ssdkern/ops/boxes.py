"""Small box functions, as torchvision's: plain PyTorch, the same on every device."""

import torch

from ssdkern.ops._check import want, want_boxes

FORMATS = ("xyxy", "xywh", "cxcywh")


def _wide(tensor):
    """A dtype in which products of coordinates do not overflow, as torchvision chooses it."""
    if tensor.is_floating_point():
        return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()
    return tensor if tensor.dtype in (torch.int32, torch.int64) else tensor.int()


def box_area(boxes, fmt="xyxy"):
    """Area of each box.

    Args:
        boxes (Tensor[..., 4]): boxes in `fmt`, any dtype.
        fmt: ``"xyxy"``, ``"xywh"`` or ``"cxcywh"``.

    Returns:
        Tensor[...]: float32 for half precision, int32 for short integers, else the dtype of
        `boxes`. Negative where one side is inverted. Differentiable.

    Raises:
        ValueError: the last dimension is not 4, or `fmt` is unknown.
    """
    want_boxes("boxes", boxes)
    want(fmt in FORMATS, f"fmt in {FORMATS}", repr(fmt))
    x, y, right, bottom = _wide(boxes).unbind(-1)
    return (right - x) * (bottom - y) if fmt == "xyxy" else right * bottom


def box_convert(boxes, in_fmt, out_fmt):
    """Boxes in another format.

    Args:
        boxes (Tensor[..., 4]): boxes in `in_fmt`, any dtype.
        in_fmt, out_fmt: ``"xyxy"``, ``"xywh"`` or ``"cxcywh"``.

    Returns:
        Tensor[..., 4]: new memory even where the formats agree. Integers become float32 where a
        centre is involved. Differentiable.

    Raises:
        ValueError: the last dimension is not 4, or a format is unknown.
    """
    want_boxes("boxes", boxes)
    want(in_fmt in FORMATS, f"in_fmt in {FORMATS}", repr(in_fmt))
    want(out_fmt in FORMATS, f"out_fmt in {FORMATS}", repr(out_fmt))
    if in_fmt == out_fmt:
        return boxes.clone()
    x1, y1, x2, y2 = boxes.unbind(-1)
    if in_fmt == "xywh":
        x2, y2 = x1 + x2, y1 + y2
    elif in_fmt == "cxcywh":
        cx, cy, w, h = x1, y1, x2, y2
        x1, y1, x2, y2 = cx - 0.5 * w, cy - 0.5 * h, cx + 0.5 * w, cy + 0.5 * h
    if out_fmt == "xywh":
        x2, y2 = x2 - x1, y2 - y1
    elif out_fmt == "cxcywh":
        x1, y1, x2, y2 = (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1
    return torch.stack((x1, y1, x2, y2), dim=-1)


def clip_boxes_to_image(boxes, size):
    """Boxes moved inside an image.

    Args:
        boxes (Tensor[..., 4]): xyxy, any dtype.
        size: ``(height, width)`` in the units of `boxes`.

    Returns:
        Tensor[..., 4]: the dtype of `boxes`; NaN stays NaN. Differentiable.
    """
    want_boxes("boxes", boxes)
    height, width = size
    x, y = boxes[..., 0::2].clamp(min=0, max=width), boxes[..., 1::2].clamp(min=0, max=height)
    return torch.stack((x, y), dim=-1).reshape(boxes.shape)


def remove_small_boxes(boxes, min_size):
    """Indices of the boxes both sides of which are at least `min_size`.

    Args:
        boxes (Tensor[N, 4]): xyxy, any dtype. A NaN coordinate drops the box.
        min_size: in the units of `boxes`.

    Returns:
        Tensor[K]: int64, rising. Its size depends on the data, so this synchronises on a GPU.
    """
    want_boxes("boxes", boxes, "[N, 4]", ndim=2)
    sides = boxes[:, 2:] - boxes[:, :2]
    return (sides >= min_size).all(dim=1).nonzero().squeeze(1)


def generalized_box_iou(boxes1, boxes2):
    """Generalised IoU of every pair of boxes.

    Args:
        boxes1 (Tensor[..., N, 4]), boxes2 (Tensor[..., M, 4]): xyxy, any dtype; leading
            dimensions broadcast.

    Returns:
        Tensor[..., N, M]: in [-1, 1] for boxes that are not inverted. Differentiable.

    Source: Rezatofighi et al. 2019, algorithm 1, computed in torchvision's order.
    """
    want_boxes("boxes1", boxes1, "[..., N, 4]")
    want_boxes("boxes2", boxes2, "[..., M, 4]")
    top_left1, bottom_right1 = boxes1[..., :, None, :2], boxes1[..., :, None, 2:]
    top_left2, bottom_right2 = boxes2[..., None, :, :2], boxes2[..., None, :, 2:]
    inner = torch.minimum(bottom_right1, bottom_right2) - torch.maximum(top_left1, top_left2)
    outer = torch.maximum(bottom_right1, bottom_right2) - torch.minimum(top_left1, top_left2)
    inner, outer = _wide(inner).clamp(min=0), _wide(outer).clamp(min=0)  # [..., N, M, 2]
    inter, hull = inner[..., 0] * inner[..., 1], outer[..., 0] * outer[..., 1]
    union = box_area(boxes1)[..., :, None] + box_area(boxes2)[..., None, :] - inter
    return inter / union - (hull - union) / hull
