"""multibox_loss against torchvision, the Caffe original's arithmetic by hand, and float64."""

import math
from types import SimpleNamespace

import pytest
import torch
from cases import assert_close, assert_same, needs_native, places, scene, sizes, whole
from torch import library
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.ssd import SSD

from ssdkern import match_priors, multibox_loss
from ssdkern.ops.encode_boxes import encode_boxes_torch
from ssdkern.ops.multibox_loss import multibox_loss_torch

NUMBERS = (3.0, 0.1, 0.2)


def loss_and_gradients(s, backend, weights=(1.0, 1.0), **kwargs):
    """The loss, and the gradients of both terms under two weights."""
    inputs = s.logits.detach().requires_grad_(), s.offsets.detach().requires_grad_()
    loss = multibox_loss(*inputs, *s[2:], backend=backend, **kwargs)
    total = weights[0] * loss.localization + weights[1] * loss.classification
    return loss, torch.autograd.grad(total, inputs)


def wide_loss_and_gradients(s, matched, weights=(1.0, 1.0)):
    """The reference in float64; fails where a negative's choice hangs on float32's rounding."""
    s = s.to(torch.float64)
    background = -s.logits.log_softmax(-1)[..., 0].masked_fill(matched != -1, torch.inf)
    for image, positives in zip(background, (matched >= 0).sum(1).tolist(), strict=True):
        losses = image[image != -torch.inf].sort(descending=True).values
        cut = 3 * positives
        if 0 < cut < len(losses):
            assert losses[cut - 1] - losses[cut] > 2e-6 * losses[cut], "choose another seed"
    inputs = s.logits.requires_grad_(), s.offsets.requires_grad_()
    *sums, positives = multibox_loss_torch(*inputs, *s[2:5], matched, *NUMBERS)
    sums = [term / positives.clamp(min=1) for term in sums]
    total = weights[0] * sums[0] + weights[1] * sums[1]
    return (*sums, positives), torch.autograd.grad(total, inputs)


@places("multibox_loss")
@sizes
def test_matches_float64(size, device, backend):
    s = scene(size, device)
    matched = match_priors(*s[2:4], s.gt_offsets, backend="torch")
    weights = (0.7, 1.3)
    want, want_grads = wide_loss_and_gradients(s, matched, weights)
    sides = 2 / 0.01 / 0.1  # what a unit in the last place of a corner is in an offset
    for same, scale in ((s, sides), (s.to(torch.float64), sides)):
        got, grads = loss_and_gradients(same, backend, weights, matched=matched)
        assert got.num_positives.dtype == torch.int64 and got.num_positives == want[2]
        assert_close(got.localization, want[0], scale)
        assert_close(got.classification, want[1], scale=1)
        assert_close(grads[0], want_grads[0], scale=1)
        assert_close(grads[1], want_grads[1], scale)


@places("multibox_loss")
@pytest.mark.parametrize("rule", ["bipartite", "argmax"])
def test_matches_by_itself(rule, device, backend):
    s = scene((4, 200, 6, 9), device)
    choice = {"iou_threshold": 0.4, "rule": rule}
    matched = match_priors(s.priors, s.gt_boxes, s.gt_offsets, **choice, backend="torch")
    got, grads = loss_and_gradients(s, backend, **choice)
    want, want_grads = loss_and_gradients(s, backend, matched=matched.long())
    assert all(torch.equal(a, b) for a, b in zip((*got, *grads), (*want, *want_grads), strict=True))
    assert got.num_positives == (matched >= 0).sum()


def worked_example(device):
    """Residuals and cross-entropies given as numbers: 3 and 1 positives, 9 and 3 negatives."""
    residuals = [[0.5, -0.5, 2, 0], [0.1] * 4, [0, 0, 0, 1]], [[1, 1, -3, 0.2]]
    counts, sums = (3, 1), (16.0596, 8.0596)
    s = scene((2, 60, 2, 1), device)
    rows = torch.arange(4, device=device)
    matched = torch.full((2, 60), -1, device=device)
    matched[0, :3], matched[1, 10] = rows[:3], rows[3]
    gt_boxes = s.priors[5:9]
    offsets = torch.randn(2, 60, 4, device=device)
    logits = torch.zeros(2, 60, 2, device=device)
    logits[..., 0] = 9
    for image, (residual, count, total) in enumerate(zip(residuals, counts, sums, strict=True)):
        positive = matched[image] >= 0
        truth = gt_boxes[matched[image, positive]]
        target = encode_boxes_torch(truth, s.priors[positive], 0.1, 0.2)
        offsets[image, positive] = target + torch.tensor(residual, device=device)
        each = total / (4 * count)
        margin = math.log(math.expm1(each))  # cross-entropy of a pair of logits with this margin
        logits[image, positive, 0], logits[image, positive, 1] = margin, 0
        logits[image, -3 * count :, 0], logits[image, -3 * count :, 1] = 0, margin
    labels = torch.ones(4, dtype=torch.int64, device=device)
    gt_offsets = torch.tensor([0, 3, 4], device=device)
    return (logits, offsets, s.priors, gt_boxes, labels, gt_offsets), matched


