"""What the processes of test_distributed.py run: `distributed_worker.py JOB OUTPUT`."""

import json
import os
import signal
import sys
from pathlib import Path

import torch
from torch import nn

from ssdkern import PriorConfig
from ssdkern.checkpoint import load_state
from ssdkern.data import SyntheticScenes
from ssdkern.distributed import join
from ssdkern.evaluate import evaluate
from ssdkern.model import MODELS, SSD
from ssdkern.train import fit, settle


class Plain(nn.Module):
    """A backbone without batch normalisation, which would see the batch of one process only."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 16, 5, stride=8)
        self.second = nn.Conv2d(16, 16, 3, stride=2)

    def forward(self, x):
        first = self.first(x).relu()
        return [first, self.second(first).relu()]


def plain(num_classes, image_size=None):
    config = PriorConfig.for_feature_maps(40, (5, 2), aspect_ratios=[(2,), ()])
    model = SSD(Plain(), config, num_classes)
    model.recipe = {"model": "plain", "num_classes": num_classes, "image_size": 40}
    return model


MODELS["plain"] = plain


class Scenes(SyntheticScenes):
    """Between no and five objects a picture, so that N differs between processes."""

    def __init__(self, count=24, seed=0, broken=None):
        super().__init__(count, (40, 40), seed, num_classes=3, min_scale=0.2)
        self.broken = broken

    def __getitem__(self, index):
        if index == self.broken:
            raise ValueError(f"scene {index} is broken")
        return super().__getitem__(index)


def run(output, processes, batch, state=None, on_step=None, scenes=None, **more):
    """A short run whose steps are of `batch` images in all; returns its exit code and trainer."""
    given = {"data": "scenes", "model": "plain", "image_size": 40, "steps": 4, "workers": 0}
    given |= {"optimizer": "sgd", "lr": 0.02, "quiet": True, "device": "cpu"}
    given |= {"output": str(output), **more}
    given["batch_size"] = batch // processes.size // given.get("accumulate", 1)
    options, recipe = settle(given, state, processes.size)
    return fit(options, recipe, scenes or Scenes(), None, state, on_step, processes)


def everything(output, processes):
    """Steps of one and of several batches, a run stopped by one process, and an evaluation."""
    run(output / "plain", processes, 12)
    run(output / "accumulated", processes, 12, accumulate=2)

    def stop_last(trainer):
        if trainer.step == 2 and processes.rank == processes.size - 1:
            os.kill(os.getpid(), signal.SIGTERM)

    code, trainer = run(output / "resumed", processes, 12, on_step=stop_last)
    assert (code, trainer.step) == (128 + signal.SIGTERM, 2)
    processes.highest(0)  # rank 0 has written
    state = load_state(output / "resumed/state/last.pt")
    code, trainer = run(output / "resumed", processes, 12, state)
    assert (code, trainer.step) == (0, 4)
    report = evaluate(trainer.model, Scenes(7, seed=1), batch_size=2, processes=processes)
    assert (report is None) == (processes.rank > 0)
    if report:
        found = {"map50": report.map50, "ids": report.image_ids}
        found["scores"] = [each.scores.tolist() for each in report.detections]
        (output / "report.json").write_text(json.dumps(found))
    print("done")


def broken(output, processes):
    """A picture that one process alone comes to cannot be read."""
    order = list(map(int, (output / "order.txt").read_text().split()))
    run(output / "broken", processes, 4, scenes=Scenes(broken=order[7]))


def infinite(output, processes):
    """The weights of one process alone go bad."""

    def poison(trainer):
        if trainer.step == 2 and processes.rank == 1:
            with torch.no_grad():
                trainer.model.conf[0].bias.fill_(float("inf"))

    run(output / "infinite", processes, 4, on_step=poison)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with join() as processes:
        globals()[sys.argv[1]](Path(sys.argv[2]), processes)
