import pytest
import torchvision

from bench.scenes import clusters
from ssdkern import nms


@pytest.mark.parametrize("count", [400, 1000, 4000, 16000])
def bench_nms(timed, device, count):
    boxes, scores = (t.to(device) for t in clusters(count))
    timed(
        "nms",
        "forward",
        f"N{count}",
        ours=lambda backend: nms(boxes, scores, 0.45, backend=backend),
        torchvision=lambda: torchvision.ops.nms(boxes, scores, 0.45),
        nbytes=boxes.nbytes + scores.nbytes,
    )