@places("multibox_loss")
def test_anchor_worked_example(device, backend):
    args, matched = worked_example(device)
    loss = multibox_loss(*args, matched=matched, backend=backend)
    assert loss.num_positives == 4
    assert loss.classification.item() == pytest.approx(6.0298, abs=1e-5)
    assert loss.localization.item() == pytest.approx(1.4475, abs=1e-5)
    assert (loss.classification + loss.localization).item() == pytest.approx(7.4773, abs=1e-5)


@places("multibox_loss")
def test_anchor_torchvision(device, backend):
    """torchvision's SSD.compute_loss, where no image asks for more negatives than it has."""
    s = scene((4, 300, 7, 8), device)
    matched = match_priors(s.priors, s.gt_boxes, s.gt_offsets, rule="argmax", backend="torch")
    ours, grads = loss_and_gradients(s, backend, matched=matched)

    wide = s.to(torch.float64)
    inputs = wide.logits.requires_grad_(), wide.offsets.requires_grad_()
    begins, ends = s.gt_offsets[:-1].tolist(), s.gt_offsets[1:].tolist()
    targets = [
        {"boxes": wide.gt_boxes[begin:end], "labels": s.gt_labels[begin:end]}
        for begin, end in zip(begins, ends, strict=True)
    ]
    within = [torch.where(m >= 0, m - b, -1).long() for m, b in zip(matched, begins, strict=True)]
    model = SimpleNamespace(box_coder=BoxCoder((10, 10, 5, 5)), neg_to_pos_ratio=3)
    heads = {"cls_logits": inputs[0], "bbox_regression": inputs[1]}
    theirs = SSD.compute_loss(model, targets, heads, [wide.priors] * 4, within)
    want = theirs["bbox_regression"], theirs["classification"]
    assert_close(ours.localization, want[0], scale=2000)
    assert_close(ours.classification, want[1], scale=1)
    for got, wanted in zip(grads, torch.autograd.grad(sum(want), inputs), strict=True):
        assert_close(got, wanted, scale=20)


@places("multibox_loss")
def test_no_truth(device, backend):
    s = scene((3, 40, 4, 0), device)
    for batch in (3, 0):
        part = s._replace(
            logits=s.logits[:batch], offsets=s.offsets[:batch], gt_offsets=s.gt_offsets[: batch + 1]
        )
        loss, grads = loss_and_gradients(part, backend)
        assert [term.item() for term in loss] == [0, 0, 0]
        assert all(not grad.any() and grad.shape[0] == batch for grad in grads)


@places("multibox_loss")
def test_ties_go_to_the_lowest_prior(device, backend):
    s = scene((2, 137, 5, 4), device)
    s = s._replace(logits=torch.zeros_like(s.logits))
    matched = torch.full((2, 137), -1, device=device)
    matched[0, [3, 60]], matched[1, 0] = 0, 1
    loss, (grad, _) = loss_and_gradients(s, backend, matched=matched)
    touched = (grad != 0).any(-1)
    want = torch.zeros_like(touched)
    want[0, :7], want[0, 60], want[1, :4] = True, True, True
    assert torch.equal(touched, want)
    assert loss.classification.item() == pytest.approx(12 * math.log(5) / 3)


@places("multibox_loss")
def test_equal_rows_tie_whatever_lies_beside_them(device, backend):
    """A row of huge logits, here a positive, leaves the losses of its neighbours as they are."""
    s = scene((24, 137, 21, 24), device)
    s = s._replace(logits=s.logits[:, :1].repeat(1, 137, 1))
    s.logits[:, 40] *= 200
    matched = torch.full((24, 137), -1, device=device)
    matched[:, 40] = torch.arange(24, device=device)
    _, (grad, _) = loss_and_gradients(s, backend, matched=matched)
    touched = (grad != 0).any(-1)
    assert touched[:, :3].all() and not touched[:, 3:40].any() and not touched[:, 41:].any()


