"""Sizes and values that reach rare paths of the CUDA kernels; every backend must get them right.

With the emulation, `CUDA_ON_HOST_SHARED=40000` sends what does not fit into shared memory the way
that long lists go on a GPU.
"""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torchvision
from cases import INTERPRETED, assert_close, assert_same, places, random_boxes, scene
from test_match_priors import check as check_match

import ssdkern
from ssdkern.ops.detect import detect_torch
from ssdkern.ops.multiclass_nms import multiclass_nms_torch

NAN = float("nan")
MANY = 700 if INTERPRETED else 16384  # boxes that are ranked by counting


def askew(tensor):
    """The same values, contiguous, at an address that 16-byte loads cannot use."""
    memory = torch.empty(tensor.numel() + 1, dtype=tensor.dtype, device=tensor.device)
    memory[1:] = tensor.flatten()
    return memory[1:].view(tensor.shape)


@places("match_priors")
@pytest.mark.parametrize("rule", ["bipartite", "argmax"])
def test_many_truths(rule, device, backend):
    """More than fit into shared memory, more than priors, and a second image after them."""
    priors = random_boxes(170, low=0.05, high=0.3).to(device)
    count = 300 if INTERPRETED else 600
    boxes = torch.cat((random_boxes(count, low=0.05, high=0.3), priors.cpu()[::9])).to(device)
    offsets = torch.tensor([0, count, len(boxes)], dtype=torch.int32, device=device)
    check_match(askew(priors), askew(boxes), offsets, rule, backend)


@places("match_priors")
@pytest.mark.parametrize("rule", ["bipartite", "argmax"])
@pytest.mark.parametrize("kind", ["equal", "alike", "ties"])
def test_contested_priors(kind, rule, device, backend):
    """Truths that want the same priors, of more blocks of priors than a warp reads at once."""
    priors = random_boxes(70 if INTERPRETED else 16700, low=0.1, high=0.4)
    boxes = random_boxes(1, low=0.3, high=0.3).repeat(24, 1)
    if kind != "equal":
        boxes = boxes + 0.01 * torch.randn(24, 4)
    if kind == "ties":
        priors, boxes = (priors * 16).round() / 16, (boxes * 16).round() / 16
    boxes = torch.cat((boxes, random_boxes(9))).to(device)
    offsets = torch.tensor([0, 24, len(boxes)], dtype=torch.int32, device=device)
    check_match(priors.to(device), boxes, offsets, rule, backend)


def by_name(limits):
    names = "score_threshold", "iou_threshold", "nms_top_k", "keep_top_k"
    return dict(zip(names, limits, strict=True))


