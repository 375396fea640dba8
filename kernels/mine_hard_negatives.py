"""Hard-negative mining: one program selects for each image, nothing is sorted."""

import torch
import triton
import triton.language as tl

from ssdkern.kernels.launcher import launcher
from ssdkern.kernels.select import kth_highest, load_keys, lowest_key, picked

BLOCK = 4096


def held(P):
    """How many losses of an image stay in registers."""
    return max(BLOCK, min(16384, triton.next_power_of_2(P)))


@triton.jit
def negatives_to_pick(positives, candidates, neg_pos_ratio):
    """min(int(ratio * positives), candidates), the product in float64 as in the reference."""
    wanted = positives.to(tl.float64) * neg_pos_ratio
    return tl.minimum(wanted, candidates.to(tl.float64)).to(tl.int32)


@triton.jit
def _mine_hard_negatives_kernel(
    loss,
    positive,
    out,
    P,
    neg_pos_ratio: tl.float64,
    BLOCK: tl.constexpr,
    HELD: tl.constexpr,
):
    first = tl.program_id(0).to(tl.int64) * P
    loss, positive, out = loss + first, positive + first, out + first
    lowest = lowest_key(tl.full([], 0.0, loss.dtype.element_ty))
    positives, candidates = tl.zeros([BLOCK], tl.int32), tl.zeros([BLOCK], tl.int32)
    for start in range(0, P, BLOCK):
        i = start + tl.arange(0, BLOCK)
        positives += (tl.load(positive + i, mask=i < P, other=0) != 0).to(tl.int32)
        candidates += (load_keys(loss, positive, i, P, True) != lowest).to(tl.int32)
    k = negatives_to_pick(tl.sum(positives), tl.sum(candidates), neg_pos_ratio)
    least, ties = ~lowest, k
    if k > 0:
        least, ties = kth_highest(loss, positive, P, k, True, BLOCK, HELD)
    seen = tl.full([], 0, tl.int32)
    for start in range(0, P, BLOCK):
        i = start + tl.arange(0, BLOCK)
        pick, seen = picked(load_keys(loss, positive, i, P, True), least, ties, seen)
        tl.store(out + i, pick, mask=i < P)


def _fake(loss, positive, neg_pos_ratio):
    return torch.empty_like(positive)


@launcher(_fake)
def mine_hard_negatives_triton(
    loss: torch.Tensor, positive: torch.Tensor, neg_pos_ratio: float
) -> torch.Tensor:
    out = torch.empty_like(positive)
    images, P = loss.shape
    if out.numel():
        args = loss, positive, out, P, neg_pos_ratio
        _mine_hard_negatives_kernel[(images,)](*args, BLOCK=BLOCK, HELD=held(P), num_warps=16)
    return out
