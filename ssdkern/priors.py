"""Priors (the paper's default boxes): the Caffe numbers, and others' rules by name."""

import dataclasses
import math

import torch

CLIP_RULES = ("none", "corners", "size", "cxcywh")
ORDERS = ("cell", "type")
RULES = ("caffe", "torchvision", "amdegroot", "lufficc", "nvidia", "mmdet", "sgrvinod")


def _tuples(value):
    return tuple(_tuples(item) for item in value) if isinstance(value, (list, tuple)) else value


@dataclasses.dataclass(frozen=True)
class PriorConfig:
    """What the priors of a square image are made of; one entry per source map, sizes in pixels.

    Args:
        image_size: side of the input.
        feature_maps: side of every source map.
        min_sizes: side of the small square; several numbers for a map tile it several times.
        max_sizes: the big square has side ``sqrt(min * max)``.
        aspect_ratios: width / height of the further boxes, all of area ``min ** 2``.
        steps: distance of the centres; None spreads them over the image, ``image_size / map``.
        clip: ``"none"``, ``"corners"`` to the image, ``"size"`` width and height to the image,
            ``"cxcywh"`` all four to [0, 1] as centre and size.
        order: within a map, ``"cell"`` keeps the boxes of a cell together, ``"type"`` keeps the
            boxes of one shape together.
        flip: each aspect ratio stands for its inverse too.

    Raises:
        ValueError: the lists differ in length, or a value is out of range.
    """

    image_size: int
    feature_maps: tuple
    min_sizes: tuple
    max_sizes: tuple
    aspect_ratios: tuple
    steps: tuple | None = None
    clip: str = "none"
    order: str = "cell"
    flip: bool = True

    def __post_init__(self):
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _tuples(getattr(self, field.name)))
        if self.steps is None:
            steps = tuple(self.image_size / side for side in self.feature_maps)
            object.__setattr__(self, "steps", steps)
        per_map = (self.min_sizes, self.max_sizes, self.aspect_ratios, self.steps)
        if any(len(values) != len(self.feature_maps) for values in per_map):
            raise ValueError(
                f"want one entry per feature map ({len(self.feature_maps)}), got "
                f"{[len(values) for values in per_map]} min_sizes, max_sizes, aspect_ratios, steps"
            )
        if self.clip not in CLIP_RULES:
            raise ValueError(f"want a clip rule of {CLIP_RULES}, got {self.clip!r}")
        if self.order not in ORDERS:
            raise ValueError(f"want an order of {ORDERS}, got {self.order!r}")
        for low, high in (
            pair for index in range(len(self.feature_maps)) for pair in self.sizes(index)
        ):
            if not 0 < low <= high:
                raise ValueError(f"want 0 < min size <= max size, got {low} and {high}")

    def sizes(self, index):
        """The (min, max) pairs of source map `index`."""
        low, high = self.min_sizes[index], self.max_sizes[index]
        if isinstance(low, tuple):
            return tuple(zip(low, high, strict=True))
        return ((low, high),)

    def shapes(self, index):
        """The (width, height) of the boxes in a cell of source map `index`, in pixels."""
        shapes = []
        for low, high in self.sizes(index):
            square = math.sqrt(low * high)
            shapes += [(low, low), (square, square)]
            for ratio in self.aspect_ratios[index]:
                wide, narrow = low * math.sqrt(ratio), low / math.sqrt(ratio)
                shapes += [(wide, narrow), (narrow, wide)] if self.flip else [(wide, narrow)]
        return shapes

    @property
    def boxes_per_cell(self):
        """Boxes in a cell of each source map."""
        return tuple(len(self.shapes(index)) for index in range(len(self.feature_maps)))

    @classmethod
    def for_feature_maps(
        cls,
        image_size,
        feature_maps,
        *,
        scales=None,
        first_ratio=None,
        min_ratio=0.2,
        max_ratio=0.9,
        aspect_ratios=None,
        **options,
    ):
        """The priors of any list of source maps, by the spacing of the paper.

        Args:
            image_size: side of the input in pixels.
            feature_maps: side of every source map.
            scales: small squares as fractions of the image, one per map and one more for the last
                big square. None spaces them by the ratios below; small objects want smaller ones.
            first_ratio: scale of the first map, outside the even spacing; None: half `min_ratio`.
            min_ratio, max_ratio: scales of the second and of the last map, even steps between.
            aspect_ratios: one tuple for all maps or one per map; None: 2 and 3, but 2 alone on
                the first and the last two of more than three maps.
            **options: further fields of PriorConfig.

        Returns:
            PriorConfig: sizes are not rounded, unlike those of the Caffe scripts.
        """
        maps = len(feature_maps)
        if scales is None:
            step = (max_ratio - min_ratio) / max(maps - 2, 1)
            first = min_ratio / 2 if first_ratio is None else first_ratio
            scales = [first, *(min_ratio + step * index for index in range(maps))]
        if len(scales) != maps + 1:
            raise ValueError(f"want {maps + 1} scales for {maps} feature maps, got {len(scales)}")
        if aspect_ratios is None:
            few = {0, maps - 2, maps - 1} if maps > 3 else set()
            aspect_ratios = [(2,) if index in few else (2, 3) for index in range(maps)]
        elif not any(isinstance(ratios, (list, tuple)) for ratios in aspect_ratios):
            aspect_ratios = [aspect_ratios] * maps
        sizes = [image_size * scale for scale in scales]
        return cls(image_size, feature_maps, sizes[:-1], sizes[1:], aspect_ratios, **options)

    def subset(self, indices):
        """The priors of some of the source maps."""
        names = ("feature_maps", "min_sizes", "max_sizes", "aspect_ratios", "steps")
        kept = {name: [getattr(self, name)[index] for index in indices] for name in names}
        return dataclasses.replace(self, **kept)

    def to_dict(self):
        """Plain values, for JSON; ``PriorConfig(**values)`` rebuilds it."""
        return dataclasses.asdict(self)


