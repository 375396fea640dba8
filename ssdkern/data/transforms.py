"""From a sample to what the model takes: a square uint8 picture and boxes in parts of it."""

import numpy as np
import torch
from torch import Tensor

from ssdkern.data.crops import expand, inside, sample_crop
from ssdkern.data.distort import UNDISTORTED, draw_distortion
from ssdkern.data.render import INTERPOLATIONS, Rectangle, render
from ssdkern.data.samples import Sample
from ssdkern.host import host

_MEAN = (123, 117, 104)  # RGB, of the authors' VGG

Item = tuple[Tensor, Tensor, Tensor]
Span = tuple[int, int]  # of one axis


class EvalTransform:
    """Warp the whole picture to ``size`` x ``size``, bilinear.

    Called with a sample (and a generator it does not use), it returns the picture, uint8
    [3, S, S], the boxes, float32 [n, 4], xyxy in parts of the picture, and the labels, int64 [n].
    COCO crowds are left out.
    """

    def __init__(self, size: int):
        self.size = _checked(size)

    def __call__(self, sample: Sample, rng: np.random.Generator | None = None) -> Item:
        boxes, labels = _objects(sample)
        height, width = sample.size
        square = (0, 0, self.size, self.size)
        picture = render(sample.picture(), (0, 0, width, height), square, self.size)
        scale = np.array([width, height, width, height], np.float32)
        return torch.from_numpy(picture), torch.from_numpy(boxes / scale), torch.from_numpy(labels)


