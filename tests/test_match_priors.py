"""match_priors against the Caffe original, torchvision and a plain loop: integers, exactly."""

import numpy as np
import pytest
import torch
from cases import (
    GPU,
    INTERPRETED,
    golden,
    needs_native,
    places,
    random_boxes,
    scene,
    sizes,
    whole,
)
from torch import library
from torchvision.models.detection._utils import SSDMatcher
from torchvision.ops import box_iou

from ssdkern import match_priors
from ssdkern.ops._dispatch import kernel

RULES = ("bipartite", "argmax")
rules = pytest.mark.parametrize("rule", RULES)
NAN, INF = float("nan"), float("inf")


def by_hand(priors, gt_boxes, gt_offsets, rule, threshold=0.5):
    """Both rules as loops over one image's matrix after the other."""
    rows = []
    for begin, end in zip(gt_offsets[:-1].tolist(), gt_offsets[1:].tolist(), strict=True):
        iou = np.nan_to_num(box_iou(priors, gt_boxes[begin:end]).cpu().numpy(), nan=-1.0)  # [P, G]
        matched = np.full(len(priors), -1)
        for prior in range(len(priors)) if end > begin else ():
            best = iou[prior].argmax()
            if iou[prior, best] >= max(threshold, 0 if rule == "argmax" else 1e-6):
                matched[prior] = begin + best
        if rule == "argmax":
            for truth in range(end - begin):
                prior = iou[:, truth].argmax()
                if iou[prior, truth] >= 0:
                    matched[prior] = begin + truth
        else:
            left = iou.copy()
            while left.size and left.max() > 1e-6:
                prior, truth = np.unravel_index(left.argmax(), left.shape)
                matched[prior] = begin + truth
                left[prior], left[:, truth] = -1, -1
        rows.append(matched)
    return torch.from_numpy(np.stack(rows)).int()


def pack(*images, device="cpu"):
    """gt_boxes and gt_offsets of lists of boxes."""
    counts = torch.tensor([0] + [len(image) for image in images])
    boxes = torch.cat([torch.as_tensor(image, dtype=torch.float32).view(-1, 4) for image in images])
    return boxes.to(device), counts.cumsum(0).int().to(device)


def check(priors, gt_boxes, gt_offsets, rule, backend, threshold=0.5):
    kwargs = {"rule": rule, "iou_threshold": threshold}
    got = match_priors(priors, gt_boxes, gt_offsets, **kwargs, backend=backend)
    want = by_hand(priors, gt_boxes, gt_offsets, rule, threshold)
    assert got.dtype == torch.int32
    assert torch.equal(got.cpu(), want), f"{(got.cpu() != want).sum()} of {got.numel()} differ"
    return got


@places("match_priors")
@rules
@sizes
def test_matches_float64(size, rule, device, backend):
    s = scene(size, device)
    wide = check(s.priors.double(), s.gt_boxes.double(), s.gt_offsets, rule, backend)
    got = check(s.priors, s.gt_boxes, s.gt_offsets, rule, backend)
    assert (got != wide).sum() <= got.numel() / 1000  # an IoU at the threshold may round across


@places("match_priors")
@rules
@pytest.mark.parametrize("threshold", [0.0, 0.35, 1.0])
def test_thresholds(threshold, rule, device, backend):
    s = scene((3, 90, 3, 6), device)
    boxes = torch.cat((s.gt_boxes[:-1], s.priors[7:8]))  # one IoU of exactly 1
    check(s.priors, boxes, s.gt_offsets, rule, backend, threshold)


@places("match_priors")
@rules
def test_rows_behind_the_last_image_are_nobodys(rule, device, backend):
    """A buffer larger than its content; what is left in it would match."""
    s = scene((3, 90, 3, 6), device)
    buffer = torch.cat((s.gt_boxes, s.priors[:9]))
    expected = match_priors(s.priors, s.gt_boxes, s.gt_offsets, rule=rule, backend=backend)
    got = match_priors(s.priors, buffer, s.gt_offsets, rule=rule, backend=backend)
    assert torch.equal(got, expected)
    none = torch.zeros_like(s.gt_offsets)
    assert (match_priors(s.priors, buffer, none, rule=rule, backend=backend) == -1).all()


@places("match_priors")
@rules
@pytest.mark.parametrize("offsets", [[-3, 4, 9, 14], [2**31 - 1, -(2**31), 5, 7]])
def test_offsets_beyond_the_buffer(offsets, rule, device, backend):
    """Nothing checks them on a GPU: of a range only what lies in the buffer counts."""
    if backend == "torch":
        pytest.skip("the reference wants them to rise")
    s = scene((3, 90, 3, 6), device)
    boxes = s.priors[10:20]  # others lie before and behind it
    offsets = torch.tensor(offsets, dtype=torch.int32, device=device)
    args = s.priors, boxes, offsets, 0.5, rule == "bipartite"
    try:
        got = kernel("match_priors", backend)(*args)
    except RuntimeError as error:  # of the CPU's op, which reads them
        assert "want gt_offsets rising from 0" in str(error)
    else:
        assert torch.equal(got.cpu(), by_hand(s.priors, boxes, offsets.clamp(0, 10), rule))


