"""One step of training: loss, gradients, update."""

import time

import numpy as np
import pytest
import torch

from bench.conftest import synchronize
from bench.scenes import generator, random_boxes
from bench.whole import CLASSES, OBJECTS, Subject, cannot, seconds, time_whole
from ssdkern import multibox_loss
from ssdkern.data import Batch, Sample, TrainTransform
from ssdkern.graphs import CapturedBackward


def bench_train_step(benchmark, device, model, batch, mode, library):
    """The eager loss is torchvision's, all others are the eager one."""
    if reason := cannot(library, model, mode, device):
        pytest.skip(reason)
    words = mode.split("+")
    if "host" in words:
        pytest.skip("pictures are on the device in training")
    subject = Subject(model, batch, device)
    make = _theirs if library == "torchvision" else _ours
    backward, module = make(subject, words)
    other = None
    if words != ["eager"] and library == "native":
        other = _ours(subject, ["eager"])[0]
    elif words == ["eager"] and subject.theirs:
        other = (_ours if library == "torchvision" else _theirs)(subject, words)[0]
    if other:
        # pixels round otherwise than fractions: of two priors that fit a box alike either is taken
        bound = 2e-2 if device.type == "cpu" else 5e-2
        torch.testing.assert_close(backward(), other(), rtol=bound, atol=bound)
    optimizer = torch.optim.SGD(module.parameters(), 1e-9, momentum=0.9, fused=True)
    captured = "captured" in words
    optimizer.zero_grad(set_to_none=not captured)

    def step():
        backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=not captured)

    timed = library == "native" and not captured
    phases = _phases(subject, optimizer) if timed else {}
    name = f"train-{mode}-{model}-B{batch}"
    time_whole(benchmark, subject, step, name, library, phases, backward=True)


def _ours(subject, words):
    """A function that adds the gradients and returns both terms of the loss, and the module."""
    model = subject.ours.train()
    of = torch.compile(model.loss, fullgraph=True) if "compiled" in words else model.loss
    if "captured" in words:
        batch = Batch(subject.images, *subject.truth)
        run = CapturedBackward(model, batch, None, loss=of, autocast=subject.dtype)
        return lambda: run(batch)[:2], model
    return _backward(subject, lambda: of(subject.images, *subject.truth)[:2]), model


def _theirs(subject, words):
    model = subject.theirs.train()
    of = torch.compile(model) if "compiled" in words else model
    names = ("bbox_regression", "classification")

    def loss():
        found = of(subject.list, subject.targets)
        return [found[name] for name in names]

    return _backward(subject, loss), model


def _backward(subject, loss):
    def run():
        with subject.autocast():
            terms = torch.stack([*loss()])
        terms.sum().backward()
        return terms.detach()

    return run


def _phases(subject, optimizer):
    """Seconds of the parts of a step, eager, and of the pictures' augmentation on one core."""
    model, device = subject.ours.train(), subject.device
    names = ("forward", "match + loss", "gradient of the loss", "backward", "optimiser")
    rounds = []
    for _ in range(4):
        clocks = [time.perf_counter()]
        with subject.autocast():
            heads = model.heads(subject.images)
            _mark(clocks, device)
            leaves = [head.detach().requires_grad_() for head in heads]
            found = multibox_loss(
                *leaves, model.priors, *subject.truth, rule=model.rule, variances=model.variances
            )
        _mark(clocks, device)
        gradients = torch.autograd.grad(found.localization + found.classification, leaves)
        _mark(clocks, device)
        torch.autograd.backward(heads, gradients)
        _mark(clocks, device)
        optimizer.step()
        optimizer.zero_grad()
        _mark(clocks, device)
        rounds.append(np.diff(clocks))
    phases = dict(zip(names, np.median(rounds[1:], axis=0).tolist(), strict=True))
    return {"data": subject.batch * _augmentation(model.image_size), **phases}


def _mark(clocks, device):
    synchronize(device)
    clocks.append(time.perf_counter())


def _augmentation(size):
    """Seconds of one decoded picture of usual size."""
    source = np.random.default_rng(0)
    boxes = random_boxes(OBJECTS).clamp(0, 1) * torch.tensor([500, 375, 500, 375])
    labels = torch.randint(1, CLASSES, (OBJECTS,), generator=generator())
    image = source.integers(0, 256, (375, 500, 3), dtype=np.uint8)
    sample = Sample(boxes.numpy(), labels.numpy(), (375, 500), image)
    transform = TrainTransform(size, "ssd")
    return seconds(lambda: transform(sample, source), torch.device("cpu"), 40)
