"""What an evaluation found: the figures, the table people read, and the json."""

import math
from dataclasses import dataclass, field

import numpy as np

from ssdkern.metrics import ImageDetections


@dataclass
class ClassReport:
    """One class: average precisions are NaN where it has no truth; ``ap`` is COCO's alone."""

    name: str
    num_truth: int
    num_detections: int
    ap50: float  # at the report's IoU threshold
    ap: float  # mean over IoU .5:.95
    recall: np.ndarray = field(repr=False)
    precision: np.ndarray = field(repr=False)


@dataclass
class Report:
    """What `evaluate` found; ``print(report)`` shows the table."""

    metric: str
    iou_threshold: float
    map50: float  # mean of ap50 over the classes that have truth
    classes: list[ClassReport]
    stats: dict[str, float]  # COCO's twelve figures; empty for VOC
    notes: list[str]
    seconds: dict[str, float]  # data: waiting for pictures, detect, score
    confusion: np.ndarray = field(repr=False)  # [C, C] at score .5, see `metrics`
    image_ids: list = field(repr=False)
    detections: list[ImageDetections] = field(repr=False)  # pixels, labels of the data set
    category_ids: list[int] = field(repr=False)

    @property
    def images_per_second(self):
        """Images over the time of waiting and detecting, scoring left out."""
        return len(self.detections) / max(self.seconds["data"] + self.seconds["detect"], 1e-9)

    def to_dict(self):
        """The figures, as json can hold them: NaN is None."""
        rows = [
            {k: getattr(row, k) for k in ("name", "num_truth", "num_detections", "ap50", "ap")}
            for row in self.classes
        ]
        numbers = {
            "map50": self.map50,
            "iou_threshold": self.iou_threshold,
            "num_images": len(self.detections),
            "images_per_second": self.images_per_second,
        }
        return _without_nan(
            {
                "metric": self.metric,
                **numbers,
                "seconds": self.seconds,
                "stats": self.stats,
                "classes": rows,
                "notes": self.notes,
            }
        )

    def __str__(self):
        coco = self.metric == "coco"
        head = [("class", "truth", "found", *(["AP"] if coco else []), f"AP{self._percent}")]
        rows = [
            (
                row.name,
                str(row.num_truth),
                str(row.num_detections),
                *([_figure(row.ap)] if coco else []),
                _figure(row.ap50),
            )
            for row in self.classes
        ]
        widths = [max(map(len, column)) for column in zip(*head, *rows, strict=True)]
        lines = [
            "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])
            for row in head + rows
        ]
        lines.insert(1, "-" * len(lines[0]))
        lines += [f"{name:10}  {_figure(value)}" for name, value in self.stats.items()]
        spent = ", ".join(f"{name} {value:.1f} s" for name, value in self.seconds.items())
        lines.append(
            f"{self.metric}, {len(self.detections)} images, "
            f"{self.images_per_second:.1f} images/s ({spent})"
        )
        return "\n".join([*lines, *self.notes, f"mAP@{self.iou_threshold:g} = {self.map50:.3f}"])

    @property
    def _percent(self):
        return f"{100 * self.iou_threshold:g}"


def _figure(value):
    return "-" if math.isnan(value) else f"{value:.3f}"


def _without_nan(value):
    if isinstance(value, dict):
        return {key: _without_nan(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_without_nan(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value
