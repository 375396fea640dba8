"""CUDA graphs of the detector and of the training step, against the same without a graph."""

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from test_train import Scenes, options
from test_whole import batch_of, gradients

import ssdkern
from ssdkern import graphs, why_not
from ssdkern.graphs import CapturedBackward, tuned
from ssdkern.model import ssd_tiny
from ssdkern.train import fit, make_model

NEEDS = [
    why_not(op, "native", "cuda") and why_not(op, "triton", "cuda")
    for op in ("detect", "match_priors", "multibox_loss")
]
REASON = "no CUDA device" if not torch.cuda.is_available() else next(filter(None, NEEDS), None)
gpu = pytest.mark.skipif(REASON is not None, reason=str(REASON))


@pytest.fixture(autouse=True)
def exact(monkeypatch):
    """Convolutions in float32 proper, each time by the same algorithm."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)


class Repeated:
    """In place of a CUDA graph: runs the function again, into the memory of its first result."""

    def __init__(self, run):
        for _ in range(3):
            self.result = run()
        self.run = run

    def replay(self):
        for kept, new in zip(self.result, self.run(), strict=True):
            kept.copy_(new)


@pytest.fixture
def recorded(monkeypatch):
    """The graphs that were recorded, on a CPU."""
    recorded = []

    def record(run, device):
        graph = Repeated(run)
        recorded.append(weakref.ref(graph))
        return graph, graph.result

    monkeypatch.setattr(graphs, "_record", record)
    monkeypatch.setattr(graphs, "_want_cuda", lambda model: None)
    monkeypatch.setattr(graphs, "_want_capturable", lambda op, backend: None)
    return recorded


def laid_out(model, device):
    """In the layout that a step is captured in; batch normalisation as it is."""
    return model.to(device, memory_format=torch.channels_last).eval()


def compare(model, captured, batch, normalizer):
    """The gradients that a captured step adds, and those of the same model without."""
    device = model.mean.device
    torch._foreach_zero_([parameter.grad for parameter in model.parameters()])
    found = captured(batch)
    kept = [parameter.grad for parameter in model.parameters()]
    grads = [grad.clone() for grad in kept]
    images, *truth = (part.to(device) for part in batch)
    images = images.contiguous(memory_format=torch.channels_last)
    with tuned():  # to the algorithms that were captured
        loss = model.loss(images, *truth, normalizer=normalizer)
        torch.testing.assert_close(found[2], loss.num_positives.float(), rtol=0, atol=0)
        expected = torch.stack([each.detach().float() for each in loss])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        for one, other in zip(grads, gradients(model, loss), strict=True):
            bound = 1e-3 * other.abs().max().item()
            torch.testing.assert_close(one, other, rtol=0, atol=bound + 1e-6)
    for parameter, grad in zip(model.parameters(), kept, strict=True):
        parameter.grad = grad


def same(found, expected):
    """But for decisions that hang on rounding: few, of as many."""
    torch.testing.assert_close(found.count, expected.count)
    torch.testing.assert_close(found.scores.sum(1), expected.scores.sum(1), rtol=1e-3, atol=1e-4)
    for index, count in enumerate(expected.count.tolist()):
        one, other = (
            set(zip(d.prior_index[index, :count].tolist(), d.labels[index].tolist(), strict=False))
            for d in (found, expected)
        )
        assert len(one & other) >= 0.95 * count


def detect(device, compile):
    model = ssd_tiny(91, 64).to(device)
    with torch.no_grad():
        model.conf[0].bias.normal_(std=3)
    with pytest.raises(ValueError, match="want a model in eval mode"):
        ssdkern.capture(model, batch_of(4).images)
    detector = ssdkern.capture(model.eval(), batch_of(4).images, compile=compile)
    for _ in range(3):
        images = batch_of(4).images.to(device)
        with torch.no_grad():
            expected = model.detect(images)
        same(detector(images), expected)
    with pytest.raises(ValueError, match=r"want images \[4, 3, 64, 64\] of torch.uint8 as"):
        detector(images[:2])


def ways(device, output, more):
    """Where the weights go in five steps without a graph, and with one."""
    more = {"device": device, "steps": 5, "optimizer": "sgd", "lr": 0.01, **more}
    for graph in (False, True):
        settings, recipe = options(output / str(graph), **more)
        settings.cuda_graph = graph
        start, _ = make_model(settings, recipe, len(Scenes().class_names) + 1)
        model = fit(settings, recipe, Scenes(), None)[1].model
        pairs = zip(model.parameters(), start.parameters(), strict=True)
        yield torch.cat([(end - begin).detach().flatten() for end, begin in pairs])


def test_a_cpu_is_refused():
    model, batch = ssd_tiny(5, 64), batch_of(2, classes=5)
    with pytest.raises(ValueError, match="want a model on a CUDA device to capture, got cpu"):
        ssdkern.capture(model.eval(), batch.images)
    with pytest.raises(ValueError, match="want a model on a CUDA device to capture, got cpu"):
        CapturedBackward(model, batch, None)


@pytest.mark.parametrize("compile", [False, True])
def test_detections_by_what_is_repeated(recorded, monkeypatch, compile):
    without_inductor = partial(torch.compile, backend="aot_eager")
    monkeypatch.setattr(torch, "compile", without_inductor)
    detect("cpu", compile)


@pytest.mark.parametrize("normalizer", [None, 1.0])
def test_gradients_by_what_is_repeated(recorded, normalizer):
    model = laid_out(ssd_tiny(5, 64), "cpu")
    captured = CapturedBackward(model, batch_of(3, 2, classes=5), normalizer)
    for truths in (2, 7, 0, 3):
        compare(model, captured, batch_of(3, truths, classes=5), normalizer)
    gc.collect()
    assert [graph() is None for graph in recorded] == [True, False]


def test_an_older_graph_is_gone_before_another_is_recorded(recorded, monkeypatch):
    record, alive = graphs._record, []

    def watched(*given):
        alive.append(sum(graph() is not None for graph in recorded))
        return record(*given)

    monkeypatch.setattr(graphs, "_record", watched)
    captured = CapturedBackward(ssd_tiny(5, 64), batch_of(2, 2, classes=5), None)
    captured(batch_of(2, 9, classes=5))
    assert alive == [0, 0]


def test_recording_is_no_step(recorded):
    model = ssd_tiny(5, 64).train()
    before = [buffer.clone() for buffer in model.buffers()]
    CapturedBackward(model, batch_of(2, classes=5), None)
    assert all(map(torch.equal, model.buffers(), before))
    assert not any(parameter.grad.any() for parameter in model.parameters())


def test_gradients_that_went_elsewhere_are_missed(recorded):
    model, batch = ssd_tiny(5, 64), batch_of(2, classes=5)
    captured = CapturedBackward(model, batch, None)
    model.zero_grad(set_to_none=False)
    captured(batch)
    model.zero_grad()
    with pytest.raises(RuntimeError, match="want the gradients that were captured, got others"):
        captured(batch)


def test_the_backend_of_the_model_counts(monkeypatch):
    monkeypatch.setattr(graphs, "_want_cuda", lambda model: None)
    model = ssd_tiny(5, 64, backend="torch")
    with pytest.raises(RuntimeError, match="to capture match_priors, got the torch backend"):
        CapturedBackward(model, batch_of(2, classes=5), None)


def test_tuning_ends():
    assert not torch.backends.cudnn.benchmark
    with pytest.raises(KeyError), tuned():
        assert torch.backends.cudnn.benchmark
        raise KeyError
    assert not torch.backends.cudnn.benchmark


@pytest.mark.parametrize("more", [{}, {"accumulate": 2}, {"workers": 2}, {"optimizer": "adamw"}])
def test_training_by_what_is_repeated(recorded, more, tmp_path):
    eager, captured = ways("cpu", tmp_path, more)
    assert len(recorded) == 1
    assert (captured - eager).norm() < 0.05 * eager.norm()


@gpu
@pytest.mark.parametrize("compile", [False, True])
def test_detections(compile):
    detect("cuda", compile)


@gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two GPUs")
def test_another_gpu_than_the_current_one():
    model, batch = laid_out(ssd_tiny(5, 64), "cuda:1"), batch_of(3, classes=5)
    assert torch.cuda.current_device() == 0
    detector = ssdkern.capture(model, batch.images)
    with torch.no_grad():
        expected = model.detect(batch.images.to("cuda:1"))
    same(detector(batch.images), expected)
    captured = CapturedBackward(model, batch_of(3, 2, classes=5), None)
    for truths in (2, 7):
        compare(model, captured, batch_of(3, truths, classes=5), None)


@gpu
@pytest.mark.parametrize("normalizer", [None, 1.0])
def test_gradients(normalizer):
    model = laid_out(ssd_tiny(5, 64), "cuda")
    captured = CapturedBackward(model, batch_of(3, 2, classes=5), normalizer)
    for truths in (2, 7, 0, 3):  # more than there is room for, none, and fewer
        compare(model, captured, batch_of(3, truths, classes=5), normalizer)


@gpu
def test_memory_may_be_pinned_while_recording():
    """As the thread of a loader does; it is new each time, so that no cache has it."""
    model, batch = laid_out(ssd_tiny(5, 64), "cuda"), batch_of(2, 2, classes=5)
    pinned = []

    def loss(*given, **more):
        if torch.cuda.is_current_stream_capturing():
            with ThreadPoolExecutor(1) as thread:
                pinned.append(thread.submit(torch.zeros(5_000_000).pin_memory).result())
        return model.loss(*given, **more)

    captured = CapturedBackward(model, batch, None, loss=loss)
    assert len(pinned) == 1
    compare(model, captured, batch, None)


@gpu
@pytest.mark.parametrize(
    ("more", "bound"),
    [
        ({}, 0.05),
        ({"accumulate": 2}, 0.05),
        ({"workers": 2}, 0.05),
        ({"compile": True}, 0.05),
        ({"amp": "bf16"}, 0.1),
        ({"optimizer": "adamw"}, 0.1),  # whose steps are as long where a gradient is but rounding
    ],
)
def test_training(more, bound, tmp_path):
    eager, captured = ways("cuda", tmp_path, more)
    assert (captured - eager).norm() < bound * eager.norm()
