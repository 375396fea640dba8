"""Average precision against the Caffe original, pycocotools, and figures published by others."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest

from ssdkern.coco import COCO_STATS, coco_dataset, coco_evaluate, coco_results
from ssdkern.metrics import (
    ImageDetections,
    ImageTruth,
    average_precision,
    confusion_matrix,
    mean_average_precision,
    voc_results,
)

GOLDEN = Path(__file__).with_name("golden")
DATA = os.environ.get("SSDKERN_TEST_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="SSDKERN_TEST_DATA names no folder of real data")
RULES = {"11point": "ap_11point", "area": "ap_max_integral", "integral": "ap_integral"}


def truth(boxes, labels=None, difficult=None):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    labels = np.array([1] * len(boxes) if labels is None else labels, np.int64)
    difficult = np.array([0] * len(boxes) if difficult is None else difficult, bool)
    return ImageTruth(boxes, labels, difficult, (boxes[:, 2:] - boxes[:, :2]).prod(1))


def found(boxes, scores, labels=None):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    labels = np.array([1] * len(boxes) if labels is None else labels, np.int64)
    return ImageDetections(boxes, np.array(scores, np.float32), labels)


def scenes(seed, num_images=12, num_classes=3):
    """Truth, and detections that are jittered copies of it, doubles and inventions."""
    rng = np.random.default_rng(seed)
    truths, detections = [], []
    for _ in range(num_images):
        count = rng.integers(0, 9)
        low = rng.uniform(0, 200, (count, 2))
        boxes = np.concatenate([low, low + rng.uniform(4, 150, (count, 2))], 1)
        labels = rng.integers(1, num_classes + 1, count)
        truths.append(truth(boxes, labels, rng.random(count) < 0.15))
        copies = np.concatenate([boxes, boxes, boxes[::-1] + 40]) + rng.normal(0, 6, (3 * count, 4))
        copies[:, 2:] = np.maximum(copies[:, 2:], copies[:, :2] + 1)
        detections.append(found(copies, rng.random(3 * count), np.tile(labels, 3)))
    return detections, truths


@pytest.mark.parametrize("rule", RULES)
def test_average_precision_of_the_caffe_original(rule):
    for case in json.loads((GOLDEN / "average_precision.json").read_text()):
        ours = average_precision(case["tp"], case["num_positives"], rule)
        assert ours == pytest.approx(case[RULES[rule]], abs=1e-6)


@pytest.mark.parametrize(
    ("rule", "want"), [("11point", 27 / 44), ("area", 0.625), ("integral", 29 / 48)]
)
def test_average_precision_worked_by_hand(rule, want):
    # precision 1, 1/2, 2/3, 3/4, 3/5 at recall 1/4, 1/4, 2/4, 3/4, 3/4
    assert average_precision([1, 0, 1, 1, 0], 4, rule) == pytest.approx(want, abs=1e-12)


def test_average_precision_edges():
    assert average_precision([], 3) == 0
    assert average_precision([0, 0], 3, "11point") == 0
    assert math.isnan(average_precision([0, 0], 0))
    # recall 3/10 has reached .3, so 4 of the 11 points see precision 1
    assert average_precision([1, 1, 1], 10, "11point") == pytest.approx(4 / 11)
    with pytest.raises(ValueError, match="want rule 11point, area or integral, got 'voc'"):
        average_precision([1], 1, "voc")


def test_classes_without_truth_or_detections():
    boxes = [[10, 10, 50, 50], [60, 10, 90, 50]]
    results = voc_results([found(boxes, [0.9, 0.8], [1, 3])], [truth(boxes, [1, 2])], 3)
    assert [r.average_precision for r in results[:2]] == [1, 0]
    assert math.isnan(results[2].average_precision)
    assert [r.num_truth for r in results] == [1, 1, 0]
    assert [r.num_detections for r in results] == [1, 0, 1]
    assert mean_average_precision([r.average_precision for r in results]) == 0.5
    assert math.isnan(mean_average_precision([math.nan]))
    empty = voc_results([found([], [])], [truth([])], 2)
    assert all(math.isnan(r.average_precision) for r in empty)


def test_difficult_truth_counts_neither_way():
    boxes = [[0, 0, 40, 40], [100, 100, 140, 140]]
    detections = found([boxes[1], boxes[1], boxes[0], [200, 0, 240, 40]], [0.9, 0.8, 0.7, 0.6])
    (result,) = voc_results([detections], [truth(boxes, difficult=[0, 1])], 1, rule="area")
    assert (result.average_precision, result.num_truth) == (1, 1)
    assert result.precision.tolist() == [1, 0.5]
    assert result.scores.tolist() == pytest.approx([0.7, 0.6])


def test_plus_one_widens_boxes():
    # side 10 against side 7 inside it: 49 / 100, or 64 / 121 with one pixel more
    args = [found([[0, 0, 7, 7]], [0.5])], [truth([[0, 0, 10, 10]])], 1
    assert voc_results(*args)[0].average_precision == 1
    assert voc_results(*args, plus_one=False)[0].average_precision == 0


def test_voc_results_reject():
    with pytest.raises(ValueError, match="want truth of 1 images, got of 0"):
        voc_results([found([], [])], [], 1)
    with pytest.raises(ValueError, match=r"want labels 1\.\.2, got 1\.\.3"):
        voc_results([found([], [])], [truth([[0, 0, 1, 1]] * 2, [3, 1])], 2)


def test_confusion_matrix_by_hand():
    far = [[100.0 * i, 0, 100 * i + 40, 40] for i in range(6)]
    truths = [truth(far[:4], [1, 2, 2, 1], [0, 0, 0, 1]), truth([far[0]], [2]), truth([])]
    detections = [
        # right; 1 for 2; double; on difficult; below the threshold; invented
        found([*far[:2], far[0], far[3], far[2], far[5]], [0.9, 0.8, 0.7, 0.9, 0.4, 0.5], [1] * 6),
        found([], []),
        found([far[0]], [0.9], [2]),
    ]
    matrix = confusion_matrix(detections, truths, 2)
    assert matrix.tolist() == [[0, 2, 1], [0, 1, 0], [2, 1, 0]]
    assert confusion_matrix([], [], 2).tolist() == [[0, 0, 0]] * 3


@pytest.mark.parametrize("seed", range(3))
def test_coco_figures_are_those_of_pycocotools(seed, tmp_path, capsys):
    COCO = pytest.importorskip("pycocotools.coco").COCO
    COCOeval = pytest.importorskip("pycocotools.cocoeval").COCOeval
    detections, truths = scenes(seed)
    names, ids = ["a", "b", "c"], [f"{i:03}" for i in range(len(truths))]
    dataset = coco_dataset(truths, names, image_ids=ids, category_ids=[7, 9, 90])
    results = coco_results(detections, ids, [7, 9, 90])
    stats, each, _ = coco_evaluate(dataset, results)
    assert capsys.readouterr().out == ""

    path = tmp_path / "truth.json"
    path.write_text(json.dumps(dataset))
    theirs = COCO(path)
    run = COCOeval(theirs, theirs.loadRes(json.loads(json.dumps(results))), "bbox")
    run.evaluate()
    run.accumulate()
    run.summarize()
    assert list(stats.values()) == pytest.approx(run.stats.tolist(), abs=1e-12)
    assert 0.1 < stats["AP50"] < 0.95
    assert each.mean(0).tolist() == pytest.approx([stats["AP"], stats["AP50"]])


def test_coco_edges():
    stats, each, curves = coco_evaluate(coco_dataset([truth([[0, 0, 50, 50]])], ["a", "b"]), [])
    assert list(stats) == list(COCO_STATS)
    assert stats["AP50"] == 0
    assert math.isnan(stats["AP_small"])
    assert each[0].tolist() == [0, 0]
    assert np.isnan(each[1]).all()
    assert curves.shape == (2, 101)


def test_coco_crowd_hides_detections():
    crowd = truth([[0, 0, 40, 40], [100, 100, 200, 200]], difficult=[0, 1])
    inside = [[100 + 10 * i, 100, 130 + 10 * i, 130] for i in range(5)]
    detections = [found([*inside, [0, 0, 40, 40]], [0.9, 0.9, 0.9, 0.9, 0.9, 0.5])]
    stats, *_ = coco_evaluate(coco_dataset([crowd], ["a"]), coco_results(detections, [1], [1]))
    assert stats["AP"] == pytest.approx(1)


@needs_data
def test_coco_val2014_figures():
    folder = Path(DATA, "eval_fixtures/coco_val2014_100")
    stats, *_ = coco_evaluate(
        json.loads((folder / "instances_val2014_100.json").read_text()),
        json.loads((folder / "instances_val2014_fakebbox100_results.json").read_text()),
    )
    # the fixture's authors print .519396 for medium; pycocotools 2.0.11 on the bare files .519400
    published = (
        *(0.504581, 0.696973, 0.572982, 0.585626, 0.519400, 0.501398),
        *(0.386813, 0.593680, 0.595353, 0.639811, 0.566420, 0.564291),
    )
    assert list(stats.values()) == pytest.approx(published, abs=1e-6)


@needs_data
@pytest.mark.parametrize(("rule", "want"), [("area", 0.3105), ("11point", 0.316965)])
def test_voc_figures_of_cartucho_map(rule, want):
    folder = Path(DATA, "eval_fixtures/cartucho_map")
    read = lambda path: [line.split() for line in path.read_text().splitlines()]  # noqa: E731
    rows = {path.name: read(path) for path in sorted((folder / "ground-truth").iterdir())}
    names = sorted({row[0] for image in rows.values() for row in image})
    truths = [
        truth([r[1:5] for r in image], [names.index(r[0]) + 1 for r in image])
        for image in rows.values()
    ]
    detections = []
    for name in rows:
        image = [r for r in read(folder / "detection-results" / name) if r[0] in names]
        labels = [names.index(r[0]) + 1 for r in image]
        detections.append(found([r[2:6] for r in image], [r[1] for r in image], labels))
    results = voc_results(detections, truths, len(names), rule=rule)
    ours = mean_average_precision([r.average_precision for r in results])
    assert (len(names), sum(r.num_truth for r in results)) == (30, 686)
    assert ours == pytest.approx(want, abs=5e-5 if rule == "area" else 5e-7)
