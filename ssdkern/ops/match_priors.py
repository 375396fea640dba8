"""Which ground truth each prior stands for."""

import torch

from ssdkern._backend import resolve
from ssdkern.ops._check import (
    compute_dtype,
    want,
    want_boxes,
    want_number,
    want_packed,
    want_same_device,
)
from ssdkern.ops._dispatch import fake, kernel
from ssdkern.ops._loop import repeat_while
from ssdkern.ops.box_iou import box_iou_torch

RULES = ("bipartite", "argmax")
MIN_IOU = 1e-6  # Caffe keeps no pair below


@torch.no_grad()
def match_priors(
    priors, gt_boxes, gt_offsets, *, iou_threshold=0.5, rule="bipartite", backend=None
):
    """Match the priors to the ground truth of each image of a batch.

    ``"bipartite"`` is the Caffe original's rule: over all pairs of an image with IoU > 1e-6, take
    the pair of highest IoU (then lowest prior, then lowest row), match it, remove both, repeat.
    Then each prior that is left takes its ground truth of highest IoU (then lowest row) where
    that is >= `iou_threshold`. Ground truth without overlap stays unmatched.

    ``"argmax"`` is torchvision's `SSDMatcher`: each prior takes its ground truth of highest IoU
    where that is >= `iou_threshold`; then each ground truth claims its prior of highest IoU, the
    last row winning a prior that several claim. Ground truth without overlap claims prior 0.

    Args:
        priors (Tensor[P, 4]): xyxy, any dtype.
        gt_boxes (Tensor[T, 4]): xyxy, units of `priors`, the boxes of all images.
        gt_offsets (Tensor[B+1]): int32; image b owns rows ``gt_offsets[b]:gt_offsets[b+1]``. Rows
            from ``gt_offsets[B]`` on are nobody's, so that buffers of fixed capacity serve.
        iou_threshold: in [0, 1], compared in the dtype of the boxes.
        rule: ``"bipartite"`` or ``"argmax"``.
        backend: ``"native"``, ``"triton"``, ``"torch"``; None takes the first that can run.

    Returns:
        Tensor[B, P]: int32, row of `gt_boxes`, or -1. A pair whose IoU is NaN never matches
        (torchvision lets it match everything). Equal on every backend.

    Raises:
        ValueError: a shape, dtype, device, the threshold or the rule does not fit; on the CPU also
            where `gt_offsets` does not rise from 0 to T or less.
        RuntimeError: `backend` cannot run on this device.

    Source: MatchBBox of the authors' Caffe code; torchvision 0.29 `SSDMatcher`.
    """
    want_boxes("priors", priors, "[P, 4]", ndim=2)
    want_packed(gt_boxes, gt_offsets)
    want_number("iou_threshold", iou_threshold, 0, 1)
    want(rule in RULES, f"rule in {RULES}", repr(rule))
    want_same_device(priors=priors, gt_boxes=gt_boxes, gt_offsets=gt_offsets)
    backend = resolve("match_priors", backend, priors.device)
    dtype = compute_dtype(priors, gt_boxes)
    tensors = priors.to(dtype), gt_boxes.to(dtype), gt_offsets.to(torch.int32)
    run = match_priors_torch if backend == "torch" else kernel("match_priors", backend)
    return run(*tensors, iou_threshold, rule == "bipartite")


def match_priors_torch(priors, gt_boxes, gt_offsets, iou_threshold, bipartite):
    """The reference: every row of ground truth against every prior, [T, P]."""
    rows = torch.arange(len(gt_boxes), dtype=torch.int32, device=priors.device)
    none = torch.full_like(gt_offsets[1:, None], -1).repeat(1, len(priors))  # [B, P]
    if len(gt_boxes) == 0 or none.numel() == 0:
        return none
    image = torch.bucketize(rows, gt_offsets[1:], right=True)  # [T]
    iou = box_iou_torch(gt_boxes, priors)
    near = iou > MIN_IOU if bipartite else iou >= 0  # NaN is not
    owned = image < len(none)
    iou = torch.where(near & owned[:, None], iou, -1)
    image = torch.where(owned, image, 0)

    of_image = image[:, None].expand_as(iou)
    best = iou.new_full(none.shape, -1).scatter_reduce(0, of_image, iou, "amax")
    row = torch.where(iou == best[image], rows[:, None], len(rows))
    row = torch.full_like(none, len(rows)).scatter_reduce(0, of_image, row, "amin")
    matched = torch.where((best >= iou_threshold) & (best >= 0), row, none)

    claimed = (_claim_greedily if bipartite else _claim_best)(iou, rows, image, none)
    return torch.where(claimed >= 0, claimed, matched)


def _best(rows):
    """The highest number of each row, no NaN, and the first place where it is."""
    value = rows.amax(dim=1)
    places = torch.arange(rows.shape[1], device=rows.device)
    # not max(dim=1), whose index inductor (torch 2.11) gets wrong in vector code
    return value, torch.where(rows == value[:, None], places, rows.shape[1] - 1).amin(dim=1)


def _claim_best(iou, rows, image, none):
    """Each row claims its best prior, the last row winning: the row that holds [B, P], or -1."""
    value, prior = _best(iou)
    slot = image * iou.shape[1] + prior
    claim = torch.where(value >= 0, rows, -1)
    return none.flatten().scatter_reduce(0, slot, claim, "amax").view_as(none)


def _claim_greedily(iou, rows, image, none):
    """Greedy bipartite matching of all images at once: the row that holds [B, P], or -1.

    Rows propose to their best prior, a prior holds on to its best proposer, and a row that lost
    its prior proposes again. As both sides rank pairs alike, by IoU and then index, this ends in
    the one stable matching, which is what taking the best pair of the matrix again and again gives.
    """
    T, P = iou.shape
    value, prior = _best(iou)
    slot = image * P + prior
    held = iou.new_full((none.numel(),), -1).scatter_reduce(0, slot, value, "amax")
    bid = torch.where((value > 0) & (value == held[slot]), rows, T)
    owner = rows.new_full((none.numel(),), T).scatter_reduce(0, slot, bid, "amin")
    free = torch.cat(((value > 0) & (owner[slot] != rows), torch.zeros_like(value[:1] > 0)))

    def any_free(held, owner, free):
        return free[:T].any()

    def propose(held, owner, free):
        # in every image the lowest free row proposes; T stands for no row
        row = torch.where(free[:T], rows, T)
        row = row.new_full((len(none),), T).scatter_reduce(0, image, row, "amin")[:, None]
        offer = iou[row[:, 0].clamp(max=T - 1)]  # [B, P]
        wins = (offer > held) | ((offer == held) & (row < owner))
        offer, prior = (x[:, None] for x in _best(torch.where(wins & (row < T), offer, -1)))
        loser = owner.gather(1, prior)
        held = held.scatter(1, prior, torch.where(offer > 0, offer, held.gather(1, prior)))
        owner = owner.scatter(1, prior, torch.where(offer > 0, row, loser))
        free = free.scatter(0, row[:, 0].long(), False)
        freed = torch.where(offer > 0, loser, T)
        return held, owner, free.scatter(0, freed[:, 0].long(), True)

    state = held.view_as(none), owner.view_as(none), free
    _, owner, _ = repeat_while(any_free, propose, state)
    return torch.where(owner < T, owner, none)


@fake("match_priors")
def _(priors, gt_boxes, gt_offsets, iou_threshold, bipartite):
    return gt_offsets.new_empty(gt_offsets.shape[0] - 1, priors.shape[0])
