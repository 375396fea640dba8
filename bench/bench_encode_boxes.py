import torch
from torchvision.models.detection._utils import BoxCoder

from bench.scenes import priors, random_boxes
from ssdkern import encode_boxes


def bench_encode_boxes(timed, device, batch=32):
    anchors = priors().to(device)
    boxes = random_boxes(batch, len(anchors)).to(device)
    coder, every = BoxCoder((10.0, 10.0, 5.0, 5.0)), anchors.repeat(batch, 1)

    def agree(result, expected):
        """Centres cancel: the bound is relative to the largest offset."""
        error = (result.double() - expected.double()).abs().max()
        assert error <= 2e-6 * expected.abs().max().clamp(min=1)

    timed(
        "encode_boxes",
        "forward",
        f"B{batch}-P{len(anchors)}",
        ours=lambda backend: encode_boxes(boxes, anchors, backend=backend),
        torchvision=lambda: coder.encode_single(boxes.flatten(0, 1), every).view_as(boxes),
        nbytes=2 * boxes.nbytes + anchors.nbytes,
        agree=agree,
    )
    assert torch.isfinite(boxes).all()
