"""A training picture from its file: decode, crop, resize, flip and distort, on one core.

On JPEGs made here, or with SSDKERN_TEST_DATA=FOLDER on the cell pictures of FOLDER/bccd. One call
is one pass over the pictures; `extra_info` has the pictures a second.
"""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import v2

from bench.conftest import device_name
from ssdkern.data import Sample, SyntheticScenes, TrainTransform, open_dataset, open_image
from ssdkern.data import crops as crops_module
from ssdkern.data import render as render_module
from ssdkern.host import host

SIZE = 300
PICTURES = 24
COLUMNS = ("decode", "torchvision", "torchvision-tensors", "torchvision-late", "torch", "native")


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """Samples whose pictures are files of 640x480."""
    if root := os.environ.get("SSDKERN_TEST_DATA"):
        dataset = open_dataset(Path(root, "bccd"))
        return [dataset[i] for i in range(PICTURES)]
    folder, scenes = tmp_path_factory.mktemp("augment"), SyntheticScenes(PICTURES, (480, 640))
    return [stored(scenes[i], folder / f"{i}.jpg") for i in range(PICTURES)]


def stored(scene, path):
    Image.fromarray(scene.image).save(path, quality=90)
    return Sample(
        scene.boxes,
        scene.labels,
        scene.size,
        lambda scale: open_image(path, scene.size, scale),
        path=str(path),
    )


def torchvision_pipeline(tensors=False, late=False):
    """The rules of SSD as torchvision has them: on Pillow's pictures, on tensors, or with the
    colours changed after the resize, where there are the fewest pixels."""
    colours, resize = v2.RandomPhotometricDistort(), v2.Resize((SIZE, SIZE))
    places = [
        v2.RandomZoomOut(fill=(123, 117, 104)),
        v2.RandomIoUCrop(),
        v2.RandomHorizontalFlip(),
    ]
    steps = [*places, resize, colours] if late else [colours, *places, resize]
    steps.insert(0 if tensors else len(steps), v2.ToImage())
    transform = v2.Compose([*steps, v2.SanitizeBoundingBoxes()])

    def run(sample, index):
        boxes = torch.from_numpy(sample.boxes)
        boxes = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=sample.size)
        target = {"boxes": boxes, "labels": torch.from_numpy(sample.labels)}
        image, target = transform(sample.picture(), target)
        return image, target["boxes"] / SIZE, target["labels"]

    return run


def our_pipeline():
    transform = TrainTransform(SIZE)
    return lambda sample, index: transform(sample, np.random.default_rng((0, 0, index)))


def without_host(monkeypatch):
    for module in (crops_module, render_module):
        monkeypatch.setattr(module, "host", lambda: None)


def check_ours(samples, monkeypatch):
    """Both paths give the same boxes and nearly the same pixels."""
    run = our_pipeline()
    native = [run(sample, index) for index, sample in enumerate(samples)]
    with monkeypatch.context() as patch:
        without_host(patch)
        for index, sample in enumerate(samples):
            image, boxes, labels = run(sample, index)
            assert torch.equal(boxes, native[index][1]) and torch.equal(labels, native[index][2])
            assert (image.int() - native[index][0].int()).abs().float().mean() < 1


def check_theirs(run, samples):
    image, boxes, _ = run(samples[0], 0)
    assert image.dtype == torch.uint8 and image.shape == (3, SIZE, SIZE)
    assert boxes.shape[-1] == 4 and ((boxes >= 0) & (boxes <= 1)).all()


@pytest.mark.parametrize("column", COLUMNS)
def bench_augment(benchmark, column, samples, bandwidth, monkeypatch):
    threads = torch.get_num_threads()
    if column in ("torch", "native") and host() is None:
        pytest.skip("ssdkern._host is not built")
    run = {
        "decode": lambda sample, index: sample.picture(),
        "torchvision": torchvision_pipeline(),
        "torchvision-tensors": torchvision_pipeline(tensors=True),
        "torchvision-late": torchvision_pipeline(late=True),
    }.get(column) or our_pipeline()
    if column in ("torch", "native"):
        check_ours(samples, monkeypatch)
    elif column != "decode":
        check_theirs(run, samples)
    if column == "torch":
        without_host(monkeypatch)

    def call():
        for index, sample in enumerate(samples):
            run(sample, index)

    shape = f"{len(samples)}x{SIZE}px"
    benchmark.group = f"augment-train-{shape}"
    nbytes = sum(3 * np.prod(sample.size) for sample in samples) + len(samples) * 3 * SIZE**2
    torch.set_num_threads(1)  # as a worker of the loader has
    try:
        benchmark.pedantic(call, rounds=7, warmup_rounds=1)
    finally:
        torch.set_num_threads(threads)
    benchmark.extra_info.update(
        op="augment",
        mode="train",
        shape=shape,
        column=column,
        device=device_name(torch.device("cpu")),
        images_per_second=len(samples) / benchmark.stats.stats.median,
        bytes=int(nbytes),
        floor_seconds=nbytes / bandwidth,
        threads=1,
        load=os.getloadavg()[0],
        torch=torch.__version__,
    )
