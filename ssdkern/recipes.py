"""Training recipes by name. A schedule is a function of progress, from 0 at the start to 1.

Progress is step / steps, or elapsed / budget where a run is given minutes instead of steps, so
that the same recipe anneals fully in either.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """How to train: the defaults that command-line flags override.

    Attributes:
        lr: peak learning rate at ``batch_size`` images a step; other sizes of batch scale it.
        steps: length of the run; None: the caller gives epochs or minutes.
        drops: progress at which lr falls tenfold; empty: half a cosine down to zero.
        warmup: share of the run in which lr rises linearly from nothing.
        backbone_lr: factor on lr for a backbone that starts from given weights.
        freeze: first layers of a pretrained backbone that are not trained.
        hold_norms: batch normalisation of a pretrained backbone stays as it is.
        clip_grad: largest norm of all gradients; 0: no clipping.
        ema: decay of the averaged weights that are evaluated and saved; 0: no averaging.
        optimizer: ``"sgd"`` with momentum 0.9, or ``"adamw"``.
        augment: of `ssdkern.data.TrainTransform`; the next three are, too.
        expand: zoom-out augmentation, what makes the paper's models "star".
        priors: name of the prior sizes for VGG models, or None for the model's own.
    """

    lr: float
    batch_size: int
    steps: int | None = None
    drops: tuple[float, ...] = ()
    warmup: float = 0.0
    weight_decay: float = 5e-4
    backbone_lr: float = 1.0
    freeze: int = 0
    hold_norms: bool = False
    clip_grad: float = 0.0
    ema: float = 0.0
    optimizer: str = "sgd"
    augment: str = "ssd"
    expand: bool = True
    max_expand: float = 4.0
    min_scale: float = 0.3
    priors: str | None = None

    def factor(self, progress):
        """The factor on lr at `progress` in [0, 1]."""
        if progress < self.warmup:
            return progress / self.warmup
        if self.drops:
            return 0.1 ** sum(progress >= drop for drop in self.drops)
        rest = (progress - self.warmup) / (1 - self.warmup)
        return 0.5 * (1 + math.cos(math.pi * min(rest, 1.0)))


def _paper(thousands, priors, expand):
    """The paper's SGD at 1e-3 for batch 32; `thousands` of steps at each tenth of lr."""
    total = sum(thousands)
    ends = [sum(thousands[: i + 1]) / total for i in range(len(thousands) - 1)]
    return Recipe(1e-3, 32, total * 1000, tuple(ends), expand=expand, priors=priors)


# Without "-star": Liu et al. 2016, section 3. With it: zoom-out, and the steps of the released
# Caffe scripts (VOC, COCO), the paper's doubled (07++12), or those of the one ILSVRC script.
RECIPES = {
    "small": Recipe(
        1e-3,
        8,
        optimizer="adamw",
        weight_decay=1e-4,
        warmup=0.05,
        ema=0.99,
        clip_grad=10.0,
        expand=False,
    ),
    "scenes": Recipe(
        4e-3,
        16,
        optimizer="adamw",
        weight_decay=1e-4,
        warmup=0.05,
        ema=0.99,
        clip_grad=10.0,
        augment="flip",
    ),
    "voc07": _paper((40, 10, 10), "voc", False),
    "voc0712": _paper((40, 10, 10), "voc", False),
    "voc07pp12": _paper((60, 20), "voc", False),
    "coco": _paper((160, 40, 40), "coco", False),
    "ilsvrc": _paper((320, 80, 40), "voc", False),
    "voc07-star": _paper((80, 20, 20), "voc", True),
    "voc0712-star": _paper((80, 20, 20), "voc", True),
    "voc07pp12-star": _paper((120, 40), "voc", True),
    "coco-star": _paper((280, 80, 40), "coco", True),
    "ilsvrc-star": _paper((320, 80, 40), "voc", True),
}
