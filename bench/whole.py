"""Whole models of this library and of torchvision with the same weights, pictures and truth."""

import gc
import os
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.detection import ssd300_vgg16

from bench import kernels
from bench.conftest import device_name, synchronize
from bench.scenes import truth
from ssdkern.model import build
from ssdkern.weights import load_weights

CLASSES = 91
OBJECTS = 8  # an image
_NOISE = 1.5  # standard deviation of the logits
_BACKGROUND = 10.0  # above the other classes: some thousand scores of an image pass .01
_OURS = ("detection", "match + loss", "gradient of the loss")  # phases


def cannot(library, model, mode, device):
    """The reason that a column cannot be timed, or None; a mode is words joined by +."""
    words = set(mode.split("+"))
    if device.type != "cuda" and words & {"captured", "host"}:
        return f"{mode} needs --device cuda, got {device}"
    if library == "torchvision" and words & {"captured", "host"}:
        return "torchvision's model waits for the GPU: it runs eager or compiled"
    if library == "torchvision" and model != "ssd300":
        return f"torchvision has no {model}"
    return None


class Subject:
    """One model with its batch on a device; `theirs` is None where torchvision has no such model.

    Both have the weights of a net before training, the heads scaled so that as many priors have a
    score as of a trained one; both are in channels_last and, on a GPU, under bfloat16 autocast with
    the algorithms that cuDNN found fastest.
    """

    dtype = torch.bfloat16

    def __init__(self, name, batch, device):
        torch.manual_seed(0)
        torch._dynamo.reset()  # or a second batch size compiles for all
        if device.type == "cuda":
            gc.collect()
            torch.cuda.empty_cache()
            torch.backends.cudnn.benchmark = True
        self.device, self.batch = device, batch
        size = int(name[3:])
        self.images = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8)
        self.images = self.images.to(device, memory_format=torch.channels_last)
        self.truth = [part.to(device) for part in truth(batch, OBJECTS, CLASSES)]
        self.list = list(self.images.float().div(255))
        boxes = (self.truth[0] * size).split(OBJECTS)
        labels = self.truth[1].split(OBJECTS)
        pairs = zip(boxes, labels, strict=True)
        self.targets = [{"boxes": each, "labels": label} for each, label in pairs]
        self.ours, self.theirs = build(name, CLASSES, like="torchvision"), None
        heads = [self.ours.conf]
        if name == "ssd300":
            self.theirs = ssd300_vgg16(weights=None, weights_backbone=None, num_classes=CLASSES)
            heads.append(self.theirs.head.classification_head.module_list)
            with TemporaryDirectory() as folder:
                file = Path(folder, "weights.pth")
                torch.save(self.theirs.state_dict(), file)
                load_weights(self.ours, file)
            self.theirs.to(device, memory_format=torch.channels_last)
        self._spread_scores(*heads)
        self.ours.to(device, memory_format=torch.channels_last)

    def _spread_scores(self, *models):
        """`models` are the class heads of `ours` and of others with its weights."""
        with torch.no_grad():
            size = self.ours.image_size
            spread = self.ours.eval().heads(torch.rand(1, 3, size, size))[0].std()
            for heads in models:
                for head in heads:
                    head.weight.mul_(_NOISE / spread)
                    head.bias.zero_()
                    head.bias[::CLASSES] = _BACKGROUND

    def autocast(self):
        return torch.autocast(self.device.type, self.dtype, enabled=self.device.type == "cuda")

    def flops(self, backward):
        """Of the network for the batch; three times as many with `backward`."""
        one = torch.zeros_like(self.images[:1])
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            self.ours.heads(one)
        return counter.get_total_flops() * self.batch * (3 if backward else 1)


def matrix_rate(device):
    """Operations a second of a large product of matrices, in the dtype that models run in."""
    gpu = device.type == "cuda"
    size, dtype = (8192, torch.bfloat16) if gpu else (1024, torch.float32)
    a = torch.randn(size, size, device=device, dtype=dtype)
    return 2 * size**3 / seconds(lambda: a @ a, device, 9)


def seconds(call, device, rounds):
    """Median time of a call, after one that does not count."""
    times = []
    for _ in range(rounds + 1):
        begin = time.perf_counter()
        call()
        synchronize(device)
        times.append(time.perf_counter() - begin)
    return statistics.median(times[1:])


def time_whole(benchmark, subject, run, name, column, phases, backward):
    """Times one column, and stores and prints what became of its operations.

    `phases` are seconds of parts, each alone. The share that is ours is that of what this library's
    kernels do; the network's floor is its multiplications and additions at the speed of a large
    matrix product. On a GPU the profiler says what its kernels did.
    """
    device = subject.device
    once = seconds(run, device, 1)

    def call():
        run()
        synchronize(device)

    benchmark.group = name
    budget = 2.0 if device.type == "cuda" else 5.0
    benchmark.pedantic(call, rounds=int(min(max(budget / once, 3), 50)))
    total, floor = benchmark.stats.stats.median, subject.flops(backward) / matrix_rate(device)
    benchmark.extra_info.update(
        column=column,
        device=device_name(device),
        threads=torch.get_num_threads(),
        load=os.getloadavg()[0],
        torch=torch.__version__,
        images_per_second=subject.batch / total,
        flops=subject.flops(backward),
        floor_seconds=floor,
        of_matrix_rate=floor / total,
    )
    line = f"{name} {column}: {1e3 * total:.1f} ms, {subject.batch / total:.2f} images/s, "
    line += f"{floor / total:.0%} of the matrix rate"
    if phases:
        share = sum(phases.get(part, 0.0) for part in _OURS) / total
        benchmark.extra_info.update(phases=phases, share_of_kernels=share)
        parts = ", ".join(f"{part} {1e3 * spent:.1f}" for part, spent in phases.items())
        line += f"; kernels of ours {share:.1%}; ms: {parts}"
    if device.type == "cuda":
        times = kernels.microseconds(call, rounds=5)
        shares, busy = kernels.shares(times), 1e-6 * sum(times.values()) / total
        longest = dict(list(times.items())[:20])
        benchmark.extra_info.update(shares=shares, busy=busy, kernel_microseconds=longest)
        line += "; of the kernels' time: "
        line += ", ".join(f"{kind} {share:.1%}" for kind, share in shares.items())
    print(f"\n{line}")
