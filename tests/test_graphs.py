"""CUDA graphs of the detector and of the training step, against the same without a graph."""

import pytest
import torch
from test_train import Scenes, options
from test_whole import batch_of, gradients

import ssdkern
from ssdkern import why_not
from ssdkern.graphs import CapturedBackward
from ssdkern.model import ssd_tiny
from ssdkern.train import fit

NEEDS = [
    why_not(op, "native", "cuda") and why_not(op, "triton", "cuda")
    for op in ("detect", "match_priors", "multibox_loss")
]
REASON = "no CUDA device" if not torch.cuda.is_available() else next(filter(None, NEEDS), None)
gpu = pytest.mark.skipif(REASON is not None, reason=str(REASON))


def test_a_cpu_is_refused():
    model, batch = ssd_tiny(5, 64), batch_of(2, classes=5)
    with pytest.raises(ValueError, match="want a model on a CUDA device to capture, got cpu"):
        ssdkern.capture(model.eval(), batch.images)
    with pytest.raises(ValueError, match="want a model on a CUDA device to capture, got cpu"):
        CapturedBackward(model, batch, None)


@gpu
def test_detections():
    model = ssd_tiny(91, 64).cuda()
    with torch.no_grad():
        model.conf[0].bias.normal_(std=3)
    with pytest.raises(ValueError, match="want a model in eval mode"):
        ssdkern.capture(model, batch_of(4).images)
    detector = ssdkern.capture(model.eval(), batch_of(4).images)
    for _ in range(3):
        images = batch_of(4).images.cuda()
        with torch.no_grad():
            expected = model.detect(images)
        for one, other in zip(detector(images), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r"want images \[4, 3, 64, 64\] of torch.uint8 as"):
        detector(images[:2])


@gpu
@pytest.mark.parametrize("normalizer", [None, 1.0])
def test_gradients(normalizer):
    model = ssd_tiny(5, 64).cuda().eval()
    captured = CapturedBackward(model, batch_of(3, 2, classes=5), normalizer)
    for truths in (2, 7, 0, 3):  # more than there is room for, none, and fewer
        batch = batch_of(3, truths, classes=5)
        torch._foreach_zero_([parameter.grad for parameter in model.parameters()])
        found = captured(batch)
        grads = [parameter.grad.clone() for parameter in model.parameters()]
        loss = model.loss(*(part.cuda() for part in batch), normalizer=normalizer)
        torch.testing.assert_close(found, torch.stack([each.float() for each in loss]))
        kept = [parameter.grad for parameter in model.parameters()]
        for one, other in zip(grads, gradients(model, loss), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
        for parameter, grad in zip(model.parameters(), kept, strict=True):
            parameter.grad = grad


@gpu
@pytest.mark.parametrize("more", [{}, {"accumulate": 2}, {"amp": "bf16"}, {"optimizer": "sgd"}])
def test_training(more, tmp_path):
    trained = []
    for graph in (False, True):
        given = {"device": "cuda", "steps": 5, "cuda_graph": graph, **more}
        settings = options(tmp_path / str(graph), **given)
        trained.append(fit(*settings, Scenes(), None)[1].model)
    for one, other in zip(*(model.parameters() for model in trained), strict=True):
        torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-3)