_MAPS = {
    300: ((38, 19, 10, 5, 3, 1), (8, 16, 32, 64, 100, 300)),
    512: ((64, 32, 16, 8, 4, 2, 1), (8, 16, 32, 64, 128, 256, 512)),
}
_PERCENT = {
    "ssd300-voc": (10, 20, 37, 54, 71, 88, 105),
    "ssd300-coco": (7, 15, 33, 51, 69, 87, 105),
    "ssd512-voc": (7, 15, 30, 45, 60, 75, 90, 105),
    "ssd512-coco": (4, 10, 26, 42, 58, 74, 90, 106),
}
_CLIP = {"torchvision": "size", "amdegroot": "cxcywh", "lufficc": "cxcywh", "nvidia": "cxcywh"}


def prior_config(name, rule="caffe"):
    """A named configuration, by the rule of one implementation.

    Args:
        name: ``"ssd300-voc"``, ``"ssd300-coco"``, ``"ssd512-voc"`` or ``"ssd512-coco"``.
        rule: ``"caffe"`` and ``"mmdet"`` truncate sizes to whole pixels and clip nothing;
            ``"torchvision"`` clips width and height; ``"amdegroot"``, ``"lufficc"``, ``"nvidia"``
            clip centre and size; nvidia orders by shape; ``"sgrvinod"`` (300 only) has the sizes
            and centres of the paper's formula. lufficc does not truncate.

    Returns:
        PriorConfig

    Raises:
        ValueError: unknown name or rule.
    """
    if name not in _PERCENT:
        raise ValueError(f"want priors of {tuple(_PERCENT)}, got {name!r}")
    if rule not in RULES or (rule == "sgrvinod" and not name.startswith("ssd300")):
        raise ValueError(f"want a rule of {RULES} that knows {name}, got {rule!r}")
    image_size = int(name[3:6])
    maps, steps = _MAPS[image_size]
    sizes = [image_size * percent / 100 for percent in _PERCENT[name]]
    if rule == "sgrvinod":
        scales = (0.1, 0.2, 0.375, 0.55, 0.725, 0.9, 1.0)
        few, many = (2, 0.5), (2, 3, 0.5, 0.333)
        ratios = (few, many, many, many, few, few)
        return PriorConfig.for_feature_maps(
            image_size, maps, scales=scales, aspect_ratios=ratios, clip="cxcywh", flip=False
        )
    if rule != "lufficc":
        sizes = [int(size) for size in sizes]
    elif name == "ssd512-voc":
        sizes[-1] = 537.65
    ratios = ((2,), *((2, 3),) * (len(maps) - 3), (2,), (2,))
    order = "type" if rule == "nvidia" else "cell"
    clip = _CLIP.get(rule, "none")
    return PriorConfig(image_size, maps, sizes[:-1], sizes[1:], ratios, steps, clip, order)


def make_priors(config, *, rule="caffe"):
    """The priors of an SSD, source map by source map, row by row, cell by cell.

    Args:
        config: a PriorConfig, or a name: ``"ssd300-voc"``, ``"ssd300-coco"``, ``"ssd512-voc"``,
            ``"ssd512-coco"``.
        rule: whose numbers a name stands for, see `prior_config`.

    Returns:
        Tensor[P, 4]: float32, xyxy, fractions of the image, beyond it where the boxes are.
        P is 8732 for the ssd300 names and 24564 for the ssd512 ones. A cell holds the small
        square, the big square, then each aspect ratio and its inverse.

    Raises:
        ValueError: unknown name or rule.

    Source: PriorBoxLayer of the authors' Caffe code; Liu et al. 2016, section 2.2.
    """
    if isinstance(config, str):
        config = prior_config(config, rule)
    scale = config.image_size
    boxes = []
    for index, (side, step) in enumerate(zip(config.feature_maps, config.steps, strict=True)):
        centres = (torch.arange(side, dtype=torch.float64) + 0.5) * step / scale
        shapes = torch.tensor(config.shapes(index), dtype=torch.float64) / scale  # [K, 2]
        if config.clip in ("size", "cxcywh"):
            shapes = shapes.clamp(0, 1)
        if config.clip == "cxcywh":
            centres = centres.clamp(0, 1)
        y, x = torch.meshgrid(centres, centres, indexing="ij")
        cells = torch.stack([x, y], -1).reshape(-1, 1, 2)
        box = torch.cat(torch.broadcast_tensors(cells, shapes), -1)  # [cells, K, 4]
        boxes.append((box.transpose(0, 1) if config.order == "type" else box).reshape(-1, 4))
    centre, size = torch.cat(boxes).split(2, 1)
    corners = torch.cat([centre - size / 2, centre + size / 2], 1)
    return (corners.clamp(0, 1) if config.clip == "corners" else corners).float()