@places("multibox_loss")
def test_ignored_priors(device, backend):
    """-2 takes no part: no loss, no gradient, never a negative."""
    s = scene((3, 60, 4, 3), device)
    matched = match_priors(s.priors, s.gt_boxes, s.gt_offsets, backend="torch")
    ignored = torch.rand(3, 60, device=device) < 0.5
    matched = torch.where(ignored & (matched < 0), -2, matched)
    want, want_grads = wide_loss_and_gradients(s, matched)
    got, grads = loss_and_gradients(s, backend, matched=matched)
    assert_close(got.classification, want[1], scale=1)
    assert_close(grads[0], want_grads[0], scale=1)
    assert not grads[0][matched == -2].any() and grads[0][matched == -1].any()


@places("multibox_loss")
def test_normalizer(device, backend):
    s = scene((3, 60, 4, 6), device)
    loss, grads = loss_and_gradients(s, backend)
    count = loss.num_positives.item()
    for normalizer in (8, 8.0, torch.tensor(8.0, device=device), torch.tensor(8, device=device)):
        other, other_grads = loss_and_gradients(s, backend, normalizer=normalizer)
        assert other.num_positives == count
        for a, b in zip((*other[:2], *other_grads), (*loss[:2], *grads), strict=True):
            assert_close(a, b * count / 8, scale=1e-3)


@places("multibox_loss")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_is_computed_in_float32(dtype, device, backend):
    s = scene((2, 137, 21, 5), device)
    s = s._replace(logits=s.logits.to(dtype), offsets=s.offsets.to(dtype))
    got, grads = loss_and_gradients(s, backend)
    want, want_grads = loss_and_gradients(s.to(torch.float32), backend)
    assert got.classification.dtype == got.localization.dtype == torch.float32
    assert_close(got.localization, want.localization)
    assert_close(got.classification, want.classification)
    for half, full in zip(grads, want_grads, strict=True):
        assert half.dtype == dtype
        spacing = torch.finfo(dtype)
        bound = spacing.eps * full.abs() + spacing.smallest_normal * spacing.eps
        assert ((half.float() - full).abs() <= bound).all()


@places("multibox_loss")
def test_extremes_stay_finite(device, backend):
    """Saturated logits and truth without area: large numbers, never NaN."""
    s = scene((3, 60, 4, 5), device)
    gt_boxes = s.gt_boxes.clone()
    gt_boxes[::2, 2:] = gt_boxes[::2, :2]
    s = s._replace(logits=1e4 * s.logits, offsets=1e3 * s.offsets, gt_boxes=gt_boxes)
    matched = torch.full((3, 60), -1, device=device)
    matched[1:, 7] = 0
    for term in (*(got := loss_and_gradients(s, backend, matched=matched))[0], *got[1]):
        assert term.isfinite().all()


@places("multibox_loss")
@pytest.mark.parametrize("level", [100.0, 1e4])
def test_rows_far_from_zero(level, device, backend):
    """What all logits of a row have in common cancels, and costs no precision."""
    s = scene((3, 137, 21, 5), device)
    s = s._replace(logits=s.logits + level * torch.randn(3, 137, 1, device=device))
    matched = match_priors(*s[2:4], s.gt_offsets, backend="torch")
    want, want_grads = wide_loss_and_gradients(s, matched)
    got, grads = loss_and_gradients(s, backend, matched=matched)
    assert_close(got.classification, want[1])
    assert_close(grads[0] * want[2], want_grads[0] * want[2], scale=1e-2)


@places("multibox_loss")
def test_logits_beyond_float32(device, backend):
    """Rows whose every logit lies below what a float32 holds."""
    s = scene((2, 40, 4, 4), device).to(torch.float64)
    s = s._replace(logits=-1e300 * s.logits.abs())
    got, grads = loss_and_gradients(s, backend)
    want, want_grads = loss_and_gradients(s, "torch")
    assert_close(got.classification, want.classification)
    assert_close(grads[0], want_grads[0], scale=1)


