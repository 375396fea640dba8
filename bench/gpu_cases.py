"""What `bench.gpu_bench` times: every op at the sizes of SSD300 and SSD512."""

from typing import NamedTuple

import torch
import torchvision
from torchvision.models.detection._utils import SSDMatcher
from torchvision.models.detection.ssd import SSD

import ssdkern
from bench.agreement import same_detections, torchvision_ssd
from bench.conftest import same
from bench.scenes import clusters, generator, random_boxes, random_heads, trained_heads, truth


class Case(NamedTuple):
    op: str
    shape: str
    ours: object  # backend -> result
    theirs: object  # () -> result of torchvision, or None
    nbytes: int
    agree: object = same


def size(*tensors):
    return sum(t.nbytes for t in tensors)


def heads_on(device, make, batch, classes, anchors, dtype=torch.float32):
    """Heads for as many priors as `anchors` has, repeated where they are more than SSD300's."""
    logits, offsets = make(batch, classes)
    times = -(-len(anchors) // logits.shape[1])
    heads = (t.repeat(1, times, 1)[:, : len(anchors)] for t in (logits, offsets))
    return [t.to(device, dtype).contiguous() for t in heads]


def match_cases(device, batch):
    for name in ("ssd300-coco", "ssd512-coco"):
        anchors = ssdkern.make_priors(name).to(device)
        for each in (8, 100):
            boxes, _, rows = (t.to(device) for t in truth(batch, each, classes=2))
            matcher = SSDMatcher(0.5)
            for rule in ("bipartite", "argmax"):

                def ours(backend, anchors=anchors, boxes=boxes, rows=rows, rule=rule):
                    return ssdkern.match_priors(anchors, boxes, rows, rule=rule, backend=backend)

                def theirs(anchors=anchors, boxes=boxes, each=each, matcher=matcher):
                    split = boxes.split(each)
                    return [matcher(torchvision.ops.box_iou(b, anchors)) for b in split]

                shape = f"{rule} B{batch} G{each} P{len(anchors)}"
                nbytes = size(anchors, boxes) + 4 * batch * len(anchors)
                reference = theirs if rule == "argmax" else None
                yield Case("match_priors", shape, ours, reference, nbytes)


def loss_cases(device, batch):
    for name, classes, dtype in (
        ("ssd300-coco", 21, torch.float32),
        ("ssd300-coco", 81, torch.float32),
        ("ssd300-coco", 81, torch.bfloat16),
        ("ssd512-coco", 81, torch.float32),
    ):
        anchors = ssdkern.make_priors(name).to(device)
        heads = heads_on(device, trained_heads, batch, classes, anchors, dtype)
        heads = [t.requires_grad_() for t in heads]
        boxes, labels, rows = (t.to(device) for t in truth(batch, 8, classes))
        matched = ssdkern.match_priors(anchors, boxes, rows, backend="torch")

        def ours(backend, heads=heads, scene=(anchors, boxes, labels, rows), matched=matched):
            loss = ssdkern.multibox_loss(*heads, *scene, matched=matched, backend=backend)
            return torch.autograd.grad(loss.localization + loss.classification, heads)

        def agree(result, expected):
            for got, want in zip(result, expected, strict=True):
                wrong = (~((got - want).abs() <= 1e-2 * want.abs().max())).any(-1)
                assert wrong.sum() <= 4, f"{wrong.sum()} rows differ"  # losses next to the cut

        kind = str(dtype).removeprefix("torch.")
        shape = f"forward+backward B{batch} C{classes} P{len(anchors)} {kind}"
        yield Case("multibox_loss", shape, ours, None, 2 * size(*heads), agree)


def detect_cases(device, batch):
    for name, make, classes in (
        ("ssd300-coco", trained_heads, 21),
        ("ssd300-coco", trained_heads, 81),
        ("ssd300-coco", random_heads, 81),
        ("ssd512-coco", trained_heads, 81),
    ):
        anchors = ssdkern.make_priors(name).to(device)
        logits, offsets = heads_on(device, make, batch, classes, anchors)
        ssd = torchvision_ssd()

        def ours(backend, logits=logits, offsets=offsets, anchors=anchors, ssd=ssd):
            bound = ssd.box_coder.bbox_xform_clip
            kwargs = {"max_log_scale": bound, "clip": True, "backend": backend}
            return ssdkern.detect(logits, offsets, anchors, **kwargs)

        def theirs(logits=logits, offsets=offsets, anchors=anchors, ssd=ssd):
            outputs = {"cls_logits": logits, "bbox_regression": offsets}
            shapes = [(300, 300)] * len(logits)
            return SSD.postprocess_detections(ssd, outputs, [anchors * 300] * len(logits), shapes)

        shape = f"{make.__name__.split('_')[0]} B{batch} C{classes} P{len(anchors)}"
        yield Case("detect", shape, ours, theirs, size(logits), lambda a, b: agree_as_lists(a, b))


def agree_as_lists(result, expected):
    side = [300 if isinstance(r, list) else 1 for r in (result, expected)]
    if max(side) == 1:
        return same_detections(result, expected)
    lists = result if isinstance(result, list) else expected
    return same_detections(result if lists is expected else expected, lists, 300)


def agree_on_kept(result, expected):
    """A pair at the threshold may fall either way: torchvision's kernel fuses products and sums."""
    unlike = set(result.tolist()) ^ set(expected.tolist())
    assert len(unlike) <= 1e-3 * len(expected), f"{len(unlike)} of {len(expected)} boxes differ"


def nms_cases(device, counts):
    for count in counts:
        spread = random_boxes(count, smallest=0.5 * count**-0.5, largest=count**-0.5)
        scores = torch.randperm(count, generator=generator()).float() / count
        for kind, inputs in (("clusters", clusters(count)), ("spread", (spread, scores))):
            boxes, scores = (t.to(device) for t in inputs)

            def ours(backend, boxes=boxes, scores=scores):
                return ssdkern.nms(boxes, scores, 0.45, backend=backend)

            def theirs(boxes=boxes, scores=scores):
                return torchvision.ops.nms(boxes, scores, 0.45)

            nbytes = size(boxes, scores)
            yield Case("nms", f"{kind} N{count}", ours, theirs, nbytes, agree_on_kept)


def batched_nms_cases(device, count, classes):
    boxes, scores = (t.to(device) for t in clusters(count))
    idxs = torch.randint(classes, (count,), generator=generator()).to(device)

    def ours(backend):
        return ssdkern.batched_nms(boxes, scores, idxs, 0.45, backend=backend)

    def theirs():
        return torchvision.ops.batched_nms(boxes, scores, idxs, 0.45)

    yield Case("batched_nms", f"N{count} C{classes}", ours, theirs, size(boxes, scores, idxs))


def small_cases(device, batch):
    anchors = ssdkern.make_priors("ssd300-coco").to(device)
    boxes = random_boxes(100).to(device)

    def iou(backend):
        return ssdkern.box_iou(boxes, anchors, backend=backend)

    nbytes = size(boxes, anchors) + 4 * 100 * len(anchors)
    theirs = lambda: torchvision.ops.box_iou(boxes, anchors)  # noqa: E731
    yield Case("box_iou", f"100x{len(anchors)}", iou, theirs, nbytes)

    scores, offsets = heads_on(device, trained_heads, batch, 21, anchors)
    decoded = ssdkern.decode_boxes(offsets, anchors, backend="torch")
    rank, scores = -scores.log_softmax(-1)[..., 0].contiguous(), scores.softmax(-1)
    positive = torch.rand(rank.shape, generator=generator()).to(device) < 0.01
    coding = {"decode_boxes": offsets, "encode_boxes": decoded}
    for op, values in coding.items():
        run = getattr(ssdkern, op)
        call = lambda backend, run=run, x=values: run(x, anchors, backend=backend)  # noqa: E731
        yield Case(op, f"B{batch} P{len(anchors)}", call, None, 2 * size(values) + size(anchors))

    def mine(backend):
        return ssdkern.mine_hard_negatives(rank, positive, backend=backend)

    def multiclass(backend):
        return ssdkern.multiclass_nms(decoded, scores, backend=backend)

    nbytes = size(rank) + 2 * size(positive)
    yield Case("mine_hard_negatives", f"B{batch} P{len(anchors)}", mine, None, nbytes)
    shape = f"trained B{batch} C21 P{len(anchors)}"
    yield Case("multiclass_nms", shape, multiclass, None, size(scores), agree_as_lists)


def cases(device, small):
    batch = 2 if small else 32
    yield from small_cases(device, batch)
    yield from match_cases(device, batch)
    yield from loss_cases(device, batch)
    yield from detect_cases(device, batch)
    yield from nms_cases(device, (100, 9000) if small else (100, 1000, 10_000, 100_000))
    yield from batched_nms_cases(device, 500 if small else 36_000, 90)
