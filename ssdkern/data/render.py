"""A part of a picture at another size, mirrored and in other colours, planes of it in a square."""

from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from ssdkern.data.distort import UNDISTORTED, Distortion, distort
from ssdkern.host import host

# OpenCV's linear, area, nearest, cubic and Lanczos, here with antialiasing where one shrinks
INTERPOLATIONS = ("bilinear", "area", "nearest-exact", "bicubic", "lanczos")

Rectangle = tuple[int, int, int, int]  # xyxy


def render(
    picture: Image.Image,
    source: Rectangle,
    target: Rectangle,
    size: int,
    *,
    interpolation: str = "bilinear",
    distortion: Distortion = UNDISTORTED,
    flips: tuple[bool, bool] = (False, False),
    fill: tuple[int, int, int] = (0, 0, 0),
) -> np.ndarray:
    """Resize ``source`` of the picture to ``target`` of the result, distort it, mirror the whole.

    In C++ it is one pass over the output in float32, rounded once: within one level of the exact
    result. Without `ssdkern._host` each step is rounded to levels.

    Args:
        picture: RGB.
        source: whole pixels of the picture; the filters see nothing outside it.
        target: pixels of the result, before it is mirrored.
        size: side of the result.
        interpolation: one of `INTERPOLATIONS`.
        flips: mirror left and right, turn upside down.
        fill: RGB around the target.

    Returns:
        uint8 [3, size, size].
    """
    source, target = tuple(map(int, source)), tuple(map(int, target))
    module = host()
    if module is None:
        return _render_numpy(picture, source, target, size, interpolation, distortion, flips, fill)
    return module.render(
        _pixels(picture, module), source, target, size, interpolation, distortion, flips, fill
    )


def _pixels(picture: Image.Image, module) -> np.ndarray:
    """The picture's memory where Pillow (from 11.2) shows it, uint8 [H, W, 4], else a copy."""
    if picture.mode == "RGB" and hasattr(picture, "__arrow_c_array__"):
        try:
            array = picture.__arrow_c_array__()[1]
        except ValueError:  # over 16 MB it lies in several blocks
            return np.asarray(picture)
        return module.arrow_pixels(array, picture.height, picture.width)
    return np.asarray(picture)


def _render_numpy(picture, source, target, size, interpolation, distortion, flips, fill):
    left, top, right, bottom = target
    patch = _resize(picture, source, (right - left, bottom - top), interpolation)
    patch = distort(patch, distortion)
    result = np.empty((3, size, size), np.uint8)
    result[:] = np.array(fill, np.uint8)[:, None, None]
    result[:, top:bottom, left:right] = patch
    return np.ascontiguousarray(result[:, :: -1 if flips[1] else 1, :: -1 if flips[0] else 1])


def _resize(picture: Image.Image, box: Rectangle, size: tuple[int, int], mode: str) -> np.ndarray:
    """``box`` of the picture at ``size`` (width, height), uint8 [3, H, W]."""
    width, height = size
    if box != (0, 0, *picture.size):
        picture = picture.crop(box)  # a filter given the box alone would see beyond it
    if mode == "area" or (mode == "lanczos" and not _has_lanczos()):
        kind = Image.Resampling.BOX if mode == "area" else Image.Resampling.LANCZOS
        resized = picture.resize((width, height), kind)
        return np.ascontiguousarray(np.asarray(resized).transpose(2, 0, 1))
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]
    if picture.size != (width, height):
        # same values as Pillow to one level (two for Lanczos) at a quarter of its time
        antialias = mode != "nearest-exact"
        pixels = F.interpolate(pixels, (height, width), mode=mode, antialias=antialias)
    return pixels[0].contiguous().numpy()


@cache
def _has_lanczos() -> bool:
    try:
        F.interpolate(
            torch.zeros(1, 3, 8, 8, dtype=torch.uint8), (4, 4), mode="lanczos", antialias=True
        )
    except (NotImplementedError, ValueError, RuntimeError):
        return False
    return True
