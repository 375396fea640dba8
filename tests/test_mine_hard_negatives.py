"""mine_hard_negatives against NumPy's lexsort: masks, exactly."""

import importlib

import numpy as np
import pytest
import torch
from cases import INTERPRETED, cannot, needs_native, places, whole
from torch import library

from ssdkern import mine_hard_negatives

SHAPES = [(1, 1), (3, 37), (2, 1000)] + ([] if INTERPRETED else [(4, 8732)])
shapes = pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "B{}P{}".format(*s))
REASON = cannot("mine_hard_negatives", "triton", "cpu")
NAN, INF = float("nan"), float("inf")


def by_hand(loss, positive, ratio):
    """The rule as NumPy says it: by loss, then by index."""
    loss, positive = loss.double().cpu().numpy(), positive.cpu().numpy()
    mask = np.zeros_like(positive)
    for image in range(len(loss)):
        candidates = np.flatnonzero(~positive[image] & (loss[image] != -INF))
        key = np.nan_to_num(loss[image, candidates], nan=INF, posinf=1e308)
        order = candidates[np.lexsort((candidates, -key))]
        mask[image, order[: int(ratio * positive[image].sum())]] = True
    return torch.from_numpy(mask)


def check(loss, positive, ratio, backend):
    before = loss.clone()
    got = mine_hard_negatives(loss, positive, neg_pos_ratio=ratio, backend=backend)
    assert got.dtype == torch.bool
    assert torch.equal(got.cpu(), by_hand(loss, positive, ratio))
    assert torch.equal(loss.nan_to_num(), before.nan_to_num())


@places("mine_hard_negatives")
@shapes
@pytest.mark.parametrize("ratio", [0, 1, 2.5, 3.0, 1000])
def test_matches_float64(ratio, shape, device, backend):
    loss = torch.rand(shape, dtype=torch.float64, device=device) * 5
    positive = torch.rand(shape, device=device) < 0.05
    for dtype in (torch.float64, torch.float32):
        check(loss.to(dtype), positive, ratio, backend)


@places("mine_hard_negatives")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_ties(dtype, device, backend):
    """A handful of values, both zeros among them: equal losses from the lowest prior on."""
    loss = (torch.randint(-2, 3, (6, 700), device=device) / 2).to(dtype)
    loss = torch.where(torch.rand_like(loss.float()) < 0.5, loss, -loss)  # -0.0 too
    positive = torch.rand(6, 700, device=device) < torch.tensor([0, 0.01, 0.05, 0.1, 0.2, 0.3])[
        :, None
    ].to(device)
    check(loss, positive, 3.0, backend)
    check(torch.zeros_like(loss), positive, 3.0, backend)


@places("mine_hard_negatives")
def test_edges(device, backend):
    loss = torch.rand(4, 65, device=device)
    none = torch.zeros(4, 65, dtype=torch.bool, device=device)
    assert not mine_hard_negatives(loss, none, backend=backend).any()
    assert not mine_hard_negatives(loss, ~none, backend=backend).any()
    half = none.clone()
    half[:, ::2] = True
    assert torch.equal(mine_hard_negatives(loss, half, backend=backend), ~half)
    for shape in ((0, 9), (3, 0)):
        got = mine_hard_negatives(loss.new_zeros(shape), none.new_zeros(shape), backend=backend)
        assert got.shape == shape
    strided = torch.rand(65, 4, device=device).T
    check(strided, torch.rand(65, 4, device=device).T < 0.1, 3.0, backend)


@places("mine_hard_negatives")
def test_odd_values(device, backend):
    """NaN ranks first and infinity next; -inf is no candidate, negative losses are."""
    loss = torch.randn(5, 90, device=device)
    loss[0, 5:9] = NAN
    loss[1, 3], loss[1, 40] = INF, NAN
    loss[2, 10:] = -INF
    loss[3] = -INF
    loss[4] = -loss[4].abs() - 1
    positive = torch.zeros(5, 90, dtype=torch.bool, device=device)
    positive[:, [0, 50, 89]] = True
    check(loss, positive, 3.0, backend)


@places("mine_hard_negatives")
def test_count_is_rounded_down(device, backend):
    """int(ratio * positives) in double: 2.7 * 10 is 27, 0.29 * 100 is 28."""
    positive = torch.arange(400, device=device)[None] < torch.tensor([[10], [100]], device=device)
    loss = torch.rand(2, 400, device=device)
    for ratio, counts in ((2.7, [27, 270]), (0.29, [2, 28])):
        got = mine_hard_negatives(loss, positive, neg_pos_ratio=ratio, backend=backend)
        assert got.sum(1).tolist() == counts


def test_rejects():
    loss, positive = torch.rand(2, 5), torch.zeros(2, 5, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"want loss \[B, P\], got \[5\]"):
        mine_hard_negatives(loss[0], positive[0])
    with pytest.raises(ValueError, match=r"want positive \[2, 5\], got \[2, 4\]"):
        mine_hard_negatives(loss, positive[:, :4])
    with pytest.raises(ValueError, match="want positive of dtype bool"):
        mine_hard_negatives(loss, positive.byte())
    with pytest.raises(ValueError, match="want loss of a floating-point dtype"):
        mine_hard_negatives(loss.long(), positive)
    for ratio in (-1, NAN, INF):
        with pytest.raises(ValueError, match="want 0 <= neg_pos_ratio <= "):
            mine_hard_negatives(loss, positive, neg_pos_ratio=ratio)


@pytest.mark.skipif(REASON is not None, reason=f"mine_hard_negatives: {REASON}")
def test_more_losses_than_registers_triton(monkeypatch):
    module = importlib.import_module("ssdkern.kernels.mine_hard_negatives")
    monkeypatch.setattr(module, "BLOCK", 32)
    monkeypatch.setattr(module, "held", lambda P: 64)
    check(torch.rand(3, 300), torch.rand(3, 300) < 0.1, 3.0, "triton")


@needs_native("mine_hard_negatives")
def test_opcheck(device):
    args = torch.rand(2, 40, device=device), torch.rand(2, 40, device=device) < 0.1, 3.0
    library.opcheck(torch.ops.ssdkern.mine_hard_negatives.default, args)


@places("mine_hard_negatives")
def test_compiles_whole(device, backend):
    def run(loss, positive):
        return mine_hard_negatives(loss, positive, neg_pos_ratio=2.0, backend=backend)

    compiled = whole(run)
    for count in (40, 77):
        args = torch.rand(2, count, device=device), torch.rand(2, count, device=device) < 0.1
        assert torch.equal(compiled(*args), run(*args))
