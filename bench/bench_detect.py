import pytest
from torchvision.models.detection.ssd import SSD

from bench.agreement import same_detections, torchvision_ssd
from bench.scenes import priors, random_heads, trained_heads
from ssdkern import detect

SIDE = 300  # torchvision works in pixels


@pytest.mark.parametrize("heads", [trained_heads, random_heads], ids=["trained", "random"])
@pytest.mark.parametrize("classes", [21, 91])
def bench_detect(timed, device, heads, classes, batch=8):
    anchors = priors().to(device)
    logits, offsets = (t.to(device) for t in heads(batch, classes))
    ssd = torchvision_ssd()
    scale = ssd.box_coder.bbox_xform_clip

    def theirs():
        outputs = {"cls_logits": logits, "bbox_regression": offsets}
        shapes = [(SIDE, SIDE)] * batch
        return SSD.postprocess_detections(ssd, outputs, [anchors * SIDE] * batch, shapes)

    timed(
        "detect",
        heads.__name__.removesuffix("_heads"),
        f"B{batch}-C{classes}",
        ours=lambda backend: detect(
            logits, offsets, anchors, max_log_scale=scale, clip=True, backend=backend
        ),
        torchvision=theirs,
        nbytes=logits.nbytes,
        agree=lambda result, expected: same_detections(result, expected, SIDE),
    )