def clustered(count, device):
    center = random_boxes(count // 20)[torch.randint(count // 20, (count,))]
    boxes = center + 0.02 * torch.randn(count, 4)
    boxes[:, 2:] = torch.maximum(boxes[:, 2:], boxes[:, :2])
    scores = (torch.rand(count) * 4096).round() / 4096  # ties
    return boxes.to(device), scores.to(device)


def by_group(boxes, scores, groups, threshold):
    """torchvision's nms of every group, in order of score, then index."""
    boxes, scores, groups = boxes.cpu(), scores.cpu(), groups.cpu()
    kept = torch.zeros(len(boxes), dtype=torch.bool)
    for group in groups.unique():
        rows = (groups == group).nonzero()[:, 0]
        kept[rows[torchvision.ops.nms(boxes[rows], scores[rows], threshold)]] = True
    order = scores.sort(descending=True, stable=True).indices
    return order[kept[order]]


def with_odd_ones(scores):
    """NaNs of both signs come first, zeros of both signs are equal.

    The emulation sorts by torch on the CPU, to which a NaN's sign is nothing: only a GPU can show
    that it is nothing to CUDA's sort either.
    """
    odd = torch.tensor([NAN, -1.0, 0.0, float("inf")]).repeat(40)
    odd[1::8] = torch.tensor(NAN).copysign(torch.tensor(-1.0))
    odd[2::8] *= -1
    scores[torch.randperm(len(scores))[: len(odd)]] = odd.to(scores)
    return scores


@places("nms")
def test_nms_of_three_panels(device, backend):
    boxes, scores = clustered(MANY + 200, device)
    with_odd_ones(scores)
    keep = ssdkern.nms(askew(boxes), scores, 0.4, backend=backend)
    assert torch.equal(keep.cpu(), torchvision.ops.nms(boxes.cpu(), scores.cpu(), 0.4))


@places("nms")
def test_nms_of_a_chain(device, backend):
    """Each box suppresses its neighbours alone, from tile to tile of 32 and of 128 boxes."""
    left = torch.arange(700.0, device=device)
    boxes = torch.stack((left, 0 * left, left + 1.9, 0 * left + 1), dim=1)
    for step in (1, 31, 303):  # a neighbour's place in the order: near, or tiles away
        scores = -(left * step % 700)
        keep = ssdkern.nms(boxes, scores, 0.3, backend=backend)
        assert torch.equal(keep.cpu(), torchvision.ops.nms(boxes.cpu(), scores.cpu(), 0.3))


@places("batched_nms")
@pytest.mark.parametrize("count", [1500, 8192 + 700])
def test_batched_nms_of_long_and_short_groups(count, device, backend):
    boxes, scores = clustered(count, device)
    groups = torch.where(torch.rand(count) < 0.7, 3, torch.randint(-2, 40, (count,))).to(device)
    keep = ssdkern.batched_nms(boxes, scores, groups, 0.4, backend=backend).cpu()
    assert torch.equal(keep, by_group(boxes, scores, groups, 0.4))


@places("batched_nms")
def test_batched_nms_of_many_groups(device, backend):
    boxes, scores = clustered(MANY + 500, device)
    boxes, scores = boxes.double(), with_odd_ones(scores.double())
    groups = torch.randint(0, 150, scores.shape).to(device)
    keep = ssdkern.batched_nms(boxes, scores, groups, 0.05, backend=backend).cpu()
    assert torch.equal(keep, by_group(boxes, scores, groups, 0.05))


@places("nms")
@pytest.mark.parametrize("threshold", [-1.0, 0.0, 1e-31, NAN, 0.99, 1.0, 1e300, float("inf")])
def test_nms_thresholds(threshold, device, backend):
    boxes, scores = clustered(200, device)
    boxes[5:9] = boxes[4]
    boxes[20:22] *= 1e-25  # areas that are not normal numbers
    keep = ssdkern.nms(boxes, scores, threshold, backend=backend)
    assert torch.equal(keep.cpu(), torchvision.ops.nms(boxes.cpu(), scores.cpu(), threshold))


SCORES = {
    "crowded": lambda s: s,
    "equal": lambda s: torch.full_like(s, 0.3),
    "few values": lambda s: (s * 3).round() / 3,
    "two": lambda s: torch.where(s > 0.5, 0.25, 0.75),
    "broken": lambda s: torch.where(s < 0.1, NAN, torch.where(s > 0.9, float("inf"), s)),
}


@places("multiclass_nms")
@pytest.mark.parametrize("kind", SCORES)
@pytest.mark.parametrize(("top", "keep"), [(40, 30), (400, 200), (3000, 5000)])
def test_more_candidates_than_room(kind, top, keep, device, backend):
    boxes = random_boxes(2 * 700, low=0.02, high=0.2).view(2, 700, 4).to(device)
    scores = SCORES[kind](torch.rand(2, 700, 12)).to(device)
    limits = 0.01, 0.3, top, keep
    got = ssdkern.multiclass_nms(askew(boxes), scores, **by_name(limits), backend=backend)
    for a, b in zip(got, multiclass_nms_torch(boxes, scores, *limits), strict=True):
        assert_same(a, b)


@places("detect")
@pytest.mark.parametrize("classes", [2, 24, 25, 81, 400, 800])
def test_detect_of_few_and_many_classes(classes, device, backend):
    s = scene((2, 130, classes, 3), device)
    logits = s.logits * 0.1
    limits = 1 / classes, 0.45, 60, 50
    got = ssdkern.detect(
        askew(logits), askew(s.offsets), s.priors, **by_name(limits), backend=backend
    )
    wide = (t.double() for t in (logits, s.offsets, s.priors))
    want = detect_torch(*wide, *limits, 0.1, 0.2, float("inf"), False)
    same = (got.prior_index == want[3]).float().mean()
    assert same > 0.95, "a score next to the threshold or to another may move a few"
    where = (got.prior_index == want[3]) & (got.labels == want[2])
    assert_close(got.scores[where], want[1][where])


@places("detect")
@pytest.mark.parametrize("count", [1, 3])
def test_detect_of_many_small_images(count, device, backend):
    """A warp has rows of many images."""
    s = scene((70, count, 5, 3), device)
    limits = 0.1, 0.45, 60, 50
    got = ssdkern.detect(*s[:3], **by_name(limits), backend=backend)
    want = detect_torch(*s[:3], *limits, 0.1, 0.2, float("inf"), False)
    assert torch.equal(got.prior_index, want[3])
    assert torch.equal(got.labels, want[2])


@places("detect")
@pytest.mark.parametrize("classes", [5, 21])
def test_detect_of_doubles_askew(classes, device, backend):
    s = scene((2, 130, classes, 3), device).to(torch.float64)
    limits = 0.05, 0.45, 60, 50
    got = ssdkern.detect(*map(askew, s[:3]), **by_name(limits), backend=backend)
    want = detect_torch(*s[:3], *limits, 0.1, 0.2, float("inf"), False)
    assert torch.equal(got.prior_index, want[3])
    assert_close(got.scores, want[1])


@places("detect")
@pytest.mark.parametrize("threshold", [0.0, -1.0, 2.0])
def test_detect_thresholds(threshold, device, backend):
    s = scene((1, 60, 4, 1), device)
    logits = s.logits.clone()
    logits[0, 3, 2] = -float("inf")
    logits[0, 4, 1] = NAN
    limits = threshold, 0.45, 60, 50
    got = ssdkern.detect(logits, s.offsets, s.priors, **by_name(limits), backend=backend)
    want = detect_torch(logits, s.offsets, s.priors, *limits, 0.1, 0.2, float("inf"), False)
    assert torch.equal(got.count, want[4])
    assert torch.equal(got.prior_index, want[3])


@places("multibox_loss")
@pytest.mark.parametrize("classes", [2, 24, 25, 81, 400, 800])
@pytest.mark.parametrize("low", [-1e4, -float("inf")])
def test_loss_of_few_and_many_classes(low, classes, device, backend):
    s = scene((2, 260, classes, 4), device)
    s.logits[:, 50] = low  # but one: the row's first step may find nothing else
    s.logits[:, 50, -1] = 3
    run = {"neg_pos_ratio": 30.0, "rule": "argmax"}
    heads = [askew(t).requires_grad_() for t in (s.logits, s.offsets)]
    got = ssdkern.multibox_loss(*heads, *s[2:], **run, backend=backend)
    wide = s.to(torch.float64)
    wide_heads = [t.requires_grad_() for t in wide[:2]]
    want = ssdkern.multibox_loss(*wide_heads, *wide[2:], **run, backend="torch")
    assert got.num_positives == want.num_positives
    finite = torch.isfinite(want.classification)
    assert finite or low == -float("inf")
    for a, b in zip(got[:2], want[:2], strict=True):
        assert torch.isfinite(b) == torch.isfinite(a)
        assert_close(a.detach()[torch.isfinite(b)], b.detach()[torch.isfinite(b)])
    outputs = [sum(loss[:2]) if finite else loss.localization for loss in (got, want)]
    used = slice(0 if finite else 1, None)
    grads = torch.autograd.grad(outputs[0], heads[used])
    wide_grads = torch.autograd.grad(outputs[1], wide_heads[used])
    for a, b in zip(grads, wide_grads, strict=True):
        assert_close(a, b, scale=1.0)


@places("mine_hard_negatives")
@pytest.mark.parametrize("kind", ["equal", "few values", "spread", "broken"])
@pytest.mark.parametrize("count", [2500, 11800])  # with what the kernel declares, over 48 KB
def test_mining_ties(count, kind, device, backend):
    loss = torch.rand(3, count)
    loss = {"spread": lambda x: x.exp() ** 9, **SCORES}[kind](loss).to(device)
    positive = (torch.rand(3, count) < torch.tensor([[0.0], [0.03], [0.4]])).to(device)
    got = ssdkern.mine_hard_negatives(loss, positive, backend=backend)
    want = ssdkern.mine_hard_negatives(loss, positive, backend="torch")
    assert torch.equal(got, want)


@places("mine_hard_negatives")
def test_mining_in_two_threads(device, backend):
    """One kernel at once with little and with more than the usual 48 KB of shared memory."""
    if INTERPRETED and backend == "triton":
        pytest.skip("Triton's interpreter runs one kernel at a time")
    cases = [(torch.rand(3, n).to(device), torch.rand(3, n).to(device) < 0.03) for n in (99, 11800)]

    def mine(case):
        want = ssdkern.mine_hard_negatives(*case, backend="torch")
        for _ in range(300 if device == "cuda" else 3):
            assert torch.equal(ssdkern.mine_hard_negatives(*case, backend=backend), want)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(mine, cases))


@places("mine_hard_negatives")
def test_mining_of_infinities(device, backend):
    """Keys of float64 from end to end, next to those of NaN."""
    ends = [-1e300, 1.0, 1e308, float("inf"), NAN]
    loss = torch.tensor(ends, dtype=torch.float64).repeat_interleave(40)[torch.randperm(200)]
    for positives in (15, 25, 45, 65):  # of each kind some are left over
        positive = torch.arange(200) < positives
        loss[positive] = 0.0
        case = loss[None].to(device), positive[None].to(device)
        got = ssdkern.mine_hard_negatives(*case, neg_pos_ratio=1.0, backend=backend)
        want = ssdkern.mine_hard_negatives(*case, neg_pos_ratio=1.0, backend="torch")
        assert torch.equal(got, want)
