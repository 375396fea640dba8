"""Torchvision's lists in and out: packed right, errors name the image, few calls, none waits."""

import warnings
from importlib import import_module

import pytest
import torch
from cases import GPU
from test_whole import WAITS, Calls, batch_of, native

from ssdkern import Detections
from ssdkern.lists import list_detections, pack_targets
from ssdkern.model import ssd_tiny

gpu = pytest.mark.skipif(not GPU, reason="no CUDA device")


def test_targets_are_packed():
    targets = [
        {"boxes": torch.tensor([[10.0, 20.0, 30.0, 60.0]]), "labels": torch.tensor([2])},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
        {"boxes": torch.tensor([[0, 0, 5, 5], [1, 1, 2, 2]]), "labels": torch.tensor([1, 2])},
    ]
    boxes, labels, offsets = pack_targets(targets, [(100, 50), (9, 9), (10, 10)], 3)
    expected = [[0.2, 0.2, 0.6, 0.6], [0, 0, 0.5, 0.5], [0.1, 0.1, 0.2, 0.2]]
    torch.testing.assert_close(boxes, torch.tensor(expected))
    assert labels.tolist() == [2, 1, 2]
    assert offsets.tolist() == [0, 1, 1, 3]
    assert offsets.dtype == torch.int32
    assert [len(each) for each in pack_targets([], [], 3)] == [0, 0, 1]


@pytest.mark.parametrize(
    ("boxes", "labels", "message"),
    [
        ([[1.0, 1, 5, 5]], [3], r"labels 1\.\.2 for image 1, got \[3\]"),
        ([[1.0, 1, 5, 5]], [0], r"labels 1\.\.2 for image 1, got \[0\]"),
        ([[1.0, 1, 1, 5]], [1], r"x1 < x2 and y1 < y2 for image 1, got \[\[1.0, 1.0, 1.0, 5.0\]\]"),
        ([[1.0, 1, float("nan"), 5]], [1], "x1 < x2 and y1 < y2 for image 1"),
        ([[0.0, 0, float("inf"), 5]], [1], "x1 < x2 and y1 < y2 for image 1"),
        ([1.0, 1, 5, 5], [1], r"want boxes \[n, 4\] and labels \[n\] for image 1"),
        ([[1.0, 1, 5, 5]], [1, 2], r"want boxes \[n, 4\] and labels \[n\] for image 1"),
        ([[1.0, 1, 5, 5]], [1.0], "want int64 labels for image 1"),
    ],
)
def test_bad_targets_name_their_image(boxes, labels, message):
    good = {"boxes": torch.tensor([[0.0, 0, 5, 5]]), "labels": torch.tensor([1])}
    bad = {"boxes": torch.tensor(boxes), "labels": torch.tensor(labels)}
    with pytest.raises(ValueError, match=message):
        pack_targets([good, bad], [(10, 10), (10, 10)], 3)


def test_detections_are_listed():
    boxes, scores = torch.rand(3, 4, 4), torch.rand(3, 4)
    labels, count = torch.arange(12).view(3, 4), torch.tensor([2, 0, 4])
    sides = torch.tensor([[8.0, 4, 8, 4], [1, 1, 1, 1], [2, 3, 2, 3]])
    packed = Detections(boxes, scores, labels, labels, count)
    listed = list_detections(packed, sides)
    for index, found in enumerate(listed):
        most = count[index]
        assert torch.equal(found["boxes"], boxes[index, :most] * sides[index])
        assert torch.equal(found["scores"], scores[index, :most])
        assert torch.equal(found["labels"], labels[index, :most])
    assert list_detections(Detections(*(part[:0] for part in packed)), sides[:0]) == []


def a_list(batch, device="cpu", size=(64, 64)):
    """Images and targets of a batch as torchvision wants them."""
    images = [torch.rand(3, *size, device=device) for _ in batch.images]
    boxes = (batch.gt_boxes * torch.tensor([*size[::-1], *size[::-1]])).to(device)
    each = len(boxes) // len(images)
    pairs = zip(boxes.split(each), batch.gt_labels.to(device).split(each), strict=True)
    return images, [{"boxes": b, "labels": k} for b, k in pairs]


@native
@pytest.mark.parametrize("size", [(64, 64), (48, 80)])
@pytest.mark.parametrize("read", [True, False])
def test_as_many_calls_for_any_list(read, size, monkeypatch):
    """`read`: with the checks that read values on a CPU, which a GPU skips."""
    if not read:
        for name in ("ops._check", "ops.multibox_loss", "lists"):
            module = import_module(f"ssdkern.{name}")
            monkeypatch.setattr(module, "can_read", lambda tensor: False)
    model, counts = ssd_tiny(91, 64), []
    with torch.no_grad():
        model.conf[0].bias.normal_(std=3)
    for batch in map(batch_of, (2, 4, 8)):
        images, targets = a_list(batch, size=size)
        with Calls() as training:
            model.train()(images, targets)
        with torch.no_grad(), Calls() as evaluation:
            model.eval()(images)
        assert not training.masked and not evaluation.masked
        if not read:
            assert not WAITS & set(training.names + evaluation.names)
        counts.append((len(training.names), len(evaluation.names)))
    assert len(set(counts)) == 1, counts


@gpu
@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_a_gpu_is_waited_for_once_and_in_evaluation_only(device):
    model = ssd_tiny(91, 64).cuda()
    images, targets = a_list(batch_of(4), device)
    waits = []
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for training in (True, False):
            model.train(training)
            model(images, targets)  # libraries choose their kernels
            seen.clear()
            torch.cuda.set_sync_debug_mode("warn")
            found = model(images, targets)
            if training:
                sum(found.values()).backward()
            torch.cuda.set_sync_debug_mode("default")
            waits.append(sum("called a synchronizing" in str(each.message) for each in seen))
    assert waits == [0, 1]
