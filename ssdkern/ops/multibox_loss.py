"""The MultiBox training loss of SSD."""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from ssdkern._backend import resolve
from ssdkern.ops._check import (
    as_kernel_input,
    can_read,
    compute_dtype,
    want,
    want_float,
    want_number,
    want_packed,
    want_same_device,
    want_shape,
    want_variances,
)
from ssdkern.ops._dispatch import fake, kernel
from ssdkern.ops.encode_boxes import encode_boxes_torch
from ssdkern.ops.match_priors import match_priors
from ssdkern.ops.mine_hard_negatives import MAX_RATIO, mine_hard_negatives_torch


class MultiboxLoss(NamedTuple):
    """Both terms of the loss, divided by N, and the number of positives of the batch."""

    localization: torch.Tensor
    classification: torch.Tensor
    num_positives: torch.Tensor


def multibox_loss(
    logits,
    offsets,
    priors,
    gt_boxes,
    gt_labels,
    gt_offsets,
    *,
    matched=None,
    iou_threshold=0.5,
    rule="bipartite",
    neg_pos_ratio=3.0,
    variances=(0.1, 0.2),
    normalizer=None,
    backend=None,
):
    """SSD's loss: smooth L1 over matched priors, cross-entropy over them and hard negatives.

    Args:
        logits (Tensor[B, P, C]): class scores before softmax, class 0 the background. Half
            precision is computed in float32.
        offsets (Tensor[B, P, 4]): predicted ``(dx, dy, dw, dh)``.
        priors (Tensor[P, 4]): xyxy.
        gt_boxes (Tensor[T, 4]): xyxy, units of `priors`, the boxes of all images.
        gt_labels (Tensor[T]): int64, in 1..C-1.
        gt_offsets (Tensor[B+1]): int32; image b owns rows ``gt_offsets[b]:gt_offsets[b+1]``. Rows
            from ``gt_offsets[B]`` on are nobody's, but their labels are in range too.
        matched (Tensor[B, P]): row of `gt_boxes` for each prior, -1 for a negative, -2 for a prior
            that takes no part; None calls `match_priors` with `iou_threshold` and `rule`.
        neg_pos_ratio: negatives for each positive of an image; those of highest background loss,
            ``-log softmax[0]``, equal losses from the lowest prior on.
        variances: what the targets are divided by, ``(center, size)``.
        normalizer: number or 0-d tensor that replaces N, as for N over all ranks.
        backend: ``"native"``, ``"triton"``, ``"torch"``; None takes the first that can run.

    Returns:
        MultiboxLoss: two 0-d tensors, float64 for float64 logits, else float32: the sums over the
        batch divided by N = max(positives in the batch, 1); and the positives, 0-d int64. Without
        positives both terms are 0 and so are the gradients. Differentiable in `logits` and
        `offsets`. Deterministic.

    Raises:
        ValueError: a shape, dtype, device or number does not fit; on the CPU also where
            `gt_offsets` does not rise from 0 to T or less, or a label or match is out of range.
        RuntimeError: `backend` cannot run on this device.

    Source: Liu et al. 2016, eq. 1-3, as MultiBoxLoss of the authors' Caffe code with MAX_NEGATIVE
    and VALID normalisation.
    """
    want(logits.ndim == 3, "logits [B, P, C]", list(logits.shape))
    batch, num_priors, num_classes = logits.shape
    want_shape("priors", priors, num_priors, 4)
    want_shape("offsets", offsets, batch, num_priors, 4)
    want_float("logits", logits)
    want_float("offsets", offsets)
    want_packed(gt_boxes, gt_offsets)
    want_shape("gt_offsets", gt_offsets, batch + 1)
    want_shape("gt_labels", gt_labels, len(gt_boxes))
    want(gt_labels.dtype == torch.int64, "gt_labels of dtype int64", gt_labels.dtype)
    want_number("neg_pos_ratio", neg_pos_ratio, 0, MAX_RATIO)
    want_variances(variances)
    tensors = {"offsets": offsets, "priors": priors, "gt_boxes": gt_boxes, "gt_labels": gt_labels}
    want_same_device(logits=logits, **tensors, gt_offsets=gt_offsets, matched=matched)
    if can_read(gt_labels) and len(gt_labels):
        low, high = gt_labels.aminmax()
        fits = bool(low >= 1) and bool(high < num_classes)
        want(fits, f"gt_labels in 1..{num_classes - 1}", f"{low}..{high}")
    if matched is None:
        kwargs = {"iou_threshold": iou_threshold, "rule": rule, "backend": backend}
        matched = match_priors(priors, gt_boxes, gt_offsets, **kwargs)
    else:
        want_shape("matched", matched, batch, num_priors)
        integer = matched.dtype in (torch.int32, torch.int64)
        want(integer, "matched of dtype int32 or int64", matched.dtype)
        if can_read(matched) and matched.numel():
            low, high = matched.aminmax()
            fits = bool(low >= -2) and bool(high < len(gt_boxes))
            want(fits, f"matched in -2..{len(gt_boxes) - 1}", f"{low}..{high}")

    backend = resolve("multibox_loss", backend, logits.device)
    dtype = compute_dtype(logits, offsets)
    logits, offsets = as_kernel_input(logits, dtype), as_kernel_input(offsets, dtype)
    priors, gt_boxes = priors.detach().to(dtype), gt_boxes.detach().to(dtype)
    args = (logits, offsets, priors, gt_boxes, gt_labels, matched.to(torch.int32))
    run = multibox_loss_torch if backend == "torch" else _multibox_loss_kernel(backend)
    localization, classification, positives = run(*args, neg_pos_ratio, *variances)
    count = positives.clamp(min=1) if normalizer is None else normalizer
    return MultiboxLoss(localization / count, classification / count, positives)


