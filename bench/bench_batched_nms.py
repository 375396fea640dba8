import pytest
import torch
import torchvision

from bench.scenes import clusters, generator
from ssdkern import batched_nms


@pytest.mark.parametrize(("count", "classes"), [(8000, 20), (36000, 90)])
def bench_batched_nms(timed, device, count, classes):
    boxes, scores = (t.to(device) for t in clusters(count))
    idxs = torch.randint(classes, (count,), generator=generator()).to(device)
    timed(
        "batched_nms",
        "forward",
        f"N{count}-C{classes}",
        ours=lambda backend: batched_nms(boxes, scores, idxs, 0.45, backend=backend),
        torchvision=lambda: torchvision.ops.batched_nms(boxes, scores, idxs, 0.45),
        nbytes=boxes.nbytes + scores.nbytes + idxs.nbytes,
    )
