"""One step of training: loss, gradients, update."""

import time

import numpy as np
import pytest
import torch

from bench.conftest import synchronize
from bench.scenes import generator, random_boxes
from bench.whole import CLASSES, OBJECTS, Subject, seconds, time_whole
from ssdkern import multibox_loss
from ssdkern.data import Sample, TrainTransform


@pytest.mark.parametrize("library", ["native", "torchvision"])
def bench_train_step(benchmark, device, model, batch, mode, library):
    subject = Subject(model, batch, device)
    if library == "torchvision" and subject.theirs is None:
        pytest.skip(f"torchvision has no {model}")
    own, other = _ours(subject, mode), subject.theirs and _theirs(subject, mode)
    if other:
        # pixels round otherwise than fractions: of two priors that fit a box alike either is taken
        bound = 2e-2 if device.type == "cpu" else 5e-2
        torch.testing.assert_close(own[0](), other[0](), rtol=bound, atol=bound)
    loss, module = own if library == "native" else other
    optimizer = torch.optim.SGD(module.parameters(), 1e-9, momentum=0.9, fused=True)

    def step():
        loss().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    phases = _phases(subject, optimizer) if library == "native" else {}
    name = f"train-{mode}-{model}-B{batch}"
    time_whole(benchmark, subject, step, name, library, phases, backward=True)


def _ours(subject, mode):
    """A function to both terms of the loss, and the module."""
    model = subject.ours.train()
    of = torch.compile(model.loss, fullgraph=True) if mode == "compiled" else model.loss

    def loss():
        with subject.autocast():
            found = of(subject.images, *subject.truth)
        return torch.stack([found.localization, found.classification])

    return loss, model


def _theirs(subject, mode):
    model = subject.theirs.train()
    of = torch.compile(model) if mode == "compiled" else model

    def loss():
        with subject.autocast():
            found = of(subject.list, subject.targets)
        return torch.stack([found["bbox_regression"], found["classification"]])

    return loss, model


def _phases(subject, optimizer):
    """Seconds of the parts of a step, eager, and of the pictures' augmentation on one core."""
    model, device = subject.ours.train(), subject.device
    parts = {"forward": [], "match + loss": [], "backward": [], "optimiser": []}
    for _ in range(4):
        clocks = [time.perf_counter()]
        with subject.autocast():
            heads = model.heads(subject.images)
            _mark(clocks, device)
            found = multibox_loss(
                *heads, model.priors, *subject.truth, rule=model.rule, variances=model.variances
            )
        _mark(clocks, device)
        (found.localization + found.classification).backward()
        _mark(clocks, device)
        optimizer.step()
        optimizer.zero_grad()
        _mark(clocks, device)
        for name, spent in zip(parts, np.diff(clocks), strict=True):
            parts[name].append(spent)
    phases = {name: float(np.median(spent[1:])) for name, spent in parts.items()}
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
