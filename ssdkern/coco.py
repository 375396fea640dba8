"""COCO average precision through pycocotools, and the COCO form of truth and detections."""

import contextlib
import io

import numpy as np

COCO_STATS = (
    *("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"),
    *("AR1", "AR10", "AR100", "AR_small", "AR_medium", "AR_large"),
)


def coco_dataset(truth, class_names, *, image_ids=None, sizes=None, category_ids=None):
    """Truth as the dict of a COCO instances file: difficult objects become crowds."""
    image_ids = range(1, len(truth) + 1) if image_ids is None else image_ids
    category_ids = range(1, len(class_names) + 1) if category_ids is None else category_ids
    sizes = [(0, 0)] * len(truth) if sizes is None else sizes
    annotations = []
    for image_id, image in zip(image_ids, truth, strict=True):
        for box, label, difficult, area in zip(*image, strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,  # pycocotools reads id 0 as "no match"
                    "image_id": image_id,
                    "category_id": int(category_ids[label - 1]),
                    "bbox": _xywh(box),
                    "area": float(area),
                    "iscrowd": int(difficult),
                }
            )
    return {
        "images": [
            {"id": i, "height": int(h), "width": int(w)}
            for i, (h, w) in zip(image_ids, sizes, strict=True)
        ],
        "categories": [
            {"id": int(i), "name": n} for i, n in zip(category_ids, class_names, strict=True)
        ],
        "annotations": annotations,
    }


def coco_results(detections, image_ids, category_ids):
    """Detections as the list of a COCO results file."""
    return [
        {
            "image_id": image_id,
            "category_id": int(category_ids[label - 1]),
            "bbox": _xywh(box),
            "score": float(score),
        }
        for image_id, image in zip(image_ids, detections, strict=True)
        for box, score, label in zip(*image, strict=True)
    ]


def _xywh(box):
    x1, y1, x2, y2 = map(float, box)
    return [x1, y1, x2 - x1, y2 - y1]


def coco_evaluate(dataset, results):
    """Evaluate boxes with pycocotools, silently.

    Args:
        dataset: dict of a COCO instances file; crowds and areas are taken from it.
        results: list of a COCO results file; may be empty.

    Returns:
        (dict, ndarray[C-1, 2], ndarray[C-1, 101]): the 12 figures by the names of ``COCO_STATS``
        (NaN where there is nothing to find), AP and AP50 of each category (ascending id; NaN
        without truth), and its precision at recalls 0, .01 ... 1 at IoU .5.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth, found = COCO(), COCO()
    truth.dataset = {**dataset, "annotations": [dict(a) for a in dataset["annotations"]]}
    found.dataset = {
        **{key: dataset[key] for key in ("images", "categories")},
        "annotations": [
            {**r, "id": i, "area": r["bbox"][2] * r["bbox"][3], "iscrowd": 0}
            for i, r in enumerate(results, 1)
        ],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        found.createIndex()
        run = COCOeval(truth, found, "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    stats = np.where(run.stats < 0, np.nan, run.stats)
    precision = run.eval["precision"][:, :, :, 0, -1]  # [IoU, recall, class], all areas, 100 boxes
    precision = np.where(precision < 0, np.nan, precision)
    each = np.stack([precision.mean((0, 1)), precision[0].mean(0)], 1)
    return dict(zip(COCO_STATS, stats.tolist(), strict=True)), each, precision[0].T
