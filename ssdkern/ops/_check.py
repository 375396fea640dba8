"""Argument checks of the ops. None of them reads a value off a GPU."""

import torch

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def want(ok, what, got):
    """Raises the library's one form of argument error."""
    if not ok:
        raise ValueError(f"want {what}, got {got}")


def want_shape(name, tensor, *shape):
    """Checks a shape. Only a failure makes the text: a graph keeps a size that went into one."""
    if list(tensor.shape) != list(shape):
        want(False, f"{name} {list(shape)}", list(tensor.shape))


def want_boxes(name, boxes, shape="[..., 4]", ndim=None):
    """Checks that `boxes` holds four numbers a row, in a tensor of `ndim` dimensions."""
    fits = boxes.ndim >= 1 and boxes.shape[-1] == 4 and ndim in (None, boxes.ndim)
    want(fits, f"{name} {shape}", list(boxes.shape))


def want_float(name, tensor):
    want(tensor.dtype in FLOATS, f"{name} of a floating-point dtype", tensor.dtype)


def want_same_device(**tensors):
    """Checks that the named tensors live on one device; None is left out."""
    if len({t.device for t in tensors.values() if t is not None}) > 1:
        devices = {name: str(t.device) for name, t in tensors.items() if t is not None}
        want(False, "all tensors on one device", devices)


def want_number(name, value, low, high=float("inf")):
    want(low <= value <= high, f"{low} <= {name} <= {high}", value)


def want_variances(variances):
    fits = len(variances) == 2 and variances[0] > 0 and variances[1] > 0
    want(fits, "variances (center, size), both > 0", variances)


def can_read(tensor):
    """Whether looking at the values of `tensor` costs nothing: on the CPU, outside of a graph."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def want_packed(gt_boxes, gt_offsets):
    """Checks packed ground truth: row ranges `gt_offsets` [B+1] into `gt_boxes` [T, 4].

    Rows from the last of `gt_offsets` on are free: a buffer may be larger than what is in it.
    """
    want_boxes("gt_boxes", gt_boxes, "[T, 4]", ndim=2)
    rows = gt_offsets.ndim == 1 and len(gt_offsets) >= 1
    want(rows, "gt_offsets [B+1]", list(gt_offsets.shape))
    integer = gt_offsets.dtype in (torch.int32, torch.int64)
    want(integer, "gt_offsets of dtype int32 or int64", gt_offsets.dtype)
    if can_read(gt_offsets):
        ends = bool(gt_offsets[0] == 0) and bool(gt_offsets[-1] <= len(gt_boxes))
        rising = bool((gt_offsets[1:] >= gt_offsets[:-1]).all())
        what = f"gt_offsets rising from 0 to at most the {len(gt_boxes)} rows of gt_boxes"
        want(ends and rising, what, gt_offsets)


def compute_dtype(*tensors):
    """float64 where any of the tensors is, else float32: what the ops compute in."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def as_kernel_input(tensor, dtype):
    """Half precision stays as it is for a float32 kernel, which converts as it loads."""
    if tensor.dtype in (dtype, torch.float16, torch.bfloat16) and dtype == torch.float32:
        return tensor
    return tensor.to(dtype)
