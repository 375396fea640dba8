"""Which negatives an image trains on."""

import torch

from ssdkern._backend import resolve
from ssdkern.ops._check import (
    as_kernel_input,
    compute_dtype,
    want,
    want_float,
    want_number,
    want_same_device,
    want_shape,
)
from ssdkern.ops._dispatch import fake, kernel
from ssdkern.ops.nms import ranking

MAX_RATIO = 1e6


@torch.no_grad()
def mine_hard_negatives(loss, positive, *, neg_pos_ratio=3.0, backend=None):
    """Choose the hardest negatives of each image, a fixed number for each positive.

    Args:
        loss (Tensor[B, P]): what to rank by, floating point. NaN counts as highest; a prior with
            loss -inf is no candidate.
        positive (Tensor[B, P]): bool; all other priors are negatives.
        neg_pos_ratio: negatives for each positive, in [0, 1e6].
        backend: ``"native"``, ``"triton"``, ``"torch"``; None takes the first that can run.

    Returns:
        Tensor[B, P]: bool; in image b the ``min(int(neg_pos_ratio * positives), negatives)``
        negatives of highest loss, equal losses from the lowest prior on. No positives, no
        negatives. Equal on every backend.

    Raises:
        ValueError: a shape, dtype, device or the ratio does not fit.
        RuntimeError: `backend` cannot run on this device.

    Source: MAX_NEGATIVE of the authors' Caffe code, which leaves the order of ties open.
    """
    want(loss.ndim == 2, "loss [B, P]", list(loss.shape))
    want_float("loss", loss)
    want_shape("positive", positive, *loss.shape)
    want(positive.dtype == torch.bool, "positive of dtype bool", positive.dtype)
    want_number("neg_pos_ratio", neg_pos_ratio, 0, MAX_RATIO)
    want_same_device(loss=loss, positive=positive)
    backend = resolve("mine_hard_negatives", backend, loss.device)
    if backend == "torch":
        return mine_hard_negatives_torch(loss, positive, neg_pos_ratio)
    loss = as_kernel_input(loss, compute_dtype(loss))
    return kernel("mine_hard_negatives", backend)(loss, positive, neg_pos_ratio)


def mine_hard_negatives_torch(loss, positive, neg_pos_ratio):
    """The reference: one stable sort."""
    loss = loss.masked_fill(positive, -torch.inf)
    order = ranking(loss)
    wanted = (positive.sum(dim=1, keepdim=True).double() * neg_pos_ratio).long()
    rank = torch.arange(loss.shape[1], device=loss.device)
    hardest = torch.zeros_like(positive).scatter(1, order, rank < wanted)
    return hardest & (loss != -torch.inf)


@fake("mine_hard_negatives")
def _(loss, positive, neg_pos_ratio):
    return positive.new_empty(positive.shape)
