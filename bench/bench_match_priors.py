import pytest
import torch
import torchvision
from torchvision.models.detection.ssd import det_utils

from bench.scenes import priors, truth
from ssdkern import match_priors


@pytest.mark.parametrize("each", [8, 100])
@pytest.mark.parametrize("rule", ["bipartite", "argmax"])
def bench_match_priors(timed, device, each, rule, batch=32):
    anchors = priors().to(device)
    boxes, _, rows = (t.to(device) for t in truth(batch, each, classes=2))
    matcher = det_utils.SSDMatcher(0.5)

    def per_image():
        return [matcher(torchvision.ops.box_iou(b, anchors)) for b in boxes.split(each)]

    def agree(result, expected):
        """torchvision counts rows from 0 in each image; it has only the argmax rule."""
        if rule == "bipartite" and isinstance(expected, list) and not isinstance(result, list):
            expected = match_priors(anchors, boxes, rows, rule=rule, backend="torch")
        stacked = [torch.stack(r) if isinstance(r, list) else r for r in (result, expected)]
        start = rows[:-1, None]
        local = [
            torch.where(r >= 0, r - start if r.dtype == torch.int32 else r, r) for r in stacked
        ]
        assert torch.equal(*(r.long() for r in local))

    timed(
        "match_priors",
        rule,
        f"B{batch}-G{each}-P{len(anchors)}",
        ours=lambda backend: match_priors(anchors, boxes, rows, rule=rule, backend=backend),
        torchvision=per_image,
        nbytes=anchors.nbytes + boxes.nbytes + 4 * batch * len(anchors),
        agree=agree,
    )
