"""Random and awkward inputs of the native ops on boxes against the reference: integers and IoU
exactly, values through exp and log within 2e-6."""

import torch
from cases import assert_same, needs_native
from fuzz_inputs import INF, NAN, Inputs, assert_values, both, counts, fuzz, iou_thresholds
from torchvision.ops import nms as torchvision_nms

import ssdkern

CODED = {"scales": (1.0, 1.0, 300.0, 1e-6, 1e10)}


def gradient(function, inputs, weight):
    inputs = [t.detach().requires_grad_() for t in inputs]
    out = function(*inputs)
    return torch.autograd.grad(out, inputs, weight.to(out))


def larger_of_pair(boxes):
    """By corner, the size of the terms of c - h and c + h."""
    return torch.maximum(boxes.abs(), boxes.roll(2, -1).abs())


@needs_native("box_iou")
@fuzz(150)
def test_box_iou(device, data):
    inputs = Inputs(data.draw)
    lead = inputs.one_of((), (1,), (3,), (2, 2), (0,))
    left = inputs.boxes(*lead, data.draw(counts))
    right = inputs.boxes(*inputs.one_of(lead, ()), data.draw(counts))
    assert_same(*both("box_iou", device, inputs.floats(left), inputs.floats(right)))


@needs_native("box_iou_backward")
@fuzz(60)
def test_box_iou_gradient(device, data):
    inputs = Inputs(data.draw)
    sane = {"kinds": ("random", "grid"), "scales": (1.0, 256.0)}
    boxes = [inputs.boxes(data.draw(counts), **sane).to(inputs.compute) for _ in range(2)]
    for b in boxes:
        b[:, 2:] = torch.maximum(b[:, 2:], b[:, :2] + 0.05)  # no 0/0
    weight = inputs.rand(len(boxes[0]), len(boxes[1]))
    wide = [b.double() for b in boxes]
    want = gradient(lambda a, b: ssdkern.box_iou(a, b, backend="torch"), wide, weight)
    got = gradient(
        lambda a, b: ssdkern.box_iou(a, b, backend="native"), [b.to(device) for b in boxes], weight
    )
    for ours, theirs in zip(got, want, strict=True):
        terms = sum(weight.shape) * 256 / 0.05
        assert_values(ours, theirs, torch.full_like(theirs, terms))


@needs_native("encode_boxes")
@fuzz(120)
def test_encode_boxes(device, data):
    inputs = Inputs(data.draw)
    priors = inputs.boxes(data.draw(counts), **CODED)
    boxes = inputs.boxes(*inputs.one_of((), (1,), (3,), (0,)), len(priors), **CODED)
    variances = {"variances": inputs.one_of((0.1, 0.2), (1.0, 1.0), (1e-3, 7.0))}
    boxes, priors = inputs.floats(boxes), inputs.floats(priors)
    got, want = both("encode_boxes", device, boxes, priors, **variances)
    assert_same(got[..., :2], want[..., :2])
    assert_values(got[..., 2:], want[..., 2:], want[..., 2:].abs())

    def run(backend):
        tensors = (boxes, priors) if backend == "torch" else (boxes.to(device), priors.to(device))
        return gradient(
            lambda b: ssdkern.encode_boxes(b, tensors[1], **variances, backend=backend),
            [tensors[0].to(inputs.compute)],
            torch.ones(boxes.shape),
        )[0]

    # what is not finite has no gradient to agree on
    finite = (boxes.isfinite() & priors.isfinite()).all(-1, keepdim=True)
    got, want = (torch.where(finite, run(b).cpu(), 0) for b in ("native", "torch"))
    assert_values(got, want, larger_of_pair(want))


@needs_native("decode_boxes")
@fuzz(120)
def test_decode_boxes(device, data):
    inputs = Inputs(data.draw)
    priors = inputs.boxes(data.draw(counts), **CODED)
    shape = (*inputs.one_of((), (1,), (3,), (0,)), len(priors), 4)
    offsets = inputs.randn(*shape) * inputs.one_of(1.0, 1.0, 10.0)
    if inputs.one_of(False, True):
        offsets = inputs.strew(offsets, (0.0, -0.0, NAN, INF, -INF, 1e4, -1e4))
    kwargs = {
        "variances": inputs.one_of((0.1, 0.2), (1.0, 1.0)),
        "max_log_scale": inputs.one_of(None, 4.0, 0.0, -1.0),
    }
    offsets, priors = inputs.floats(offsets), inputs.floats(priors)
    got, want = both("decode_boxes", device, offsets, priors, **kwargs)
    assert_values(got, want, larger_of_pair(want) + 1e-30)

    def run(backend, where):
        return gradient(
            lambda o: ssdkern.decode_boxes(o, priors.to(where), **kwargs, backend=backend),
            [offsets.to(where, inputs.compute)],
            torch.arange(offsets.numel()).view(shape).to(where),
        )[0]

    finite = (offsets.isfinite() & priors.isfinite()).all(-1, keepdim=True)
    runs = run("native", device).cpu(), run("torch", "cpu")
    got, want = (torch.where(finite, grad, 0) for grad in runs)
    assert_values(got, want, want.abs())


@needs_native("nms")
@fuzz(150)
def test_nms(device, data):
    inputs = Inputs(data.draw)
    boxes = inputs.boxes(data.draw(counts))
    tensors = inputs.floats(boxes), inputs.floats(inputs.scores(len(boxes)))
    threshold = data.draw(iou_thresholds)
    assert_same(*both("nms", device, *tensors, iou_threshold=threshold))


