"""Average precision by the rules of PASCAL VOC: matching detections to truth, and the curve."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ssdkern.host import host


class ImageTruth(NamedTuple):
    """What is in one image: boxes xyxy in pixels, labels from 1."""

    boxes: np.ndarray  # [G, 4]
    labels: np.ndarray  # [G]
    difficult: np.ndarray  # [G] bool: VOC difficult, COCO crowd
    area: np.ndarray  # [G] pixels: COCO's segmentation area where known, else of the box


class ImageDetections(NamedTuple):
    """What was found in one image: boxes xyxy in pixels, scores, labels from 1."""

    boxes: np.ndarray  # [D, 4]
    scores: np.ndarray  # [D]
    labels: np.ndarray  # [D]


@dataclass
class ClassResult:
    """One class under a VOC rule; ``average_precision`` is NaN where the class has no truth."""

    average_precision: float
    num_truth: int
    num_detections: int
    recall: np.ndarray  # [D], by descending score, ignored detections left out
    precision: np.ndarray  # [D]
    scores: np.ndarray  # [D]


def match_detections(
    boxes, offsets, gt_boxes, gt_ignore, gt_offsets, *, iou_threshold=0.5, plus_one=True
):
    """Match detections to truth by the rule of PASCAL VOC, many groups at once.

    A group is what may match each other: one class of one image. Each detection goes to the truth
    it overlaps most (equal IoU: the lower row). It is a hit if the IoU is at least
    ``iou_threshold`` and no earlier detection took that truth; a hit on ignored truth counts
    neither way.

    Args:
        boxes (ndarray[D, 4]): detections xyxy, group after group, each by descending score.
        offsets (ndarray[N+1]): group n owns rows ``offsets[n]:offsets[n+1]`` of ``boxes``.
        gt_boxes (ndarray[G, 4]): truth xyxy, group after group.
        gt_ignore (ndarray[G] bool): truth that is neither to be found nor to be missed.
        gt_offsets (ndarray[N+1]): the same for ``gt_boxes``.
        iou_threshold: least IoU of a hit, in (0, 1].
        plus_one: whether a box from x1 to x2 is ``x2 - x1 + 1`` wide, as VOC's integer pixels are.

    Returns:
        (ndarray[D] int8, ndarray[D] int64): 1 hit, 0 false alarm, -1 ignored; and the row of
        ``gt_boxes`` it overlaps by at least ``iou_threshold``, or -1. IoU is computed in float64.

    Raises:
        ValueError: shapes, offsets or the threshold do not fit.

    Source: VOCdevkit VOCevaldet.m; the same rule is in the authors' Caffe DetectionEvaluate.
    """
    if not 0 < iou_threshold <= 1:
        raise ValueError(f"want iou_threshold in (0, 1], got {iou_threshold}")
    match = match_detections_numpy if host() is None else host().match_detections
    return match(boxes, offsets, gt_boxes, gt_ignore, gt_offsets, iou_threshold, plus_one)


def match_detections_numpy(
    boxes, offsets, gt_boxes, gt_ignore, gt_offsets, iou_threshold, plus_one
):
    """`match_detections` without the C++ module."""
    boxes = np.asarray(boxes, np.float64)
    gt_boxes = np.asarray(gt_boxes, np.float64)
    gt_ignore = np.asarray(gt_ignore, bool)
    _check_groups(boxes, offsets, "offsets")
    _check_groups(gt_boxes, gt_offsets, "gt_offsets")
    if len(offsets) != len(gt_offsets) or len(gt_ignore) != len(gt_boxes):
        raise ValueError(
            f"want one gt_ignore a gt_box and as many groups on both sides, got {len(gt_ignore)} "
            f"for {len(gt_boxes)} boxes, {len(gt_offsets) - 1} and {len(offsets) - 1} groups"
        )
    outcome = np.zeros(len(boxes), np.int8)
    matched = np.full(len(boxes), -1, np.int64)
    for group in np.flatnonzero((np.diff(offsets) > 0) & (np.diff(gt_offsets) > 0)):
        start, gt_start = offsets[group], gt_offsets[group]
        rows = slice(start, offsets[group + 1])
        overlap = _iou(boxes[rows], gt_boxes[gt_start : gt_offsets[group + 1]], plus_one)
        best = overlap.argmax(1)
        hit = overlap.max(1) >= iou_threshold
        matched[rows][hit] = best[hit] + gt_start
        _, first = np.unique(matched[rows][hit], return_index=True)
        outcome[start + np.flatnonzero(hit)[first]] = 1
        outcome[rows][hit & gt_ignore[matched[rows]]] = -1
    return outcome, matched


def _check_groups(boxes, offsets, name):
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"want boxes [N, 4], got {list(boxes.shape)}")
    ends = (offsets[0], offsets[-1]) if len(offsets) else ()
    if ends != (0, len(boxes)) or (np.diff(offsets) < 0).any():
        raise ValueError(f"want {name} ascending from 0 to {len(boxes)} in one dimension")


def _iou(boxes, gt_boxes, plus_one):
    """float64 [D, G]; NaN counts as no overlap."""
    low = np.maximum(boxes[:, None, :2], gt_boxes[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], gt_boxes[None, :, 2:])
    size = high - low + plus_one
    both = np.where((size > 0).all(-1), size[..., 0] * size[..., 1], 0)
    area, gt_area = ((b[:, 2:] - b[:, :2] + plus_one).prod(1) for b in (boxes, gt_boxes))
    union = area[:, None] + gt_area - both
    return np.divide(both, union, out=np.zeros_like(both), where=both > 0)


def average_precision(hits, num_positives, rule="area"):
    """Average precision of one class.

    Args:
        hits (ndarray[D]): 1 for a hit and 0 for a false alarm, by descending score.
        num_positives: how much there was to find.
        rule: ``"11point"`` (VOC 2007: mean of the best precision at recall >= 0, .1 ... 1),
            ``"area"`` (VOC 2010 and later, Caffe's MaxIntegral: under that envelope), or
            ``"integral"`` (under the curve as it is).

    Returns:
        float: 0 without detections, NaN where there was nothing to find. A recall that reaches a
        tenth exactly counts as having reached it.

    Raises:
        ValueError: the rule is unknown.

    Source: ComputeAP of the authors' Caffe code, and VOCdevkit VOCap.m.
    """
    if rule not in ("11point", "area", "integral"):
        raise ValueError(f"want rule 11point, area or integral, got {rule!r}")
    if num_positives == 0:
        return float("nan")
    hits = np.asarray(hits, bool)
    found = hits.cumsum()
    precision = found / np.arange(1, len(hits) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    if rule == "11point":
        # in integers: 3 of 10 is recall .3, which .1 * 3 in floating point is not
        first = np.searchsorted(found * 10, np.arange(11) * num_positives)
        return float(np.append(envelope, 0)[first].sum() / 11)
    heights = envelope if rule == "area" else precision
    return float(heights[hits].sum() / num_positives)


def voc_results(
    detections, truth, num_classes, *, rule="11point", iou_threshold=0.5, plus_one=True
):
    """Average precision of every class by the rules of PASCAL VOC.

    Args:
        detections (list[ImageDetections]): one an image.
        truth (list[ImageTruth]): of the same images, in the same order.
        num_classes: C - 1, the background left out; labels are 1..C-1.
        rule: of `average_precision`.
        iou_threshold, plus_one: of `match_detections`.

    Returns:
        list[ClassResult]: of labels 1..C-1. Equal scores: the earlier image, then the earlier row.
    """
    if len(detections) != len(truth):
        raise ValueError(f"want truth of {len(detections)} images, got of {len(truth)}")
    boxes, labels, images, scores = _flat(detections, "scores")
    gt_boxes, gt_labels, gt_images, ignore = _flat(truth, "difficult")
    order = np.lexsort((-scores, images, labels))
    gt_order = np.lexsort((gt_images, gt_labels))
    offsets = _group_offsets(labels, images, num_classes, len(truth))
    gt_offsets = _group_offsets(gt_labels, gt_images, num_classes, len(truth))
    outcome = np.empty(len(boxes), np.int8)
    outcome[order], _ = match_detections(
        boxes[order], offsets, gt_boxes[gt_order], ignore[gt_order], gt_offsets,
        iou_threshold=iou_threshold, plus_one=plus_one,
    )  # fmt: skip
    results = []
    for label in range(1, num_classes + 1):
        rows = np.flatnonzero((labels == label) & (outcome >= 0))
        rows = rows[np.argsort(-scores[rows], kind="stable")]
        hits, positives = outcome[rows], int(((gt_labels == label) & ~ignore).sum())
        found = hits.cumsum(dtype=np.int64)
        results.append(
            ClassResult(
                average_precision=average_precision(hits, positives, rule),
                num_truth=positives,
                num_detections=int((labels == label).sum()),
                recall=found / max(positives, 1),
                precision=found / np.arange(1, len(rows) + 1),
                scores=scores[rows],
            )
        )
    return results


def _flat(images, third):
    """Boxes, labels, image numbers and one more field of all images, each end to end."""
    boxes = np.concatenate([np.zeros((0, 4)), *(i.boxes for i in images)])
    labels = np.concatenate([np.zeros(0, np.int64), *(i.labels for i in images)])
    numbers = np.repeat(np.arange(len(images)), [len(i.labels) for i in images])
    kind = bool if third == "difficult" else np.float64
    return (
        boxes,
        labels,
        numbers,
        np.concatenate([np.zeros(0, kind), *(getattr(i, third) for i in images)]),
    )


def _group_offsets(labels, images, num_classes, num_images):
    if len(labels) and not 1 <= labels.min() <= labels.max() <= num_classes:
        raise ValueError(f"want labels 1..{num_classes}, got {labels.min()}..{labels.max()}")
    counts = np.bincount((labels - 1) * num_images + images, minlength=num_classes * num_images)
    return np.append(0, counts.cumsum())


def confusion_matrix(
    detections, truth, num_classes, *, score_threshold=0.5, iou_threshold=0.5, plus_one=True
):
    """Which class is taken for which: detections matched to truth whatever their class.

    Args:
        detections, truth, num_classes, iou_threshold, plus_one: of `voc_results`.
        score_threshold: detections below it are left out.

    Returns:
        ndarray[C, C] int64: rows are the truth, columns what was found, 0 the background: row 0
        counts false alarms and doubles, column 0 what was missed. Difficult truth is left out.
    """
    boxes, labels, images, scores = _flat(detections, "scores")
    gt_boxes, gt_labels, gt_images, ignore = _flat(truth, "difficult")
    order = np.lexsort((-scores, images))
    order = order[scores[order] >= score_threshold]
    offsets = np.searchsorted(images[order], np.arange(len(truth) + 1))
    gt_offsets = np.searchsorted(gt_images, np.arange(len(truth) + 1))
    outcome, matched = match_detections(
        boxes[order], offsets, gt_boxes, ignore, gt_offsets,
        iou_threshold=iou_threshold, plus_one=plus_one,
    )  # fmt: skip
    matrix = np.zeros((num_classes + 1, num_classes + 1), np.int64)
    hit, false = outcome == 1, outcome == 0
    np.add.at(matrix, (gt_labels[matched[hit]], labels[order][hit]), 1)
    np.add.at(matrix[0], labels[order][false], 1)
    missed = ~ignore
    missed[matched[hit]] = False
    np.add.at(matrix[:, 0], gt_labels[missed], 1)
    return matrix


def mean_average_precision(average_precisions):
    """Mean over the classes that have truth (the others are NaN); NaN if none has."""
    known = np.asarray(average_precisions, np.float64)
    known = known[~np.isnan(known)]
    return float(known.mean()) if len(known) else float("nan")
