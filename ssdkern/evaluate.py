"""How well a detector does on a data set: VOC and COCO mean average precision.

``python -m ssdkern.evaluate --weights FILE --data PATH`` prints a table that ends in
``mAP@0.5 = 0.xxx``.
"""

import argparse
import csv
import json
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm import tqdm

from ssdkern import plots
from ssdkern.checkpoint import load_model
from ssdkern.coco import coco_dataset, coco_evaluate, coco_results
from ssdkern.data import EvalTransform, message_of, open_dataset
from ssdkern.distributed import Group, join, own_cores
from ssdkern.draw import comparison_grid
from ssdkern.memory import keep_freed_memory
from ssdkern.metrics import (
    ImageDetections,
    ImageTruth,
    confusion_matrix,
    mean_average_precision,
    voc_results,
)
from ssdkern.report import ClassReport, Report

METRICS = {"voc07": "11point", "voc": "area", "coco": None}
_PICTURES = 8  # image pairs in comparison.png
_NOTES = 5  # shown of what the reader of the data has to say
_WORKERS = 16 if torch.cuda.is_available() else 4  # at most: a GPU takes pictures faster


def pixel_detections(detections, sizes):
    """Detections of a batch as NumPy arrays, in pixels of the original images, clipped to them.

    Args:
        detections (ssdkern.Detections): boxes as fractions of the image.
        sizes: (height, width) of each image.

    Returns:
        list[ImageDetections]: without the unused slots.
    """
    fields = (detections.boxes, detections.scores, detections.labels)
    boxes, scores, labels = (f.float().cpu().numpy() for f in fields)
    found = []
    for index, ((height, width), count) in enumerate(
        zip(sizes, detections.count.tolist(), strict=True)
    ):
        scale = np.array([width, height, width, height], np.float32)
        own = boxes[index, :count].clip(0, 1) * scale
        found.append(
            ImageDetections(own, scores[index, :count], labels[index, :count].astype(np.int64))
        )
    return found


class _Inputs(Dataset):
    """Resized images, each with its truth, size and id."""

    def __init__(self, dataset, image_size):
        self.dataset, self.transform = dataset, EvalTransform(image_size)

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        sample = self.dataset[index]
        image = self.transform(sample, None)[0]
        truth = ImageTruth(sample.boxes, sample.labels, sample.difficult, sample.area)
        return image, truth, tuple(sample.size), sample.image_id


def _collate(items):
    images, *rest = zip(*items, strict=True)
    return torch.stack(images), *map(list, rest)


def detect_batch(model, images, device, backend=None, amp="off"):
    """``model.detect`` of a batch on the CPU, for `device`; amp ``"bf16"`` is for bfloat16."""
    images = images.to(device, non_blocking=True)
    if device.type == "cuda":
        images = images.contiguous(memory_format=torch.channels_last)
    bfloat16 = torch.autocast(device.type, torch.bfloat16, enabled=amp == "bf16")
    with torch.inference_mode(), bfloat16:
        return model.detect(images, backend=backend)


def _detect_all(model, dataset, batch_size, workers, device, backend, amp, progress, processes):
    """Detections, truth, sizes and ids of this process's images, and the seconds it took."""
    device = torch.device(device) if device else next(model.parameters()).device
    own = range(processes.rank, len(dataset), processes.size)
    loader = DataLoader(
        Subset(_Inputs(dataset, model.image_size), own),
        batch_size,
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=device.type == "cuda",
    )
    detections, truths, sizes, ids = [], [], [], []
    seconds = {"data": 0.0, "detect": 0.0}
    was_training = model.training
    model.to(device).eval()
    clock = time.perf_counter()
    try:
        for images, truth, size, image_id in tqdm(
            loader, "evaluate", disable=not progress, leave=False
        ):
            seconds["data"] += time.perf_counter() - clock
            clock = time.perf_counter()
            found = detect_batch(model, images, device, backend, amp)
            detections += pixel_detections(found, size)
            truths += truth
            sizes += size
            ids += image_id
            seconds["detect"] += time.perf_counter() - clock
            clock = time.perf_counter()
    finally:
        model.train(was_training)
    return detections, truths, sizes, ids, seconds