@needs_native("nms")
@fuzz(10)
def test_nms_of_many(device, data):
    """Sizes at which sorting and suppression change their ways, against torchvision."""
    inputs = Inputs(data.draw)
    count = inputs.one_of(1023, 1024, 2047, 2048, 2049, 2560, 2561, 6000)
    corner, side = inputs.rand(count, 2), 0.005 + inputs.rand(count, 2) / 30
    boxes = torch.cat((corner, corner + side), dim=1).to(inputs.compute)
    scores = inputs.scores(count).to(inputs.compute)
    for threshold in (0.0, 0.3):
        got = ssdkern.nms(boxes.to(device), scores.to(device), threshold, backend="native")
        assert_same(got, torchvision_nms(boxes, scores, threshold))


@needs_native("batched_nms")
@fuzz(120)
def test_batched_nms(device, data):
    inputs = Inputs(data.draw)
    boxes = inputs.boxes(data.draw(counts))
    count = len(boxes)
    few = inputs.randint(-2, 3, (count,))
    idxs = inputs.one_of(
        few,
        few * 2**62,
        few.bool(),
        few.int() * 2000,
        inputs.randint(-(2**63), 2**63 - 1, (count,)),
        inputs.strew(few.double(), (0.0, -0.0, 0.5, NAN, INF)),
    )
    tensors = inputs.floats(boxes), inputs.floats(inputs.scores(count)), inputs.lay_out(idxs)
    threshold = data.draw(iou_thresholds)
    assert_same(*both("batched_nms", device, *tensors, iou_threshold=threshold))


def limits(inputs):
    return {
        "iou_threshold": inputs.draw(iou_thresholds),
        "nms_top_k": inputs.one_of(1, 2, 16, 40, 400, 10**12),
        "keep_top_k": inputs.one_of(1, 3, 40, 200),
    }


@needs_native("multiclass_nms")
@fuzz(100)
def test_multiclass_nms(device, data):
    inputs = Inputs(data.draw)
    grid = inputs.one_of(0, 1, 2, 3), data.draw(counts)
    boxes = inputs.boxes(*grid)
    scores = inputs.scores(*grid, inputs.one_of(0, 1, 2, 5, 16, 17, 18, 33))
    threshold = inputs.one_of(0.01, 0.25, 0.0, -1.0, 1.0, NAN, INF, -INF)
    kwargs = {"score_threshold": threshold, **limits(inputs)}
    tensors = inputs.floats(boxes), inputs.floats(scores)
    for got, want in zip(*both("multiclass_nms", device, *tensors, **kwargs), strict=True):
        assert_same(got, want)


def hangs_on_rounding(logits, offsets, priors, threshold, kwargs):
    """Whether a decision of `detect` depends on the last bits of a score or of an IoU."""
    scores = logits.double().softmax(-1)[..., 1:]
    near = ((scores / threshold - 1).abs() < 4e-6).any()
    for image in scores.flatten(1):
        values = image.unique()
        near |= (values.diff() < 4e-6 * values[1:]).any()
    boxes = ssdkern.decode_boxes(offsets.double(), priors.double(), backend="torch")
    boxes = boxes.clamp(0, 1) if kwargs["clip"] else boxes
    iou = ssdkern.box_iou(boxes, boxes, backend="torch")
    shortest = (boxes[..., 2:] - boxes[..., :2]).amin(-1)  # [B, P]
    slack = 1e-5 / torch.minimum(shortest[:, None], shortest[..., None])
    return bool(near | (((iou - kwargs["iou_threshold"]).abs() < slack) & (iou > 0)).any())


@needs_native("detect")
def test_detect(device):
    asked = unclear = 0

    @fuzz(100)
    def check(data):
        nonlocal asked, unclear
        inputs = Inputs(data.draw)
        grid, classes = (inputs.one_of(0, 1, 2, 3), data.draw(counts)), inputs.one_of(1, 2, 5, 17)
        rows = 3 * inputs.randn(inputs.one_of(2, 7, 10**4), classes)
        rows[:, :1] += inputs.one_of(0.0, 4.0)
        logits = rows[inputs.randint(0, len(rows), grid)]
        priors = inputs.boxes(grid[1], kinds=("random",), scales=(1.0,))
        tensors = [inputs.floats(t) for t in (logits, 0.5 * inputs.randn(*grid, 4), priors)]
        threshold = inputs.one_of(0.01, 0.2, 0.9, 1e-6)
        kwargs = {"score_threshold": threshold, "clip": inputs.one_of(False, True)}
        kwargs |= limits(inputs)
        got, want = both("detect", device, *tensors, **kwargs)
        again = both("detect", device, *tensors, **kwargs)[0]
        assert all(map(torch.equal, got, again))
        asked += 1
        if hangs_on_rounding(*tensors, threshold, kwargs):
            unclear += 1
            return
        for name in ("labels", "prior_index", "count"):
            assert_same(getattr(got, name), getattr(want, name))
        assert_values(got.scores, want.scores, want.scores)
        assert_values(got.boxes, want.boxes, larger_of_pair(want.boxes) + 1)

    check()
    assert unclear <= asked / 4, f"{unclear} of {asked} examples hang on rounding"
