"""Scenes of shapes on textured ground, drawn from (seed, index): data that needs no download."""

import numpy as np

from ssdkern.data.samples import Problem, Sample
from ssdkern.data.shapes import SHAPES, draw_shape, finish, ground, paint

_MIN_SIDE = 8  # pixels: below, the shapes cannot be told apart
_TRIALS = 4  # placements tried for each object
_FAINT, _PLAIN = 0.1, 0.5  # shares of an object that may be seen: none, or enough to know it


class SyntheticScenes:
    """Pictures with shapes of several classes, sizes and textures that hide each other.

    ``scenes[i]`` depends on (seed, i) and the other arguments alone. Another seed gives held-back
    scenes. An object of which less than half can be seen is either hidden whole, and then has no
    box, or does not occur.

    Args:
        num_images: length of the set.
        size: height and width in pixels.
        seed: of all randomness.
        num_classes: shapes used, 1..8, in the order of ``SHAPES``.
        max_objects: largest number in a picture; about one picture in twenty has none.
        min_scale: smallest side of an object over the shorter side of the picture; the largest
            fill it.
    """

    format = "synthetic"

    def __init__(
        self,
        num_images: int,
        size: tuple[int, int] = (300, 300),
        seed: int = 0,
        num_classes: int = 6,
        *,
        max_objects: int = 8,
        min_scale: float = 0.06,
    ):
        if not 1 <= num_classes <= len(SHAPES):
            raise ValueError(f"want 1..{len(SHAPES)} classes, got {num_classes}")
        if num_images < 1 or min(size) < 2 * _MIN_SIDE:
            raise ValueError(
                f"want at least one picture of {2 * _MIN_SIDE} pixels, got {num_images} of {size}"
            )
        self.num_images, self.image_size, self.seed = num_images, tuple(size), seed
        self.max_objects, self.min_scale = max_objects, min_scale
        self.class_names = list(SHAPES[:num_classes])
        self.split = "train"
        self.splits: list[str] = []
        self.notes: list[str] = []
        self.problems: list[Problem] = []
        self.dropped = self.clipped = 0

    def __len__(self) -> int:
        return self.num_images

    def __getitem__(self, index: int) -> Sample:
        if not -len(self) <= index < len(self):
            raise IndexError(f"want an index below {len(self)}, got {index}")
        index = int(index) % len(self)
        rng = np.random.default_rng((self.seed, index))
        image, boxes, labels = self._draw(rng)
        return Sample(boxes, labels, self.image_size, image, image_id=index)

    def annotation(self, index: int) -> Sample:
        """The sample; to know what is seen, the scene has to be drawn."""
        return self[index]

    def _draw(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        height, width = self.image_size
        image = ground(height, width, rng)
        owner = np.full((height, width), -1, np.int16)  # which object each pixel shows
        labels: list[int] = []
        boxes: list[tuple[int, int, int, int]] = []
        areas, seen = np.zeros(0, np.int64), np.zeros(0, np.int64)
        count = 0 if rng.random() < 0.05 else int(rng.integers(1, self.max_objects + 1))
        for _ in range(count * _TRIALS):
            if len(labels) == count:
                break
            label = int(rng.integers(len(self.class_names)))
            filled, edge, region = self._place(SHAPES[label], rng)
            solid = filled > 127
            under = owner[region][solid]
            left = seen - np.bincount(under[under >= 0], minlength=len(seen))
            share = left / areas
            if not solid.any() or ((share > _FAINT) & (share < _PLAIN)).any():
                continue
            rows, columns = np.flatnonzero(solid.any(1)), np.flatnonzero(solid.any(0))
            top, start = region[0].start, region[1].start
            boxes.append(
                (start + columns[0], top + rows[0], start + columns[-1] + 1, top + rows[-1] + 1)
            )
            paint(image[(slice(None), *region)], filled, edge, rng)
            owner[region][solid] = len(labels)
            labels.append(label + 1)
            areas, seen = np.append(areas, solid.sum()), np.append(left, solid.sum())
        plain = seen >= _PLAIN * areas
        kept = np.array(boxes, np.float32).reshape(-1, 4)[plain]
        return finish(image, rng), kept, np.array(labels, np.int64)[plain]

    def _place(
        self, shape: str, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, tuple[slice, slice]]:
        """Masks of a shape cut to the picture, and the region of the picture they cover."""
        height, width = self.image_size
        short = min(height, width)
        smallest = max(self.min_scale, _MIN_SIDE / short)
        side = short * np.exp(rng.uniform(np.log(smallest), 0.0))
        stretch = np.exp(rng.uniform(-0.25, 0.25))
        w = min(max(_MIN_SIDE, round(side * stretch)), width)
        h = min(max(_MIN_SIDE, round(side / stretch)), height)
        filled, edge = draw_shape(shape, w, h, rng)
        # up to a fifth of an object may lie beyond the border
        left = round(rng.uniform(-0.2 * w, width - 0.8 * w))
        top = round(rng.uniform(-0.2 * h, height - 0.8 * h))
        cut = (slice(max(0, -top), height - top), slice(max(0, -left), width - left))
        region = (
            slice(max(0, top), min(top + h, height)),
            slice(max(0, left), min(left + w, width)),
        )
        return filled[cut], edge[cut], region
