"""From a sample to what the model takes: a square uint8 picture and boxes in parts of it."""

import numpy as np
import torch
from torch import Tensor

from ssdkern.data.crops import expand, inside, sample_crop
from ssdkern.data.distort import UNDISTORTED, draw_distortion
from ssdkern.data.render import INTERPOLATIONS, render
from ssdkern.data.samples import Sample

_MEAN = (123, 117, 104)  # RGB, of the authors' VGG

Item = tuple[Tensor, Tensor, Tensor]


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

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Item:
        boxes, labels = _objects(sample)
        view = self._view(sample.size, boxes, rng)
        kept = inside(boxes, view)
        boxes, labels = boxes[kept], labels[kept]
        mode = INTERPOLATIONS[rng.integers(5)] if self.random_interpolation else "bilinear"
        across, down = (rng.random(2) < 0.5) & (self.flip, self.flip_vertical)
        picture, source, target = self._render(sample, view, mode, (across, down), rng)
        scale = (target[2:] - target[:2]) / (source[2:] - source[:2])
        low = np.maximum(boxes[:, :2], view[:2])
        high = np.minimum(boxes[:, 2:], view[2:])
        boxes = np.concatenate([low, high], axis=1) - np.tile(source[:2], 2)
        boxes = (boxes * np.tile(scale, 2) + np.tile(target[:2], 2)) / self.size
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
    ) -> np.ndarray:
        """The rectangle that becomes the result, xyxy in whole pixels of the picture."""
        height, width = size
        canvas = np.array([0, 0, width, height])
        if self.expand and rng.random() < 0.5:
            canvas = np.array(expand(size, rng, self.max_expand))
        if not self.crop:
            return canvas
        origin = np.tile(canvas[:2], 2)
        sides = np.tile(canvas[2:] - canvas[:2], 2)
        crop = sample_crop((boxes - origin) / sides, rng, min_scale=self.min_scale)
        view = np.rint(crop * sides).astype(np.int64) + origin
        view[2:] = np.maximum(view[2:], view[:2] + 1)
        return view

    def _render(
        self,
        sample: Sample,
        view: np.ndarray,
        mode: str,
        flips: tuple[bool, bool],
        rng: np.random.Generator,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The result, uint8 [3, S, S], and which part of the picture lies where in it unflipped."""
        height, width = sample.size
        source = np.concatenate([np.maximum(view[:2], 0), np.minimum(view[2:], [width, height])])
        if (source[2:] <= source[:2]).any():
            result = np.empty((3, self.size, self.size), np.uint8)
            result[:] = np.array(self.fill, np.uint8)[:, None, None]
            return result, view, np.array([0, 0, self.size, self.size])
        sides = view[2:] - view[:2]
        target = (source - np.tile(view[:2], 2)) * self.size / np.tile(sides, 2)
        target = np.rint(target).astype(np.int64)
        target[:2] = np.minimum(target[:2], self.size - 1)
        target[2:] = np.maximum(target[2:], target[:2] + 1)
        shrink = ((source[2:] - source[:2]) / (target[2:] - target[:2])).min()
        picture = sample.picture(next((s for s in (8, 4, 2) if shrink >= s), 1))
        # decoded at a fraction, one pixel is `factor` of the file's; the last may be a part
        factor = 1 if picture.size == (width, height) else round(width / picture.width)
        source = np.rint(source / factor).astype(np.int64)
        source[2:] = np.minimum(source[2:], picture.size)
        source[:2] = np.minimum(source[:2], source[2:] - 1)
        result = render(
            picture,
            source,
            target,
            self.size,
            interpolation=mode,
            distortion=draw_distortion(rng) if self.distort else UNDISTORTED,
            flips=flips,
            fill=self.fill,
        )
        return result, source * factor, target


def _objects(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    if sample.crowds and sample.difficult.any():
        return sample.boxes[~sample.difficult], sample.labels[~sample.difficult]
    return sample.boxes, sample.labels


def _checked(size: int) -> int:
    if not isinstance(size, int) or size < 1:
        raise ValueError(f"want size as a positive whole number of pixels, got {size!r}")
    return size
