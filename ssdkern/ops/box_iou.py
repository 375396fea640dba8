"""Intersection over union of every pair of boxes."""

import math

import torch

from ssdkern._backend import resolve
from ssdkern.ops._check import compute_dtype, want, want_same_device
from ssdkern.ops._dispatch import fake, kernel
from ssdkern.ops.boxes import FORMATS, box_convert


def box_iou(boxes1, boxes2, fmt="xyxy", *, backend=None):
    """Intersection over union of every pair of boxes, torchvision's bit for bit on float32 xyxy.

    Args:
        boxes1 (Tensor[..., N, 4]), boxes2 (Tensor[..., M, 4]): boxes in `fmt`, any dtype. Leading
            dimensions broadcast.
        fmt: ``"xyxy"``, ``"xywh"`` or ``"cxcywh"``; the last two are turned into corners first.
        backend: ``"native"``, ``"triton"``, ``"torch"``; None takes the first that can run.

    Returns:
        Tensor[..., N, M]: float64 where either input is, else float32; half precision and integers
        are computed in float32. 0/0, as between two boxes without area, is NaN, and so is every
        pair with a NaN. Differentiable in both. Deterministic.

    Raises:
        ValueError: a shape, `fmt` or a device does not fit.
        RuntimeError: `backend` cannot run on this device.
    """
    want(boxes1.ndim >= 2 and boxes1.shape[-1] == 4, "boxes1 [..., N, 4]", list(boxes1.shape))
    want(boxes2.ndim >= 2 and boxes2.shape[-1] == 4, "boxes2 [..., M, 4]", list(boxes2.shape))
    want(fmt in FORMATS, f"fmt in {FORMATS}", repr(fmt))
    want_same_device(boxes1=boxes1, boxes2=boxes2)
    backend = resolve("box_iou", backend, boxes1.device)
    dtype = compute_dtype(boxes1, boxes2)
    boxes1, boxes2 = boxes1.to(dtype), boxes2.to(dtype)
    if fmt != "xyxy":
        boxes1, boxes2 = box_convert(boxes1, fmt, "xyxy"), box_convert(boxes2, fmt, "xyxy")
    if backend == "torch":
        return box_iou_torch(boxes1, boxes2)
    lead = torch.broadcast_shapes(boxes1.shape[:-2], boxes2.shape[:-2])
    n, m = boxes1.shape[-2], boxes2.shape[-2]
    boxes1 = boxes1.expand(*lead, n, 4).reshape(math.prod(lead), n, 4)
    boxes2 = boxes2.expand(*lead, m, 4).reshape(math.prod(lead), m, 4)
    return _BoxIou.apply(boxes1, boxes2, backend).reshape(*lead, n, m)


def box_iou_torch(boxes1, boxes2):
    """The reference: float xyxy boxes [..., N, 4] and [..., M, 4] to [..., N, M]."""
    x1, y1, x2, y2 = boxes1.unsqueeze(-2).unbind(-1)  # [..., N, 1]
    u1, v1, u2, v2 = boxes2.unsqueeze(-3).unbind(-1)  # [..., 1, M]
    width = (torch.minimum(x2, u2) - torch.maximum(x1, u1)).relu()
    height = (torch.minimum(y2, v2) - torch.maximum(y1, v1)).relu()
    inter = width * height
    return inter / ((x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1) - inter)


class _BoxIou(torch.autograd.Function):
    @staticmethod
    def forward(ctx, boxes1, boxes2, backend):
        ctx.save_for_backward(boxes1, boxes2)
        ctx.backend = backend
        return kernel("box_iou", backend)(boxes1, boxes2)

    @staticmethod
    def backward(ctx, grad):
        boxes1, boxes2 = ctx.saved_tensors
        grad1, grad2 = kernel("box_iou_backward", ctx.backend)(grad, boxes1, boxes2)
        return grad1, grad2, None


@fake("box_iou")
def _(boxes1, boxes2):
    return boxes1.new_empty(boxes1.shape[0], boxes1.shape[1], boxes2.shape[1])


@fake("box_iou_backward")
def _(grad, boxes1, boxes2):
    return boxes1.new_empty(boxes1.shape), boxes2.new_empty(boxes2.shape)
