"""Random and awkward inputs of matching, mining and the loss against the reference."""

import torch
import torch.nn.functional as F
from cases import assert_same, needs_native
from fuzz_inputs import INF, NAN, Inputs, assert_values, both, counts, fuzz
from hypothesis import strategies as st

from ssdkern.ops.encode_boxes import encode_boxes_torch

many = st.sampled_from([127, 128, 129, 191, 1023, 1025]) | counts  # about groups of 64 priors
truths = st.integers(0, 5) | st.sampled_from([0, 16, 17, 64, 300])
RATIOS = 3.0, 0.0, 0.1, 1.0, 2.5, 7.0, 1e6


@needs_native("match_priors")
@fuzz(150)
def test_match_priors(device, data):
    inputs = Inputs(data.draw)
    priors = inputs.boxes(data.draw(many))
    each = data.draw(st.lists(truths, max_size=3))
    gt_boxes = inputs.boxes(sum(each))
    if len(priors) and sum(each) and inputs.one_of(False, True):  # truth that equals priors
        gt_boxes = priors[inputs.randint(0, len(priors), (sum(each),))]
    gt_offsets = torch.tensor([0, *each]).cumsum(0).to(inputs.one_of(torch.int32, torch.int64))
    kwargs = {
        "iou_threshold": inputs.one_of(0.5, 0.0, 0.25, 1 / 3, 0.45, 1.0, 1e-7),
        "rule": inputs.one_of("bipartite", "argmax"),
    }
    tensors = inputs.floats(priors), inputs.floats(gt_boxes), inputs.lay_out(gt_offsets)
    assert_same(*both("match_priors", device, *tensors, **kwargs))


@needs_native("mine_hard_negatives")
@fuzz(150)
def test_mine_hard_negatives(device, data):
    inputs = Inputs(data.draw)
    grid = inputs.one_of(0, 1, 2, 4), data.draw(many)
    loss, positive = inputs.scores(*grid), inputs.rand(*grid) < inputs.one_of(0, 0.05, 0.3, 1)
    loss = loss * inputs.one_of(1, -1, 1e-40, 1e30)
    tensors = inputs.floats(loss), inputs.lay_out(positive)
    assert_same(
        *both("mine_hard_negatives", device, *tensors, neg_pos_ratio=inputs.one_of(*RATIOS))
    )


def check_mined(background, logits, matched, selected, ratio):
    """`selected` are the positives and the negatives that the rule wants, but for near ties."""
    assert_same(selected[matched >= 0], torch.ones_like(selected[matched >= 0]))
    assert not selected[matched == -2].any()
    for image in range(len(matched)):
        negative = matched[image] == -1
        loss, mined = background[image, negative], selected[image, negative]
        wanted = int(ratio * (matched[image] >= 0).sum())
        assert mined.sum() == min(wanted, len(loss))
        if mined.any() and not mined.all():
            slack = 4e-6 * (1 + loss.max())
            assert loss[mined].min() >= loss[~mined].max() - slack
        equal = logits[image, negative].unique(dim=0, return_inverse=True)[1]
        for row in equal.unique():  # of equal rows the lowest priors
            assert (mined[equal == row].int().diff() <= 0).all()


