"""The ops of training and detection at the sizes of real models; on a GPU, where this is quick."""

import pytest
from cases import GPU, assert_close, assert_same, cannot, scene
from test_detect import LIMITS, REST, assert_same_detections
from test_multibox_loss import loss_and_gradients, wide_loss_and_gradients

from ssdkern import Detections, detect, match_priors
from ssdkern.ops.detect import detect_torch

# batch, priors, classes, truths of the fullest image
SIZES = [(64, 8732, 21, 300), (32, 8732, 91, 100), (8, 24564, 81, 300), (2, 8732, 1000, 1)]
sizes = pytest.mark.parametrize("size", SIZES, ids=lambda s: "B{}P{}C{}G{}".format(*s))


@pytest.fixture(params=["native", "triton"])
def place(request):
    """("cuda", backend), or a skip with the reason."""
    for op in ("match_priors", "multibox_loss", "detect"):
        if reason := cannot(op, request.param, "cuda"):
            pytest.skip(reason)
    return "cuda", request.param


def check_matching(size, device, backend):
    s = scene(size, device)
    for rule in ("bipartite", "argmax"):
        args = s.priors, s.gt_boxes, s.gt_offsets
        want = match_priors(*args, rule=rule, backend="torch")
        assert_same(match_priors(*args, rule=rule, backend=backend), want)


def check_loss(size, device, backend):
    s = scene(size, device)
    matched = match_priors(*s[2:4], s.gt_offsets, backend="torch")
    want, want_grads = wide_loss_and_gradients(s, matched)
    got, grads = loss_and_gradients(s, backend, matched=matched)
    sides = 2 / 0.01 / 0.1
    assert got.num_positives == want[2]
    assert_close(got.localization, want[0], sides)
    assert_close(got.classification, want[1], scale=1)
    assert_close(grads[0], want_grads[0], scale=1)
    assert_close(grads[1], want_grads[1], sides)


def check_detections(size, device, backend):
    s = scene(size, device)
    logits, offsets = 2 * s.logits, 0.3 * s.offsets
    wide = logits.double(), offsets.double(), s.priors.double()
    want = Detections(*detect_torch(*wide, *LIMITS, *REST))
    assert_same_detections(detect(logits, offsets, s.priors, backend=backend), want)


@pytest.mark.skipif(not GPU, reason="no CUDA device")
@sizes
@pytest.mark.parametrize("check", [check_matching, check_loss, check_detections])
def test_real_sizes(check, size, place):
    check(size, *place)
