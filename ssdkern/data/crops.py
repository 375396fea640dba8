"""Where to look: the expansion and the seven crop samplers of the SSD authors."""

import numpy as np

from ssdkern.host import host

_MIN_IOU = np.array([0.1, 0.3, 0.5, 0.7, 0.9, 0.0])  # the last takes any crop


def expand(
    size: tuple[int, int], rng: np.random.Generator, max_ratio: float = 4.0
) -> tuple[int, int, int, int]:
    """A canvas up to ``max_ratio`` times the picture, which lies somewhere in it.

    Returns:
        The canvas as xyxy in pixels of the picture: the corners lie outside it.
    """
    height, width = size
    ratio = rng.uniform(1.0, max_ratio)
    canvas_width, canvas_height = int(width * ratio), int(height * ratio)
    left = int(rng.uniform(0, canvas_width - width))
    top = int(rng.uniform(0, canvas_height - height))
    return -left, -top, canvas_width - left, canvas_height - top


def crops_of(draws: np.ndarray, min_scale: float = 0.3) -> np.ndarray:
    """Crops from numbers in [0, 1), as xyxy in parts of the picture.

    Args:
        draws (float64 [4, count]): of scale, aspect ratio, left and top.

    Returns:
        float64 [count, 4].
    """
    scale = min_scale + (1 - min_scale) * draws[0]
    ratio = (0.5 + 1.5 * draws[1]).clip(scale**2, 1 / scale**2)
    width = np.minimum(scale * np.sqrt(ratio), 1)
    height = np.minimum(scale / np.sqrt(ratio), 1)
    left, top = draws[2] * (1 - width), draws[3] * (1 - height)
    return np.stack([left, top, left + width, top + height], axis=1)


def sample_crop(
    boxes: np.ndarray, rng: np.random.Generator, max_trials: int = 50, min_scale: float = 0.3
) -> np.ndarray:
    """One crop, drawn evenly from what the seven samplers found.

    The whole picture always takes part. Five samplers want a crop that overlaps some box with an
    IoU of at least 0.1, 0.3, 0.5, 0.7, 0.9, one takes any; each gives the first that fits among
    ``max_trials``. Without boxes there is only the whole picture.

    Args:
        boxes (float [n, 4]): xyxy in parts of the picture.

    Returns:
        float64 [4]: xyxy in parts of the picture.

    Source: the authors' Caffe code (batch_sampler), as in their training scripts.
    """
    whole = np.array([0.0, 0.0, 1.0, 1.0])
    if not len(boxes):
        return whole
    draws = rng.random((4, len(_MIN_IOU) * max_trials))
    find = find_crops_numpy if host() is None else host().find_crops
    crops = find(boxes, draws, min_scale)
    choice = rng.integers(len(crops) + 1)
    return whole if choice == len(crops) else crops[choice]


def find_crops_numpy(boxes: np.ndarray, draws: np.ndarray, min_scale: float) -> np.ndarray:
    """Of each sampler's trials the first that fits; the C++ gives the same, bit for bit.

    Args:
        boxes (float [n, 4]): xyxy in parts of the picture, at least one.
        draws (float64 [4, samplers * trials]): see `crops_of`.

    Returns:
        float64 [at most 6, 4]: xyxy in parts of the picture.
    """
    crops = crops_of(draws, min_scale)
    fits = _iou(crops, boxes).max(axis=1).reshape(len(_MIN_IOU), -1) >= _MIN_IOU[:, None]
    rows = fits.argmax(axis=1) + np.arange(len(_MIN_IOU)) * fits.shape[1]
    return crops[rows[fits.any(axis=1)]]


def _iou(crops: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """[len(crops), len(boxes)]"""
    corners = np.minimum(crops[:, None, 2:], boxes[None, :, 2:])
    corners = corners - np.maximum(crops[:, None, :2], boxes[None, :, :2])
    overlap = corners.clip(0).prod(axis=2)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    union = (crops[:, 2:] - crops[:, :2]).prod(axis=1)[:, None] + area - overlap
    return overlap / union


def inside(boxes: np.ndarray, view: np.ndarray) -> np.ndarray:
    """Whether the centre of each box lies in ``view``, border included; bool [n]."""
    x, y = ((boxes[:, :2] + boxes[:, 2:]) / 2).T
    return (x >= view[0]) & (x <= view[2]) & (y >= view[1]) & (y <= view[3])
