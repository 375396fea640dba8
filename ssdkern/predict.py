"""Detect objects in pictures: ``python -m ssdkern.predict --weights FILE IMAGE|FOLDER...``

Writes each picture with its boxes, and ``predictions.json``, into a folder of results.
"""

import argparse
import json
import os
import sys
from itertools import count
from pathlib import Path

import numpy as np
import torch

from ssdkern.checkpoint import load_model
from ssdkern.data import EvalTransform, Sample, open_image
from ssdkern.data.images import IMAGE_SUFFIXES
from ssdkern.draw import above, draw_boxes
from ssdkern.evaluate import detect_batch, pixel_detections


def predict(model, images, *, score_threshold=0.5, backend=None, amp="off"):
    """Detect objects in images of any size.

    Args:
        model: an `ssdkern.SSD`, in eval mode.
        images: list of uint8 arrays [H, W, 3], RGB.
        score_threshold: detections below it are left out.
        backend: of `ssdkern.detect`.
        amp: ``"bf16"`` computes the network in bfloat16.

    Returns:
        list[ImageDetections]: boxes xyxy in pixels of each image, scores, labels from 1; by
        descending score.
    """
    if not len(images):
        return []
    transform, device = EvalTransform(model.image_size), next(model.parameters()).device
    none = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
    samples = [Sample(*none, image.shape[:2], image) for image in images]
    batch = torch.stack([transform(sample, None)[0] for sample in samples])
    found = detect_batch(model, batch, device, backend, amp)
    sizes = [sample.size for sample in samples]
    return [above(each, score_threshold) for each in pixel_detections(found, sizes)]


def find_pictures(paths):
    """Pictures that `paths` name: files as they are, of folders the pictures in them, by name.

    Raises:
        ValueError: a path does not exist, or a folder holds no picture.
    """
    pictures = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
            if not inside:
                raise ValueError(f"want pictures in {path}, got none")
            pictures += inside
        elif path.exists():
            pictures.append(path)
        else:
            raise ValueError(f"want a picture or a folder, got {path}, which does not exist")
    return list(dict.fromkeys(pictures))


def _free_name(folder, picture, inputs, used):
    """Where the result of `picture` goes: never onto an input nor onto an earlier result."""
    for number in count(1):
        target = folder / f"{picture.stem}{'' if number == 1 else f'-{number}'}.jpg"
        if target.name.casefold() in used or (target.exists() and _identity(target) in inputs):
            continue
        used.add(target.name.casefold())
        return target


def _identity(path):
    """Equal for all names of one file, whatever links there are."""
    status = path.stat()
    return status.st_dev, status.st_ino


def predict_files(model, class_names, pictures, folder, **options):
    """Detect in picture files and write the drawn pictures and ``predictions.json``.

    Args:
        model, **options: of `predict`.
        class_names: of labels 1..C-1.
        pictures (list[Path]): a file that is no picture is named in the json and skipped.
        folder (Path): for the results; inputs in it are never overwritten.

    Yields:
        dict: a row of the json, as soon as it is done: ``file``, ``size`` (w, h), ``picture`` and
        ``detections``, or ``file`` and ``error``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    inputs, used, rows = {_identity(p) for p in pictures if p.exists()}, set(), []
    for picture in pictures:
        row = {"file": str(picture)}
        try:
            image = np.asarray(open_image(picture))
        except ValueError as error:
            row["error"] = str(error)
        else:
            (found,) = predict(model, [image], **options)
            target = _free_name(folder, picture, inputs, used)
            drawn = draw_boxes(
                image, found.boxes, found.labels, scores=found.scores, class_names=class_names
            )
            drawn.save(target, quality=95)
            row |= {"size": [image.shape[1], image.shape[0]], "picture": str(target)}
            row["detections"] = [
                {
                    "label": int(label),
                    "name": class_names[label - 1],
                    "score": round(float(score), 5),
                    "box": [round(float(v), 2) for v in box],
                }
                for box, score, label in zip(*found, strict=True)
            ]
        rows.append(row)
        yield row
    lines = ",\n".join(map(json.dumps, rows))  # a line for each picture
    (folder / "predictions.json").write_text(f"[\n{lines}\n]\n")


def parser():
    """The arguments of the command."""
    args = argparse.ArgumentParser(prog="ssdkern predict", description=__doc__.split(":")[0])
    args.add_argument("inputs", nargs="+", metavar="IMAGE|FOLDER")
    args.add_argument("--weights", required=True, help="checkpoint of ssdkern train")
    args.add_argument("--score-threshold", type=float, default=0.5, help="default: 0.5")
    args.add_argument("--output", default="runs/predict", help="default: runs/predict")
    args.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args.add_argument("--backend", choices=("native", "triton", "torch"), help="default: the best")
    args.add_argument("--amp", choices=("off", "bf16"), default="off", help="compute in bfloat16")
    return args


def main(argv=None):
    """Run the command; returns the exit code, 1 where an input could not be read."""
    args = parser().parse_args(argv)
    try:
        model, info = load_model(args.weights, args.device)
        names, pictures = info["class_names"], find_pictures(args.inputs)
        rows = predict_files(
            model,
            names,
            pictures,
            Path(args.output),
            score_threshold=args.score_threshold,
            backend=args.backend,
            amp=args.amp,
        )
        failed = 0
        for row in rows:
            if "error" in row:
                failed += 1
                print(f"skipped: {row['error']}", file=sys.stderr)
            else:
                print(f"{row['file']}: {_summary(row['detections'])} -> {row['picture']}")
    except (OSError, ValueError, RuntimeError) as error:
        print(f"ssdkern predict: {error}", file=sys.stderr)
        return 1
    print(f"wrote {os.path.join(args.output, 'predictions.json')}")
    if failed:
        print(f"{failed} of {len(pictures)} inputs skipped", file=sys.stderr)
    return 1 if failed else 0


def _summary(detections):
    names = [each["name"] for each in detections]
    return ", ".join(f"{names.count(n)} {n}" for n in dict.fromkeys(names)) or "nothing"


if __name__ == "__main__":
    sys.exit(main())