def multibox_loss_torch(
    logits,
    offsets,
    priors,
    gt_boxes,
    gt_labels,
    matched,
    neg_pos_ratio,
    center_variance,
    size_variance,
):
    """The reference: both sums, not divided, and the number of positives."""
    logits, offsets = logits.to(priors.dtype), offsets.to(priors.dtype)
    positive = matched >= 0
    row = torch.where(positive, matched, len(gt_boxes))  # unmatched priors read a row of zeros
    label = F.pad(gt_labels, (0, 1))[row]
    cross_entropy = F.cross_entropy(logits.flatten(0, 1), label.flatten(), reduction="none")
    cross_entropy = cross_entropy.view_as(matched)  # the background's where prior is negative
    rank = cross_entropy.detach().masked_fill(matched == -2, -torch.inf)
    selected = positive | mine_hard_negatives_torch(rank, positive, neg_pos_ratio)
    classification = torch.where(selected, cross_entropy, 0).sum()

    target = F.pad(gt_boxes, (0, 0, 0, 1))[row]
    target = encode_boxes_torch(target, priors, center_variance, size_variance)
    residual = torch.where(positive[..., None], offsets - target, 0)
    localization = F.smooth_l1_loss(residual, torch.zeros_like(residual), reduction="sum")
    return localization, classification, positive.sum()


class _MultiboxLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, backend, *args):
        localization, classification, positives, selected = kernel("multibox_loss", backend)(*args)
        logits, offsets, priors, gt_boxes, gt_labels, matched, _, *ctx.variances = args
        ctx.save_for_backward(logits, offsets, priors, gt_boxes, gt_labels, matched, selected)
        ctx.backend = backend
        ctx.mark_non_differentiable(positives)
        return localization, classification, positives

    @staticmethod
    def backward(ctx, grad_localization, grad_classification, _):
        backward = kernel("multibox_loss_backward", ctx.backend)
        logits, offsets = ctx.saved_tensors[:2]
        grads = grad_localization, grad_classification
        grad_logits, grad_offsets = backward(*grads, *ctx.saved_tensors, *ctx.variances)
        rest = (None,) * 7
        return None, grad_logits.to(logits.dtype), grad_offsets.to(offsets.dtype), *rest


def _multibox_loss_kernel(backend):
    return lambda *args: _MultiboxLoss.apply(backend, *args)


@fake("multibox_loss")
def _(logits, offsets, priors, gt_boxes, gt_labels, matched, neg_pos_ratio, *variances):
    total = priors.new_empty(())
    count = priors.new_empty((), dtype=torch.int64)
    selected = matched.new_empty(matched.shape, dtype=torch.bool)
    return total, torch.empty_like(total), count, selected


@fake("multibox_loss_backward")
def _(grad_localization, grad_classification, logits, offsets, *rest):
    return logits.new_empty(logits.shape), offsets.new_empty(offsets.shape)
