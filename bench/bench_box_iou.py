import pytest
import torchvision

from bench.scenes import priors, random_boxes
from ssdkern import box_iou


@pytest.mark.parametrize("count", [8, 100])
def bench_box_iou(timed, device, count):
    truth, anchors = random_boxes(count).to(device), priors().to(device)
    timed(
        "box_iou",
        "forward",
        f"{count}x{len(anchors)}",
        ours=lambda backend: box_iou(truth, anchors, backend=backend),
        torchvision=lambda: torchvision.ops.box_iou(truth, anchors),
        nbytes=truth.nbytes + anchors.nbytes + 4 * count * len(anchors),
    )