@places("match_priors")
@rules
def test_crowds(rule, device, backend):
    """Many truths want the same priors, and there may be more of them than priors."""
    priors = random_boxes(60, low=0.05, high=0.2).to(device)
    crowd = 0.3 * random_boxes(40, low=0.05, high=0.3) + 0.3
    boxes, offsets = pack(crowd, random_boxes(90), [], crowd[:25], device=device)
    check(priors, boxes, offsets, rule, backend)
    check(priors[:5], boxes, offsets, rule, backend)


@places("match_priors")
@rules
def test_ties(rule, device, backend):
    """Corners on a coarse grid, doubled priors and doubled truths: the lowest index wins."""
    corners = torch.randint(0, 4, (2, 50, 2)) / 4
    boxes = torch.cat((corners[0], corners[0] + torch.randint(1, 3, (50, 2)) / 4), dim=1)
    priors = torch.cat((boxes, boxes.flip(0))).to(device)
    truths, offsets = pack(boxes[:9], boxes[5:20].repeat(2, 1), boxes[::7], device=device)
    check(priors, truths, offsets, rule, backend)


@places("match_priors")
@rules
def test_edges(rule, device, backend):
    priors = random_boxes(37).to(device)
    none = match_priors(priors, *pack([], [], device=device), rule=rule, backend=backend)
    assert none.tolist() == [[-1] * 37] * 2
    empty = torch.zeros(1, dtype=torch.int32, device=device)
    got = match_priors(priors, priors[:0], empty, rule=rule, backend=backend)
    assert got.shape == (0, 37) and got.dtype == torch.int32
    boxes, offsets = pack(random_boxes(2), random_boxes(3), device=device)
    assert match_priors(priors[:0], boxes, offsets, rule=rule, backend=backend).shape == (2, 0)
    check(priors[:1], boxes, offsets, rule, backend)
    check(priors.T.contiguous().T, boxes.T.contiguous().T, offsets.long(), rule, backend)


@places("match_priors")
@rules
def test_bad_truth(rule, device, backend):
    """NaN matches nothing; a box without area overlaps nothing, so only "argmax" gives it one."""
    priors = random_boxes(70, low=0.3, high=0.9).to(device)
    bad = [[NAN] * 4, [0.1, 0.1, NAN, 0.4], [0.3, 0.3, 0.3, 0.3], [0.6, 0.6, 0.2, 0.2]]
    bad += [[-INF, -INF, INF, INF], [5, 5, 6, 6], [0.6, 0.1, 0.2, 0.5]]
    boxes, offsets = pack(bad, [], [[NAN] * 4], random_boxes(3), device=device)
    got = check(priors, boxes, offsets, rule, backend)
    assert (got[0] < 0).sum() == (70 if rule == "bipartite" else 69)
    assert got[0, 0] == (-1 if rule == "bipartite" else 6)
    assert (got[2] == -1).all()


@places("match_priors")
@rules
def test_nan_priors(rule, device, backend):
    """So an SSD leaves some out: neither they nor their truth get in the way of others."""
    priors = random_boxes(70).to(device)
    priors[::3] = NAN
    got = check(priors, *pack(random_boxes(9), [], random_boxes(3), device=device), rule, backend)
    assert (got[:, ::3] == -1).all()
    assert set(got.flatten().tolist()) == set(range(-1, 12))


@places("match_priors")
@rules
@pytest.mark.parametrize("threshold", [0.0, 1e-60])  # the same in float32
def test_threshold_zero_without_overlap(threshold, rule, device, backend):
    """Under "argmax" no overlap is enough, but one that is NaN."""
    far = [[NAN] * 4, [5, 5, 6, 6], [-INF, 7, INF, 8], [7, 7, 8, 8]]
    priors = random_boxes(70).to(device)
    got = check(priors, *pack(far, device=device), rule, backend, threshold)
    want = [-1] * 70 if rule == "bipartite" else [3] + [1] * 69
    assert got[0].tolist() == want


@places("match_priors")
def test_least_overlap(device, backend):
    """Caffe keeps no pair of IoU 1e-6 or less: such truth stays unmatched."""
    priors = torch.tensor([[0.0, 0, 1, 1], [2, 2, 3, 3]], device=device)
    faint, small = [0.5, 0.5, 0.5007, 0.501], [2.5, 2.5, 2.502, 2.501]  # 7e-7 and 2e-6
    boxes, offsets = pack([faint, small], device=device)
    run = {"gt_boxes": boxes, "gt_offsets": offsets, "backend": backend}
    assert match_priors(priors, **run).tolist() == [[-1, 1]]
    assert match_priors(priors, iou_threshold=0, **run).tolist() == [[-1, 1]]
    assert match_priors(priors, rule="argmax", **run).tolist() == [[0, 1]]


