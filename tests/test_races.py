"""Triton kernels have no data race, which their interpreter, one thread, would never show.

Two accesses race where one of them is a store, and no barrier of one program lies between them.
"""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import INTERPRETED, random_boxes, scene

import ssdkern.kernels
from ssdkern import ops

triton = pytest.importorskip("triton")

pytestmark = [
    pytest.mark.ops,
    pytest.mark.skipif(not INTERPRETED, reason="watches the interpreter: TRITON_INTERPRET=1"),
]
KERNELS = str(Path(ssdkern.kernels.__file__).parent)


def line():
    """The line of a kernel that makes this access."""
    frame = sys._getframe(2)
    while not frame.f_code.co_filename.startswith(KERNELS):
        frame = frame.f_back
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"


class Watch:
    """The accesses of a program since its last barrier, and those of the programs before it."""

    def __init__(self):
        self.races = set()
        self.launch()

    def launch(self):
        self.loads, self.stores = [], []
        self.own = self.others = np.zeros(0, np.uint64), np.zeros(0, np.uint64)

    def barrier(self):
        for i, (at, addresses) in enumerate(self.stores):
            # a line that stores what it loaded is one read-modify-write
            accesses = [pair for pair in self.loads if pair[0] != at] + self.stores[:i]
            self.races |= {(at, other) for other, them in accesses if meet(addresses, them)}
        kinds = zip(self.own, (self.loads, self.stores), strict=True)
        self.own = tuple(np.concatenate((all_, *(a for _, a in new))) for all_, new in kinds)
        self.loads, self.stores = [], []

    def program(self):
        self.barrier()
        (loads, stores), (loaded, stored) = self.own, self.others
        if meet(stores, stored) or meet(stores, loaded) or meet(loads, stored):
            self.races.add("programs of one launch")
        self.others = np.concatenate((loaded, loads)), np.concatenate((stored, stores))
        self.own = np.zeros(0, np.uint64), np.zeros(0, np.uint64)


def meet(a, b):
    return len(np.intersect1d(a, b)) > 0


@pytest.fixture
def watch(monkeypatch):
    from triton.runtime.interpreter import InterpreterBuilder

    watch = Watch()

    def before(name, note):
        method = getattr(InterpreterBuilder, name)

        def noted(self, *args):
            note(*args)
            return method(self, *args)

        monkeypatch.setattr(InterpreterBuilder, name, noted)

    def touched(pointers, mask):
        return pointers.data[np.broadcast_to(mask.data, pointers.data.shape).astype(bool)]

    def load(pointers, mask, *_):
        watch.loads.append((line(), touched(pointers, mask)))

    def store(pointers, values, mask, *_):
        watch.stores.append((line(), touched(pointers, mask)))

    before("create_masked_load", load)
    before("create_masked_store", store)
    before("create_barrier", watch.barrier)
    before("set_grid_idx", lambda *_: watch.program())
    before("set_grid_dim", lambda *_: (watch.program(), watch.launch()))
    yield watch
    watch.program()
    assert not watch.races


@pytest.mark.usefixtures("watch")
@pytest.mark.parametrize("rule", ["bipartite", "argmax"])
def test_match_priors_triton(rule):
    """More rows than a block has, of which most want the same few priors."""
    priors = random_boxes(60)
    truth = priors[torch.randint(6, (80,))] + 0.01 * torch.rand(80, 1)
    offsets = torch.tensor([0, 70, 80]).int()
    got, want = (
        ops.match_priors(priors, truth, offsets, rule=rule, backend=backend)
        for backend in ("triton", "torch")
    )
    assert torch.equal(got, want)


@pytest.mark.usefixtures("watch")
@pytest.mark.parametrize("op", ["detect", "multiclass_nms"])
def test_detections_triton(op, monkeypatch):
    """Several classes a program, more candidates than nms_top_k, and scores at the threshold."""
    from ssdkern.kernels import multiclass_nms

    monkeypatch.setattr(multiclass_nms, "PROGRAMS", 1)
    s = scene((1, 1100, 3, 0))
    logits = 3 * s.logits
    logits[0, 7] = 0
    limits = {"score_threshold": 1 / 3, "nms_top_k": 70, "keep_top_k": 50}
    if op == "detect":
        ops.detect(logits, s.offsets, s.priors, **limits, backend="triton")
        return
    boxes, scores = s.priors[None], logits.softmax(-1)
    got, want = (
        ops.multiclass_nms(boxes, scores, **limits, backend=backend)
        for backend in ("triton", "torch")
    )
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.usefixtures("watch")
def test_nms_triton():
    """More blocks than are resolved ahead."""
    boxes, scores = random_boxes(450), torch.rand(450)
    got, want = (ops.nms(boxes, scores, 0.4, backend=backend) for backend in ("triton", "torch"))
    assert torch.equal(got, want)


@pytest.mark.usefixtures("watch")
def test_losses_triton():
    s = scene((2, 300, 5, 8))
    leaves = s.logits.requires_grad_(), s.offsets.requires_grad_()
    loss = ops.multibox_loss(*leaves, *s[2:], backend="triton")
    (loss.localization + loss.classification).backward()
    loss, positive = torch.rand(2, 5000), torch.rand(2, 5000) < 0.1
    ops.mine_hard_negatives(loss, positive, backend="triton")


@pytest.mark.usefixtures("watch")
def test_boxes_triton():
    boxes = random_boxes(300).requires_grad_()
    ops.box_iou(boxes, random_boxes(20), backend="triton").sum().backward()
    ops.encode_boxes(boxes, random_boxes(300), backend="triton").sum().backward()
    ops.decode_boxes(boxes, random_boxes(300), backend="triton").sum().backward()