@needs_native("multibox_loss")
@fuzz(120)
def test_multibox_loss(device, data):
    inputs = Inputs(data.draw)
    batch, count, classes = (
        inputs.one_of(0, 1, 2, 3),
        data.draw(counts),
        inputs.one_of(2, 5, 17, 33),
    )
    size = inputs.one_of(1.0, 4.0, 30.0)
    rows = size * inputs.randn(inputs.one_of(2, 7, 10**4), classes)
    logits = rows[inputs.randint(0, len(rows), (batch, count))]
    offsets = 3 * inputs.randn(batch, count, 4)
    sane = {"kinds": ("random",), "scales": (1.0,)}
    priors, gt_boxes = inputs.boxes(count, **sane), inputs.boxes(7, **sane)
    gt_labels = inputs.randint(1, classes, (7,))
    matched = inputs.randint(0, 7, (batch, count))
    other = torch.where(inputs.rand(batch, count) < 0.1, -2, -1)
    share = inputs.one_of(0.0, 0.05, 0.3, 1.0)
    matched = torch.where(inputs.rand(batch, count) < share, matched, other).int()
    ratio, variances = inputs.one_of(*RATIOS), (0.1, 0.2)

    logits, offsets = inputs.floats(logits), inputs.floats(offsets)
    targets = [t.to(inputs.compute) for t in (priors, gt_boxes)]
    args = [logits, offsets, *targets, gt_labels, inputs.lay_out(matched)]
    args = [t.to(device) for t in args]
    out = torch.ops.ssdkern.multibox_loss(*args, ratio, *variances)
    localization, classification, positives, selected = (t.cpu() for t in out)
    wide, positive = logits.double(), matched >= 0
    assert positives == positive.sum()
    sums = wide.logsumexp(-1)
    check_mined(sums - wide[..., 0], wide, matched, selected, ratio)

    label = torch.where(positive, gt_labels[matched.clamp(min=0)], 0)
    chosen = wide.gather(-1, label[..., None])[..., 0]
    want = ((sums - chosen) * selected).sum()
    assert_values(classification, want, ((1 + sums - chosen) * selected).sum())
    target = encode_boxes_torch(targets[1][matched.clamp(min=0)], targets[0], *variances).double()
    off = torch.where(positive[..., None], offsets.double() - target, 0)
    want = F.smooth_l1_loss(off, torch.zeros_like(off), reduction="sum")
    terms = torch.where(positive[..., None], offsets.double().abs() + target.abs(), 0)
    assert_values(localization, want, terms.sum())

    weights = [torch.tensor(w, dtype=inputs.compute, device=device) for w in (0.5, 2.0)]
    grads = torch.ops.ssdkern.multibox_loss_backward(
        *weights, *args, selected.to(device), *variances
    )
    want = wide.softmax(-1) - F.one_hot(label, classes)
    want = torch.where(selected[..., None], want * 2, 0)
    by_offset = off.clamp(-1, 1) / 2
    half = torch.finfo(inputs.dtype).eps / 2e-6 if inputs.dtype.itemsize == 2 else 0
    for got, exact, scale in (
        (grads[0], want, selected[..., None].double()),
        (grads[1], by_offset, terms),
    ):
        assert got.dtype == inputs.dtype
        assert_values(got, exact, scale * 2 + half * exact.abs() + half * 1e-3)


@needs_native("multibox_loss")
@fuzz(40)
def test_loss_of_anything(device, data):
    """Huge logits and boxes without area give no NaN; NaN and infinity are survived."""
    inputs = Inputs(data.draw)
    grid, classes = (2, data.draw(counts)), inputs.one_of(2, 5, 17)
    finite = inputs.one_of(True, False)
    logits = inputs.randn(*grid, classes) * inputs.one_of(1, 1e4, 1e30)
    offsets = inputs.randn(*grid, 4) * inputs.one_of(1, 1e10)
    kinds = ("grid", "inverted") if finite else ("odd",)
    scales = (1.0, 1e-6, 1e10)
    priors, gt_boxes = (inputs.boxes(n, kinds=kinds, scales=scales) for n in (grid[1], 3))
    if not finite:
        logits, offsets = (inputs.strew(t, (NAN, INF, -INF)) for t in (logits, offsets))
    inputs.dtype = inputs.compute
    args = [inputs.floats(t).to(device) for t in (logits, offsets, priors, gt_boxes)]
    args += [torch.ones(3, dtype=torch.int64), inputs.randint(-2, 3, grid).int()]
    args = [t.to(device) for t in args]
    out = torch.ops.ssdkern.multibox_loss(*args, 3.0, 0.1, 0.2)
    weight = torch.ones((), dtype=inputs.compute, device=device)
    saved = *args, *out[3:]
    out += torch.ops.ssdkern.multibox_loss_backward(weight, weight, *saved, 0.1, 0.2)
    if finite:
        assert not any(t.isnan().any() for t in out)
