import torch
from torchvision.models.detection._utils import BoxCoder

from bench.scenes import priors, random_heads
from ssdkern import decode_boxes


def bench_decode_boxes(timed, device, batch=32):
    anchors = priors().to(device)
    offsets = random_heads(batch, 2)[1].to(device)
    coder = BoxCoder((10.0, 10.0, 5.0, 5.0), bbox_xform_clip=float("inf"))

    def per_image():
        return torch.stack([coder.decode_single(each, anchors) for each in offsets])

    timed(
        "decode_boxes",
        "forward",
        f"B{batch}-P{len(anchors)}",
        ours=lambda backend: decode_boxes(offsets, anchors, backend=backend),
        torchvision=per_image,
        nbytes=2 * offsets.nbytes + anchors.nbytes,
    )
