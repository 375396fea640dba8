"""Photometric distortion of the SSD authors, fused and in place of four passes over HSV images."""

from typing import NamedTuple

import numpy as np

_CHUNK = 1 << 14  # pixels worked on at once: the float planes stay in the L2 cache
_LEVELS = np.arange(256, dtype=np.float32)


class Distortion(NamedTuple):
    """What happens to the colours of a picture, in this order."""

    shift: float = 0.0  # added to all channels, in levels of 0..255
    before: float = 1.0  # factor on all channels
    depth: float = 1.0  # factor on S of HSV
    turn: float = 0.0  # of H, in sixths of a circle
    after: float = 1.0  # factor on all channels


UNDISTORTED = Distortion()


def draw_distortion(
    rng: np.random.Generator,
    *,
    probability: float = 0.5,
    brightness: float = 32.0,
    contrast: tuple[float, float] = (0.5, 1.5),
    saturation: tuple[float, float] = (0.5, 1.5),
    hue: float = 36.0,
) -> Distortion:
    """Brightness, contrast, saturation and hue, each with ``probability``.

    A coin puts contrast before or after saturation and hue.

    Args:
        brightness: added, at most, in levels of 0..255.
        contrast: range of the factor on all channels.
        saturation: range of the factor on S of HSV.
        hue: largest turn, in degrees.

    Source: Liu et al. 2016, section 2.2, and the authors' Caffe code.
    """
    draws = rng.random(9).tolist()
    contrast_first = draws[0] < 0.5
    bright, contrasted, saturated, turned = (draw < probability for draw in draws[1:5])
    factor = _between(contrast, draws[6])
    return Distortion(
        shift=_between((-brightness, brightness), draws[5]) if bright else 0.0,
        before=factor if contrasted and contrast_first else 1.0,
        depth=_between(saturation, draws[7]) if saturated else 1.0,
        turn=_between((-hue / 60, hue / 60), draws[8]) if turned else 0.0,
        after=factor if contrasted and not contrast_first else 1.0,
    )


def _between(ends: tuple[float, float], part: float) -> float:
    return ends[0] + (ends[1] - ends[0]) * part


def distort(planes: np.ndarray, distortion: Distortion) -> np.ndarray:
    """The picture in other colours.

    Differences from the Caffe original: hue wraps at red instead of stopping there (caffe#721),
    and HSV is not rounded to 8 bits.

    Args:
        planes (uint8 [3, H, W]): red, green, blue.

    Returns:
        uint8 [3, H, W]: a new array, or ``planes`` itself where nothing changes.
    """
    shift, before, depth, turn, after = distortion
    if shift or before != 1:
        planes = _look_up(planes, (_LEVELS + shift).clip(0, 255) * before)
    if depth != 1 or turn:
        planes = shift_hsv(planes, depth, turn)
    return planes if after == 1 else _look_up(planes, _LEVELS * after)


def _look_up(planes: np.ndarray, levels: np.ndarray) -> np.ndarray:
    # bytes.translate is the fastest table look-up here: 0.8 ns a value, np.take 1.2
    table = np.rint(levels).clip(0, 255).astype(np.uint8).tobytes()
    return np.frombuffer(bytearray(planes).translate(table), np.uint8).reshape(planes.shape)


def shift_hsv(planes: np.ndarray, depth: float, turn: float) -> np.ndarray:
    """Multiply S of HSV by ``depth`` (at most 1 after) and turn H by ``turn`` sixths of a circle.

    ``|turn|`` is at most 1.
    """
    result = np.empty_like(planes)
    source, target = planes.reshape(3, -1), result.reshape(3, -1)
    for start in range(0, source.shape[1], _CHUNK):
        part = slice(start, start + _CHUNK)
        rgb = source[:, part].astype(np.float32)
        value = np.maximum(np.maximum(rgb[0], rgb[1]), rgb[2])
        chroma = value - np.minimum(np.minimum(rgb[0], rgb[1]), rgb[2])
        safe = np.maximum(chroma, 1)  # chroma is 0 or at least 1
        if turn:
            rgb = _turned(rgb, value, safe, turn)
            new = np.minimum(chroma * np.float32(depth), value)
            rgb *= new
            rgb += value - new
        else:
            rgb -= value
            rgb *= np.minimum(value / safe, np.float32(depth)) if depth > 1 else np.float32(depth)
            rgb += value
        rgb += 0.5
        target[:, part] = rgb
    return result


def _turned(rgb: np.ndarray, value: np.ndarray, chroma: np.ndarray, turn: float) -> np.ndarray:
    """Channels between 0 (the smallest) and 1 (the largest) after the turn, float32 [3, n]."""
    red, green, blue = rgb
    hue = (green - blue) / chroma
    np.divide(blue - red, chroma, out=(second := np.empty_like(hue)))
    second += 2
    np.copyto(hue, second, where=green == value)
    np.divide(red - green, chroma, out=second)
    second += 4
    np.copyto(hue, second, where=blue == value)
    # red wins ties, as red == value makes both other formulas agree with it up to whole turns
    hue += np.float32(turn)
    np.add(hue, 6, out=hue, where=hue < 0)
    out = np.empty_like(rgb)
    for channel, centre, sign, offset in ((0, 3, 1, -1), (1, 2, -1, 2), (2, 4, -1, 2)):
        plane = np.abs(hue - np.float32(centre), out=out[channel])
        plane *= sign
        plane += offset
        np.clip(plane, 0, 1, out=plane)
    return out
