"""Gathers what a reader finds into a `DetectionDataset`, dropping and counting bad boxes."""

import numpy as np

from ssdkern.data.images import image_size
from ssdkern.data.samples import DetectionDataset, Problem

_MAX_LISTED = 20  # faults shown in one error


class Faults:
    """Faults that make a set unusable, gathered so that all are shown at once."""

    def __init__(self):
        self.found: list[Problem] = []

    def add(self, file, line: int | None, message: str) -> None:
        self.found.append(Problem(str(file), line, message))

    def check(self) -> None:
        if not self.found:
            return
        lines = [str(fault) for fault in self.found[:_MAX_LISTED]]
        if len(self.found) > _MAX_LISTED:
            lines.append(f"... and {len(self.found) - _MAX_LISTED} more")
        raise ValueError("\n".join(lines))


class Collector:
    """Takes pictures and boxes one by one, cleans them together."""

    def __init__(self, dataset: DetectionDataset):
        self.dataset = dataset
        self._sizes: list[tuple[int, int]] = []
        self._counts: list[int] = []
        self._boxes: list[tuple[float, float, float, float]] = []
        self._labels: list[int] = []
        self._difficult: list[bool] = []
        self._area: list[float] = []
        self._where: list[tuple[str, int | None, str]] = []

    def image(self, image_id: str | int, path, size: tuple[int, int] | None) -> None:
        """Start a picture; the boxes that follow are on it."""
        self.dataset.ids.append(image_id)
        self.dataset.paths.append(str(path))
        self._sizes.append(size or (0, 0))
        self._counts.append(0)

    def box(self, box, label: int, where: tuple[str, int | None, str], difficult=False, area=None):
        """Add a box, xyxy; ``where`` is file, line and what it is called there."""
        self._counts[-1] += 1
        self._boxes.append(box)
        self._labels.append(label)
        self._difficult.append(difficult)
        self._area.append(np.nan if area is None else area)
        self._where.append(where)

    def problem(self, file, line: int | None, message: str) -> None:
        self.dataset.problems.append(Problem(str(file), line, message))

    def finish(self, relative: bool = False) -> DetectionDataset:
        """Drop and clip, and fill the dataset."""
        data = self.dataset
        data.relative = relative
        data.sizes = np.array(self._sizes, np.int32).reshape(-1, 2)
        boxes = np.array(self._boxes, np.float64).reshape(-1, 4)
        image = np.repeat(np.arange(len(self._counts)), self._counts)
        bounds = self._bounds(image, relative)
        with np.errstate(invalid="ignore", over="ignore"):
            clipped = np.clip(boxes, 0, bounds).astype(np.float32)
            width, height = (boxes[:, 2:] - boxes[:, :2]).T
            overhang = np.abs(clipped - boxes).max(axis=1, initial=0)
            kept = (clipped[:, 2:] > clipped[:, :2]).all(axis=1) & np.isfinite(boxes).all(axis=1)
            # one pixel beyond the border is a matter of counting from 0 or 1
            outside = kept & (overhang > (0.01 if relative else 1.0))
        for row in np.flatnonzero(~kept | outside):
            file, line, name = self._where[row]
            text = f"{name} box [{', '.join(f'{v:g}' for v in boxes[row])}]"
            if outside[row]:
                self.problem(file, line, f"{text} reaches out of the picture: clipped")
                continue
            if not np.isfinite(boxes[row]).all():
                kind = "is not finite"
            elif width[row] < 0 or height[row] < 0:
                kind = "is inverted"
            elif width[row] == 0 or height[row] == 0:
                kind = "has zero area"
            else:
                kind = "lies outside the picture"
            self.problem(file, line, f"{text} {kind}: dropped")
        data.clipped = int(outside.sum())
        data.dropped = int((~kept).sum())
        data.boxes = clipped[kept]
        data.labels = np.array(self._labels, np.int64)[kept]
        data.difficult = np.array(self._difficult, bool)[kept]
        area = np.array(self._area, np.float64)[kept]
        box_area = (data.boxes[:, 2:] - data.boxes[:, :2]).prod(axis=1)
        data.area = np.where(np.isnan(area), box_area, area).astype(np.float32)
        counts = np.bincount(image[kept], minlength=len(data.paths))
        data.offsets = np.concatenate([[0], np.cumsum(counts)])
        return data

    def _bounds(self, image: np.ndarray, relative: bool) -> np.ndarray:
        if relative:
            return np.ones((len(image), 4))
        data = self.dataset
        for index in np.flatnonzero(data.sizes[:, 0] == 0):
            data.sizes[index] = image_size(data.paths[index])
        sizes = data.sizes[image][:, ::-1].astype(np.float64)
        return np.concatenate([sizes, sizes], axis=1)
