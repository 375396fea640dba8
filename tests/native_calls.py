"""Direct calls of the native CPU ops, `torch.ops.ssdkern.*`."""

import math

import pytest
import torch
from cases import cannot, random_boxes, scene

from ssdkern.ops.match_priors import match_priors_torch
from ssdkern.ops.mine_hard_negatives import mine_hard_negatives_torch

FLOATS = torch.float32, torch.float64, torch.float16, torch.bfloat16
CODING = (0.1, 0.2)
LIMITS = (0.05, 0.45, 60, 40)
SMALL = (2, 37, 5, 3), 50


def run(op, *args):
    """The outputs of an op, as a tuple."""
    out = getattr(torch.ops.ssdkern, op)(*args)
    return out if isinstance(out, tuple) else (out,)


def calls(size, boxes):
    """Arguments of each op: of a scene of `size`, see `cases`, or of that many loose `boxes`."""
    torch.manual_seed(0)
    batch, num_priors, _, _ = size
    s = scene(size)
    rows = random_boxes(batch * 19).view(batch, 19, 4)
    pairs = random_boxes(batch * num_priors).view(batch, num_priors, 4)
    grad, loss = torch.randn_like(pairs), torch.rand(batch, num_priors)
    matched = match_priors_torch(s.priors, s.gt_boxes, s.gt_offsets, 0.5, True)
    matched[:, ::7] = torch.where(matched[:, ::7] < 0, -2, matched[:, ::7])
    positive = matched >= 0
    selected = positive | mine_hard_negatives_torch(loss, positive, 3.0)
    targets = s.logits, s.offsets, s.priors, s.gt_boxes, s.gt_labels, matched
    weights = torch.tensor(0.7), torch.tensor(1.3)
    loose, scores = random_boxes(boxes, 0.01, 0.1), torch.rand(boxes)
    return {
        "box_iou": (rows, pairs),
        "box_iou_backward": (torch.rand(batch, 19, num_priors), rows, pairs),
        "encode_boxes": (pairs, s.priors, *CODING),
        "encode_boxes_backward": (grad, pairs, s.priors, *CODING),
        "decode_boxes": (s.offsets, s.priors, *CODING, 0.3),
        "decode_boxes_backward": (grad, s.offsets, s.priors, *CODING, 0.3),
        "match_priors": (s.priors, s.gt_boxes, s.gt_offsets, 0.4, True),
        "mine_hard_negatives": (loss, positive, 3.0),
        "multibox_loss": (*targets, 3.0, *CODING),
        "multibox_loss_backward": (*weights, *targets, selected, *CODING),
        "nms": (loose, scores, 0.4),
        "batched_nms": (loose, scores, torch.randint(0, 40, (boxes,)), 0.4),
        "multiclass_nms": (pairs, s.logits.softmax(-1), *LIMITS),
        "detect": (s.logits, s.offsets, s.priors, *LIMITS, *CODING, math.inf, False),
    }


OPS = list(calls(*SMALL))


def has_native(op):
    return cannot(op, "native", "cpu") is None


def needs_op(op, *values):
    """A parameter of a test that runs where the native `op` is, or skips it with the reason."""
    reason = cannot(op, "native", "cpu")
    mark = pytest.mark.skipif(reason is not None, reason=f"{op}: {reason}")
    return pytest.param(op, *values, marks=mark)


native_ops = pytest.mark.parametrize("op", [needs_op(op) for op in OPS])


def change(args, change_tensor):
    """The arguments with each tensor replaced by `change_tensor(tensor)`."""
    return [change_tensor(a) if isinstance(a, torch.Tensor) else a for a in args]


def cast(args, dtype):
    """The arguments with floating-point tensors of `dtype`."""
    return change(args, lambda t: t.to(dtype) if t.is_floating_point() else t)


def strided(tensor):
    """Every second number of a larger tensor, off its beginning."""
    wide = torch.full((*tensor.shape, 2), 99, dtype=torch.float64).to(tensor.dtype)
    wide[..., 1] = tensor
    return wide[..., 1]


def reversed_dimensions(tensor):
    order = tuple(range(tensor.ndim))[::-1]
    return tensor.permute(order).contiguous().permute(order)


def shifted(tensor):
    """Beginning one number into its memory."""
    wide = torch.zeros(tensor.numel() + 1, dtype=tensor.dtype)
    wide[1:] = tensor.flatten()
    return wide[1:].view(tensor.shape)


LAYOUTS = {"strided": strided, "reversed": reversed_dimensions, "shifted": shifted}
