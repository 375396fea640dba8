"""Watch a detector learn from nothing: synthetic scenes, a small SSD, a few minutes on a CPU.

``python -m ssdkern.demo --output runs/demo`` trains ``ssd_tiny``, evaluates it on held-back scenes
and draws what it finds beside the truth.
"""

import argparse
import sys
from pathlib import Path

from ssdkern.data import SyntheticScenes
from ssdkern.evaluate import evaluate, save
from ssdkern.train import fit, settle
from ssdkern.trainer import NonFiniteLossError

_SIDE = 160  # pixels of the scenes and of the model
_SCENES = 50_000  # more than any demo gets through, so that no scene comes twice
_HELD_BACK = 200
_IOU = 0.4  # few priors reach 0.5 with small shapes: after 100 s .40 mAP instead of .21


def main(argv=None):
    """Run the demo; returns the exit code."""
    args = argparse.ArgumentParser(prog="ssdkern demo", description=__doc__.split("\n")[0])
    args.add_argument("--output", default="runs/demo", help="default: runs/demo")
    args.add_argument("--minutes", type=float, default=8.0, help="of training (8)")
    args.add_argument("--seed", type=int, default=0)
    try:
        return _run(args.parse_args(argv))
    except (OSError, ValueError, NonFiniteLossError) as error:
        print(f"ssdkern demo: {error}", file=sys.stderr)
        return 1


def _run(given):
    options, recipe = settle(
        {
            "data": "synthetic scenes",
            "model": "ssd_tiny",
            "model_options": {"iou_thresh": _IOU},
            "recipe": "scenes",
            "image_size": _SIDE,
            "max_minutes": given.minutes,
            "seed": given.seed,
            "output": given.output,
        }
    )
    train_set = SyntheticScenes(_SCENES, (_SIDE, _SIDE), seed=2 * given.seed)
    eval_set = SyntheticScenes(_HELD_BACK, (_SIDE, _SIDE), seed=2 * given.seed + 1)
    print(f"classes: {', '.join(train_set.class_names)}; {_HELD_BACK} scenes are held back")
    code, trainer = fit(options, recipe, train_set, eval_set)
    if code:
        return code
    report = evaluate(trainer.averaged, eval_set, workers=options.workers)
    files = [trainer.output / "weights/best.safetensors", trainer.output / "results.csv"]
    for file in [*files, *save(report, Path(given.output), eval_set)]:
        print(f"wrote {file}")
    print(report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
