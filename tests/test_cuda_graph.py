"""On a GPU: CUDA graphs, streams and repeated runs of every op of fixed size."""

import pytest
import torch
from cases import GPU, cannot, random_boxes, scene

import ssdkern

pytestmark = pytest.mark.skipif(not GPU, reason="no CUDA device")
backends = pytest.mark.parametrize("backend", ["native", "triton"])
SIZE = (3, 300, 21, 8)


def match(s, backend):
    kwargs = {"backend": backend}
    rules = ("bipartite", "argmax")
    return [
        ssdkern.match_priors(s.priors, s.gt_boxes, s.gt_offsets, rule=r, **kwargs) for r in rules
    ]


def loss(s, backend):
    heads = [s.logits.requires_grad_(), s.offsets.requires_grad_()]
    out = ssdkern.multibox_loss(*heads, *s[2:], backend=backend)
    return [*out, *torch.autograd.grad(out.localization + out.classification, heads)]


def detections(s, backend):
    boxes = ssdkern.decode_boxes(s.offsets, s.priors, backend=backend)
    scores = s.logits.softmax(-1)
    given = ssdkern.multiclass_nms(boxes, scores, backend=backend)
    return [*ssdkern.detect(s.logits, s.offsets, s.priors, backend=backend), *given]


def small(s, backend):
    rank, positive = s.logits[..., 0].contiguous(), s.logits[..., 1] > 2
    boxes = ssdkern.decode_boxes(s.offsets, s.priors, backend=backend)
    return [
        ssdkern.box_iou(s.gt_boxes, s.priors, backend=backend),
        ssdkern.encode_boxes(boxes, s.priors, backend=backend),
        ssdkern.mine_hard_negatives(rank, positive, backend=backend),
    ]


jobs = pytest.mark.parametrize("job", [match, loss, detections, small])
OPS = {match: "match_priors", loss: "multibox_loss", detections: "detect", small: "box_iou"}


def need(job, backend):
    if reason := cannot(OPS[job], backend, "cuda"):
        pytest.skip(reason)


def fresh(seed):
    torch.manual_seed(seed)
    return scene(SIZE, "cuda")


def assert_equal(got, expected):
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@backends
@jobs
def test_graph_replays_on_new_data(job, backend):
    need(job, backend)
    inputs = fresh(0)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            job(inputs, backend)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = job(inputs, backend)
    total = len(inputs.gt_boxes)
    for seed in (1, 2):
        new = fresh(seed)
        rows = new.gt_offsets.clamp(max=total)
        keep = [new.logits, new.offsets, new.priors, inputs.gt_boxes, inputs.gt_labels, rows]
        keep[3] = random_boxes(total).to("cuda")
        with torch.no_grad():
            for to, value in zip(inputs, keep, strict=True):
                to.copy_(value)
        graph.replay()
        expected = job(type(inputs)(*(t.detach().clone() for t in inputs)), backend)
        assert_equal(outputs, expected)


@backends
@jobs
def test_runs_on_the_current_stream(job, backend):
    """The inputs are written on another stream, late: who uses the default one reads old data."""
    need(job, backend)
    inputs, late = fresh(0), fresh(0)
    expected = job(inputs, backend)
    side = torch.cuda.Stream()
    late.logits.data.zero_()
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        torch.cuda._sleep(20_000_000)
        late.logits.data.copy_(inputs.logits)
        got = job(late, backend)
    side.synchronize()
    assert_equal(got, expected)


@backends
@jobs
def test_every_run_gives_the_same_bits(job, backend):
    need(job, backend)
    inputs = fresh(3)
    first = job(inputs, backend)
    for _ in range(20):
        assert_equal(job(inputs, backend), first)


@backends
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device")
@jobs
def test_runs_on_the_device_of_its_inputs(job, backend):
    need(job, backend)
    inputs = fresh(4)
    other = inputs.to("cuda:1")
    assert_equal([t.to("cuda:0") for t in job(other, backend)], job(inputs, backend))
