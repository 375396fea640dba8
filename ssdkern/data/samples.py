"""What a reader hands over: samples, and the packed set that holds them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
from PIL import Image

from ssdkern.data.images import image_size, open_image


class Problem(NamedTuple):
    """Something in the files that was left out or mended."""

    file: str
    line: int | None
    message: str

    def __str__(self) -> str:
        return (
            f"{self.file}:{self.line}: {self.message}"
            if self.line
            else (f"{self.file}: {self.message}")
        )


@dataclass
class Sample:
    """One picture and what is on it.

    Args:
        boxes (float32 [n, 4]): xyxy in pixels.
        labels (int64 [n]): 1..C-1; 0 is background.
        size: height and width of the picture.
        pixels: a uint8 array [H, W, 3], or a function of the scale (1, 2, 4, 8) that decodes it.
        difficult (bool [n]): VOC ``difficult`` or COCO ``iscrowd``.
        area (float32 [n]): of the object; of its box where not annotated.
        crowds: ``difficult`` marks crowd regions, which are never trained on.
    """

    boxes: np.ndarray
    labels: np.ndarray
    size: tuple[int, int]
    pixels: np.ndarray | Callable[[int], Image.Image] = field(repr=False)
    image_id: str | int = ""
    path: str | None = None
    difficult: np.ndarray | None = None
    area: np.ndarray | None = None
    crowds: bool = False

    def __post_init__(self):
        if self.difficult is None:
            self.difficult = np.zeros(len(self.labels), bool)
        if self.area is None:
            self.area = (self.boxes[:, 2:] - self.boxes[:, :2]).prod(axis=1)

    def picture(self, scale: int = 1) -> Image.Image:
        """RGB, decoded at ``1 / scale`` where the file allows, else at full size."""
        return Image.fromarray(self.pixels) if not callable(self.pixels) else self.pixels(scale)

    @cached_property
    def image(self) -> np.ndarray:
        """uint8 [H, W, 3], RGB, decoded at first use."""
        return np.asarray(self.picture()) if callable(self.pixels) else self.pixels


class DetectionDataset:
    """Pictures with boxes, the annotations packed in arrays so that workers share them.

    ``dataset[i]`` and ``dataset.annotation(i)`` give a `Sample`, whose picture is decoded at its
    first use. Built by `open_dataset`.
    """

    def __init__(self, format: str, class_names: list[str], split: str = "train"):
        self.format = format
        self.class_names = class_names
        self.split = split
        self.splits: list[str] = []
        self.notes: list[str] = []
        self.problems: list[Problem] = []
        self.dropped = 0
        self.clipped = 0
        self.category_ids: list[int] | None = None  # COCO: of class_names
        self.annotation_file: str | None = None  # COCO: the json
        self.ids: list[str | int] = []
        self.paths: list[str] = []
        self.sizes = np.zeros((0, 2), np.int32)  # [N, 2] height, width; 0 unknown
        self.boxes = np.zeros((0, 4), np.float32)  # [T, 4], of the picture where `relative`
        self.labels = np.zeros(0, np.int64)
        self.difficult = np.zeros(0, bool)
        self.area = np.zeros(0, np.float32)
        self.offsets = np.zeros(1, np.int64)  # [N + 1]
        self.relative = False

    def __len__(self) -> int:
        return len(self.paths)

    def size(self, index: int) -> tuple[int, int]:
        """Height and width; read from the picture's header where not annotated."""
        if not self.sizes[index, 0]:
            self.sizes[index] = image_size(self.paths[index])
        return int(self.sizes[index, 0]), int(self.sizes[index, 1])

    def __getitem__(self, index: int) -> Sample:
        if not -len(self) <= index < len(self):
            raise IndexError(f"want an index below {len(self)}, got {index}")
        index = int(index) % len(self)
        rows = slice(self.offsets[index], self.offsets[index + 1])
        size = self.size(index)
        boxes, area = self.boxes[rows], self.area[rows]
        if self.relative:
            height, width = size
            boxes = boxes * np.array([width, height, width, height], np.float32)
            area = area * np.float32(height * width)
        path = self.paths[index]
        return Sample(
            boxes=boxes.copy(),
            labels=self.labels[rows].copy(),
            size=size,
            pixels=lambda scale: open_image(path, size, scale),
            image_id=self.ids[index],
            path=path,
            difficult=self.difficult[rows].copy(),
            area=area.copy(),
            crowds=self.format == "coco",
        )

    def annotation(self, index: int) -> Sample:
        """The sample; nothing is decoded until its ``image`` is asked for."""
        return self[index]

    def label_counts(self) -> np.ndarray:
        """Boxes per class, [len(class_names)]."""
        return np.bincount(self.labels, minlength=len(self.class_names) + 1)[1:]