class TrainTransform:
    """The augmentation of the SSD authors: distort, expand, crop, warp, flip.

    Distortion works on each pixel alone, so it is done last, on the fewest pixels. Crops are
    whole pixels of the picture, and boxes follow exactly what happens to these. The interpolation
    is drawn from bilinear, area, nearest, bicubic and Lanczos. A JPEG that will shrink to half or
    less is decoded at half (a quarter, an eighth) of its size.

    Args:
        size: side of the result in pixels.
        augment: ``"ssd"`` (all), ``"flip"`` (only the flips) or ``"none"``; the next four
            arguments override it where not None.
        distort: change colours, see `distort`.
        expand: half the time, place the picture on a larger canvas of its mean colour.
        crop: take one of the seven crops, see `sample_crop`.
        flip: mirror half of the pictures.
        flip_vertical: turn half of them upside down, for views from above or microscopes.
        max_expand: largest side of the canvas over the picture's.
        min_scale: smallest side of a crop over the picture's, before its aspect ratio.
        random_interpolation: False: always bilinear.
        fill: colour of the canvas, RGB.

    Called with a sample and a NumPy generator, from which all randomness comes, it returns what
    `EvalTransform` returns. A box is kept if its centre lies in the crop, and clipped to it.

    Source: Liu et al. 2016, section 2.2 and 3.6, and the authors' Caffe code.
    """

    def __init__(
        self,
        size: int,
        augment: str = "ssd",
        *,
        distort: bool | None = None,
        expand: bool | None = None,
        crop: bool | None = None,
        flip: bool | None = None,
        flip_vertical: bool = False,
        max_expand: float = 4.0,
        min_scale: float = 0.3,
        random_interpolation: bool = True,
        fill: tuple[int, int, int] = _MEAN,
    ):
        if augment not in ("ssd", "flip", "none"):
            raise ValueError(f"want augment of ssd, flip, none, got {augment!r}")
        if max_expand < 1 or not 0 < min_scale <= 1:
            raise ValueError(
                f"want max_expand >= 1 and min_scale in (0, 1], got {max_expand} and {min_scale}"
            )
        full = augment == "ssd"
        self.size = _checked(size)
        self.distort = full if distort is None else distort
        self.expand = full if expand is None else expand
        self.crop = full if crop is None else crop
        self.flip = augment != "none" if flip is None else flip
        self.flip_vertical = flip_vertical
        self.max_expand = max_expand
        self.min_scale = min_scale
        self.random_interpolation = random_interpolation and full
        self.fill = fill
        host()  # what is missing is said here, not by every worker

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Item:
        boxes, labels = _objects(sample)
        view = self._view(sample.size, boxes, rng)
        kept = inside(boxes, view)
        boxes, labels = boxes[kept], labels[kept]
        mode = INTERPOLATIONS[rng.integers(5)] if self.random_interpolation else "bilinear"
        coins = rng.random(2).tolist()
        across, down = self.flip and coins[0] < 0.5, self.flip_vertical and coins[1] < 0.5
        picture, source, target = self._render(sample, view, mode, (across, down), rng)
        x, x_scale = _line(source[::2], target[::2], self.size)
        y, y_scale = _line(source[1::2], target[1::2], self.size)
        boxes = boxes.clip(view[:2] * 2, view[2:] * 2) * ([x_scale, y_scale] * 2) + [x, y, x, y]
        boxes = boxes.clip(0, 1).astype(np.float32)
        if across:
            boxes[:, ::2] = 1 - boxes[:, 2::-2]
        if down:
            boxes[:, 1::2] = 1 - boxes[:, 3::-2]
        whole = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        return (
            torch.from_numpy(picture),
            torch.from_numpy(boxes[whole]),
            torch.from_numpy(labels[whole]),
        )

    def _view(
        self, size: tuple[int, int], boxes: np.ndarray, rng: np.random.Generator
    ) -> Rectangle:
        """The rectangle that becomes the result, xyxy in whole pixels of the picture."""
        height, width = size
        canvas = (0, 0, width, height)
        if self.expand and rng.random() < 0.5:
            canvas = expand(size, rng, self.max_expand)
        if not self.crop:
            return canvas
        x, y, width, height = canvas[0], canvas[1], canvas[2] - canvas[0], canvas[3] - canvas[1]
        parts = (boxes - [x, y, x, y]) / [width, height, width, height]
        crop = sample_crop(parts, rng, min_scale=self.min_scale).tolist()
        left, top = round(crop[0] * width) + x, round(crop[1] * height) + y
        right, bottom = round(crop[2] * width) + x, round(crop[3] * height) + y
        return left, top, max(right, left + 1), max(bottom, top + 1)

    def _render(
        self,
        sample: Sample,
        view: Rectangle,
        mode: str,
        flips: tuple[bool, bool],
        rng: np.random.Generator,
    ) -> tuple[np.ndarray, Rectangle, Rectangle]:
        """The result, uint8 [3, S, S], and which part of the picture lies where in it unflipped."""
        height, width = sample.size
        x = max(view[0], 0), min(view[2], width)
        y = max(view[1], 0), min(view[3], height)
        if x[0] >= x[1] or y[0] >= y[1]:
            result = np.empty((3, self.size, self.size), np.uint8)
            result[:] = np.array(self.fill, np.uint8)[:, None, None]
            return result, view, (0, 0, self.size, self.size)
        left, right = _place(x, view[::2], self.size)
        top, bottom = _place(y, view[1::2], self.size)
        shrink = min((x[1] - x[0]) / (right - left), (y[1] - y[0]) / (bottom - top))
        picture = sample.picture(next((s for s in (8, 4, 2) if shrink >= s), 1))
        # decoded at a fraction, one pixel is `factor` of the file's; the last may be a part
        factor = 1 if picture.size == (width, height) else round(width / picture.width)
        x1, x2 = _decoded(x, factor, picture.width)
        y1, y2 = _decoded(y, factor, picture.height)
        target = left, top, right, bottom
        result = render(
            picture,
            (x1, y1, x2, y2),
            target,
            self.size,
            interpolation=mode,
            distortion=draw_distortion(rng) if self.distort else UNDISTORTED,
            flips=flips,
            fill=self.fill,
        )
        return result, (x1 * factor, y1 * factor, x2 * factor, y2 * factor), target


def _place(part: Span, view: Span, size: int) -> Span:
    """Where a part of the view lies when the view is ``size`` pixels: one of them at least."""
    scale = size / (view[1] - view[0])
    low = min(round((part[0] - view[0]) * scale), size - 1)
    return low, max(round((part[1] - view[0]) * scale), low + 1)


def _decoded(part: Span, factor: int, length: int) -> Span:
    """The part in a picture of ``length`` pixels, each ``factor`` of the file's."""
    high = min(round(part[1] / factor), length)
    return min(round(part[0] / factor), high - 1), high


def _line(source: Span, target: Span, size: int) -> tuple[float, float]:
    """Offset and slope from pixels of the picture to parts of the result."""
    slope = (target[1] - target[0]) / (source[1] - source[0]) / size
    return target[0] / size - source[0] * slope, slope


def _objects(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    if sample.crowds and sample.difficult.any():
        return sample.boxes[~sample.difficult], sample.labels[~sample.difficult]
    return sample.boxes, sample.labels


def _checked(size: int) -> int:
    if not isinstance(size, int) or size < 1:
        raise ValueError(f"want size as a positive whole number of pixels, got {size!r}")
    return size