def _translate(detections, class_names, wanted):
    """Detections in the labels of the data set's class names, and what is to be said of it."""
    if list(class_names) == list(wanted):
        return detections, []
    label_of = {name: label for label, name in enumerate(wanted, 1)}
    table = np.array([0, *(label_of.get(name, 0) for name in class_names)])
    if not table.any():
        raise ValueError(f"want a model of classes {list(wanted)}, got {list(class_names)}")
    translated = []
    for found in detections:
        labels = table[found.labels]
        known = labels > 0
        translated.append(ImageDetections(found.boxes[known], found.scores[known], labels[known]))
    unknown = [name for name in wanted if name not in class_names]
    return translated, [f"unknown to the model: {', '.join(unknown)}"] if unknown else []


def evaluate(
    model,
    dataset,
    *,
    metric="voc",
    batch_size=8,
    workers=0,
    device=None,
    backend=None,
    amp="off",
    iou_threshold=0.5,
    class_names=None,
    progress=False,
    processes=None,
):
    """Detect on every image of a data set and score the result.

    Args:
        model: an `ssdkern.SSD`; its training mode is as before afterwards.
        dataset: of `ssdkern.data.open_dataset`, or of the same protocol.
        metric: ``"voc07"`` (11 points), ``"voc"`` (area under the envelope), both with VOC's
            one pixel wider boxes and difficult objects ignored; ``"coco"`` (pycocotools, with
            crowds and annotated areas).
        batch_size: images at once.
        workers: processes that read pictures; 0 reads them here.
        device: where to run; None leaves the model where it is.
        backend: of `ssdkern.detect`.
        amp: ``"bf16"`` computes the network in bfloat16.
        iou_threshold: of a VOC hit; COCO's are its own.
        class_names: what the model's labels 1..C-1 mean; None: the data set's names. Other
            classes than the data set's are dropped, in another order translated.
        progress: shows a bar.
        processes: of `ssdkern.distributed.join`; the images are shared out among them.

    Returns:
        Report: mean and per-class average precision, timings, and all detections. None where
        the rank of this process is not 0.

    Raises:
        ValueError: unknown metric, empty data set, or no class in common.
    """
    if metric not in METRICS:
        raise ValueError(f"want metric {', '.join(METRICS)}, got {metric!r}")
    if metric == "coco" and iou_threshold != 0.5:
        raise ValueError(f"want iou_threshold 0.5 with metric coco, got {iou_threshold}")
    if not len(dataset):
        raise ValueError("want images to evaluate on, got an empty data set")
    names = list(dataset.class_names)
    processes = processes or Group()
    *found, seconds = _detect_all(
        model, dataset, batch_size, workers, device, backend, amp, progress, processes
    )
    parts = processes.gather_first(list(zip(*found, strict=True)))
    if parts is None:
        return None
    rows = [parts[i % len(parts)][i // len(parts)] for i in range(len(dataset))]
    detections, truths, sizes, ids = map(list, zip(*rows, strict=True))
    detections, notes = _translate(detections, class_names or names, names)
    clock = time.perf_counter()
    if len(set(ids)) < len(ids):
        ids = list(range(1, len(ids) + 1))
    category_ids = getattr(dataset, "category_ids", None) or list(range(1, len(names) + 1))
    if metric == "coco":
        stats, each, curves = coco_evaluate(
            coco_dataset(truths, names, image_ids=ids, sizes=sizes, category_ids=category_ids),
            coco_results(detections, ids, category_ids),
        )
        order = np.argsort(np.argsort(category_ids))  # pycocotools goes by ascending id
        figures = [(*each[row], np.linspace(0, 1, curves.shape[1]), curves[row]) for row in order]
    else:
        results = voc_results(
            detections, truths, len(names), rule=METRICS[metric], iou_threshold=iou_threshold
        )
        stats = {}
        figures = [(math.nan, r.average_precision, r.recall, r.precision) for r in results]
    confusion = confusion_matrix(
        detections, truths, len(names), iou_threshold=iou_threshold, plus_one=metric != "coco"
    )
    to_find = _count([t.labels[~t.difficult] for t in truths], len(names))
    found = _count([d.labels for d in detections], len(names))
    classes = [
        ClassReport(name, *counts, float(ap50), float(ap), recall, precision)
        for name, counts, (ap, ap50, recall, precision) in zip(
            names, zip(to_find, found, strict=True), figures, strict=True
        )
    ]
    return Report(
        metric=metric,
        iou_threshold=iou_threshold,
        map50=mean_average_precision([row.ap50 for row in classes]),
        classes=classes,
        stats=stats,
        notes=notes,
        confusion=confusion,
        seconds={**seconds, "score": time.perf_counter() - clock},
        image_ids=ids,
        detections=detections,
        category_ids=category_ids,
    )


def _count(labels, num_classes):
    return np.bincount(np.concatenate(labels), minlength=num_classes + 1)[1:].tolist()


def save(report, folder, dataset=None):
    """Write figures (json, csv), detections (COCO results), plots and example pictures.

    Args:
        report: of `evaluate`.
        folder: created where it is not there.
        dataset: what was evaluated on; None leaves the pictures out.

    Returns:
        list[Path]: the files written; the plots only where matplotlib is.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f for f in ("metrics.json", "detections.json", "confusion_matrix.csv")]
    files[0].write_text(json.dumps(report.to_dict(), indent=2) + "\n")
    found = coco_results(report.detections, report.image_ids, report.category_ids)
    for row in found:
        row["bbox"] = [round(v, 2) for v in row["bbox"]]
        row["score"] = round(row["score"], 5)
    files[1].write_text(json.dumps(found))
    names = ["(background)", *(row.name for row in report.classes)]
    with open(files[2], "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["truth \\ found", *names])
        table.writerows([n, *row] for n, row in zip(names, report.confusion.tolist(), strict=True))
    if plots.available():
        files += [folder / "pr_curve.png", folder / "confusion_matrix.png"]
        plots.plot_precision_recall(report, files[-2])
        plots.plot_confusion_matrix(report, files[-1])
    if dataset is not None:
        some = np.linspace(0, len(dataset) - 1, min(_PICTURES, len(dataset))).round().astype(int)
        samples, shown = [dataset[i] for i in some], [report.detections[i] for i in some]
        files.append(folder / "comparison.png")
        comparison_grid(samples, shown, dataset.class_names).save(files[-1])
    return files


def parser():
    """The arguments of the command."""
    args = argparse.ArgumentParser(prog="ssdkern evaluate", description=__doc__.split("\n")[0])
    args.add_argument("--weights", required=True, help="checkpoint of ssdkern train")
    args.add_argument("--data", required=True, help="VOC, COCO or YOLO folder")
    args.add_argument("--split", default="test", help="part of the data (default: test)")
    args.add_argument("--metric", choices=METRICS, default="voc", help="default: voc")
    args.add_argument("--batch-size", type=int, default=8)
    args.add_argument("--workers", type=int, default=min(_WORKERS, own_cores()))
    args.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args.add_argument("--backend", choices=("native", "triton", "torch"), help="default: the best")
    args.add_argument("--amp", choices=("off", "bf16"), default="off", help="compute in bfloat16")
    args.add_argument("--output", help="folder for metrics.json, detections.json and pictures")
    return args


def _run(args, processes):
    """The report, None where rank is not 0, and the files written."""
    model, info = load_model(args.weights, args.device)
    dataset = open_dataset(args.data, args.split)
    for note in dataset.notes[:_NOTES] if processes.rank == 0 else ():
        print(f"note: {note}", file=sys.stderr)
    if args.output and processes.rank == 0:
        Path(args.output).mkdir(parents=True, exist_ok=True)  # or all is lost in the end
    report = evaluate(
        model,
        dataset,
        metric=args.metric,
        batch_size=args.batch_size,
        workers=args.workers,
        backend=args.backend,
        amp=args.amp,
        class_names=info["class_names"],
        progress=sys.stderr.isatty() and processes.rank == 0,
        processes=processes,
    )
    return report, save(report, args.output, dataset) if report and args.output else []


def main(argv=None):
    """Run the command; returns the exit code."""
    args = parser().parse_args(argv)
    keep_freed_memory()
    try:
        with join() as processes:
            report, files = _run(args, processes)
    except (OSError, ValueError, RuntimeError) as error:
        print(f"ssdkern evaluate: {message_of(error)}", file=sys.stderr)
        return 1
    if report is None:
        return 0
    for file in files:
        print(f"wrote {file}")
    print(report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