@places("multibox_loss")
def test_what_is_not_finite_stays_so(device, backend):
    """An infinite residual in the first image gives an infinite loss, a NaN a NaN gradient."""
    s = scene((2, 40, 4, 4), device)
    matched = torch.full((2, 40), -1, device=device)
    matched[:, 3] = 0
    for value in (math.inf, math.nan):
        s.offsets[0, 3, 1] = value
        got, grads = loss_and_gradients(s, backend, matched=matched)
        want, want_grads = loss_and_gradients(s, "torch", matched=matched)
        assert_same(got.localization, want.localization)
        assert_same(grads[1].isnan(), want_grads[1].isnan())
        assert_close(grads[1].nan_to_num(), want_grads[1].nan_to_num(), scale=2000)


@places("multibox_loss")
def test_one_term_alone(device, backend):
    s = scene((2, 40, 4, 4), device)
    _, (both_logits, both_offsets) = loss_and_gradients(s, backend)
    _, (logits, offsets) = loss_and_gradients(s, backend, weights=(1.0, 0.0))
    assert not logits.any() and torch.equal(offsets, both_offsets)
    _, (logits, offsets) = loss_and_gradients(s, backend, weights=(0.0, 1.0))
    assert not offsets.any() and torch.equal(logits, both_logits)


def test_rejects():
    s = scene((2, 30, 4, 3))

    def call(matched=None, **changes):
        multibox_loss(*s._replace(**changes), matched=matched)

    for changes, message in (
        ({"logits": s.logits[0]}, r"want logits \[B, P, C\], got \[30, 4\]"),
        ({"offsets": s.offsets[:1]}, r"want offsets \[2, 30, 4\], got \[1, 30, 4\]"),
        ({"priors": s.priors[:9]}, r"want priors \[30, 4\], got \[9, 4\]"),
        ({"logits": s.logits.long()}, "want logits of a floating-point dtype"),
        ({"gt_offsets": s.gt_offsets[1:]}, "want gt_offsets"),
        ({"gt_offsets": s.gt_offsets[[0, 2]]}, r"want gt_offsets \[3\], got \[2\]"),
        ({"gt_labels": s.gt_labels[:-1]}, r"want gt_labels \[.\], got"),
        ({"gt_labels": s.gt_labels.int()}, "want gt_labels of dtype int64, got torch.int32"),
        ({"gt_labels": s.gt_labels * 0}, r"want gt_labels in 1\.\.3, got 0\.\.0"),
        ({"gt_labels": s.gt_labels + 3}, r"want gt_labels in 1\.\.3, got"),
        ({"matched": torch.zeros(2, 29).int()}, r"want matched \[2, 30\], got \[2, 29\]"),
        ({"matched": torch.zeros(2, 30)}, "want matched of dtype int32 or int64"),
        ({"matched": torch.full((2, 30), 9)}, r"want matched in -2\.\..*, got 9\.\.9"),
        ({"offsets": s.offsets.to("meta")}, "want all tensors on one device"),
    ):
        with pytest.raises(ValueError, match=message):
            call(**changes)
    with pytest.raises(ValueError, match="want 0 <= neg_pos_ratio"):
        multibox_loss(*s, neg_pos_ratio=-1)


@needs_native("multibox_loss")
def test_opcheck(device):
    s = scene((2, 40, 5, 4), device)
    matched = match_priors(*s[2:4], s.gt_offsets, backend="torch")
    args = (*s[:5], matched)
    library.opcheck(torch.ops.ssdkern.multibox_loss.default, (*args, *NUMBERS))
    *_, selected = torch.ops.ssdkern.multibox_loss(*args, *NUMBERS)
    one = torch.ones((), device=device)
    args = (one, one, *args, selected, 0.1, 0.2)
    library.opcheck(torch.ops.ssdkern.multibox_loss_backward.default, args)


@places("multibox_loss")
def test_compiles_whole(device, backend):
    """Matching, mining and both gradients in one graph, with the truths of every batch anew."""

    def run(*args):
        return multibox_loss(*args, backend=backend)

    compiled = whole(run)
    for truths in (5, 9):
        s = scene((3, 60, 4, truths), device)
        inputs = s.logits.requires_grad_(), s.offsets.requires_grad_()
        got, want = compiled(*s), run(*s)
        assert got.num_positives == want.num_positives > 0
        for a, b in zip(got[:2], want[:2], strict=True):
            assert_close(a, b)
        for a, b in zip(
            torch.autograd.grad(got.localization + got.classification, inputs),
            torch.autograd.grad(want.localization + want.classification, inputs),
            strict=True,
        ):
            assert_close(a, b, scale=0.1)