@places("match_priors")
@pytest.mark.parametrize("config", ["ssd300_voc", "ssd300_coco", "ssd512_voc", "ssd512_coco"])
def test_anchor_caffe(config, device, backend):
    """MatchBBox on 24 images, half of them crowds or huge boxes."""
    vectors = {k: v.to(device) for k, v in golden("match").items() if k.startswith(config)}
    priors, boxes, offsets, want = vectors.values()
    if INTERPRETED and not GPU:  # a minute an image
        priors, want = priors[-900:], want[:, -900:]
        alone = by_hand(priors, boxes, offsets, "bipartite").to(device)
        want = torch.where(alone >= 0, alone - offsets[:-1, None], -1).short()
    got = match_priors(priors, boxes, offsets, backend=backend)
    assert torch.equal(torch.where(got >= 0, got - offsets[:-1, None], -1).short(), want)


@places("match_priors")
def test_anchor_lost_truth(device, backend):
    """Two truths with one best prior in SSD300: argmax matching loses the better one."""
    px = [[137.393, 126.787, 158.607, 169.213], [137.393, 134.787, 158.607, 177.213]]
    boxes, offsets = pack([[144, 128, 158, 164], [140, 132, 152, 170]], device=device)
    priors = torch.tensor(px, device=device)
    run = {"gt_boxes": boxes / 300, "gt_offsets": offsets, "backend": backend}
    assert match_priors(priors / 300, **run).tolist() == [[0, 1]]
    assert match_priors(priors / 300, rule="argmax", **run).tolist() == [[1, -1]]


@places("match_priors")
def test_anchor_torchvision(device, backend):
    s = scene((6, 400, 3, 12), device)
    got = match_priors(s.priors, s.gt_boxes, s.gt_offsets, rule="argmax", backend=backend)
    ranges = zip(s.gt_offsets[:-1].tolist(), s.gt_offsets[1:].tolist(), strict=True)
    for image, (begin, end) in enumerate(ranges):
        if end > begin:
            want = SSDMatcher(0.5)(box_iou(s.gt_boxes[begin:end], s.priors).cpu())
            assert torch.equal(got[image].cpu(), torch.where(want >= 0, want + begin, -1).int())


def test_rejects():
    priors, (boxes, offsets) = random_boxes(4), pack(random_boxes(2), random_boxes(1))
    with pytest.raises(ValueError, match=r"want priors \[P, 4\], got \[1, 4, 4\]"):
        match_priors(priors[None], boxes, offsets)
    with pytest.raises(ValueError, match=r"want gt_boxes \[T, 4\], got \[3, 3\]"):
        match_priors(priors, boxes[:, :3], offsets)
    with pytest.raises(ValueError, match="want gt_offsets of dtype int32 or int64"):
        match_priors(priors, boxes, offsets.float())
    for wrong in ([1, 3], [0, 2, 1, 3], [0, 4]):
        with pytest.raises(ValueError, match="want gt_offsets rising from 0 to at most the 3 rows"):
            match_priors(priors, boxes, torch.tensor(wrong))
    with pytest.raises(ValueError, match=r"want gt_offsets \[B\+1\], got \[0\]"):
        match_priors(priors, boxes, offsets[:0])
    with pytest.raises(ValueError, match="want 0 <= iou_threshold <= 1, got 3"):
        match_priors(priors, boxes, offsets, iou_threshold=3)
    with pytest.raises(ValueError, match=r"want rule in .*, got 'hungarian'"):
        match_priors(priors, boxes, offsets, rule="hungarian")
    with pytest.raises(ValueError, match="want all tensors on one device"):
        match_priors(priors.to("meta"), boxes, offsets)


@needs_native("match_priors")
@pytest.mark.parametrize("bipartite", [True, False])
def test_opcheck(bipartite, device):
    s = scene((2, 30, 3, 4), device)
    args = (s.priors, s.gt_boxes, s.gt_offsets, 0.5, bipartite)
    library.opcheck(torch.ops.ssdkern.match_priors.default, args)


@places("match_priors")
@pytest.mark.parametrize(
    ("rule", "mode"), [*((rule, "aot_eager") for rule in RULES), ("bipartite", "inductor")]
)
def test_compiles_whole(rule, mode, device, backend):
    def run(priors, boxes, offsets):
        return match_priors(priors, boxes, offsets, rule=rule, backend=backend)

    compiled = whole(run, mode)
    for truths in (5, 9, 0) if mode == "aot_eager" else (9,):
        s = scene((3, 50, 3, truths), device)
        args = s.priors, s.gt_boxes, s.gt_offsets
        assert torch.equal(compiled(*args), run(*args))
