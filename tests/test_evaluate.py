"""Evaluation end to end: an oracle whose score is known, the command, and a real SSD's output."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import ssdkern
from ssdkern import plots
from ssdkern.checkpoint import save_weights
from ssdkern.coco import coco_evaluate, coco_results
from ssdkern.data import open_dataset
from ssdkern.evaluate import evaluate, main, pixel_detections, save
from ssdkern.predict import predict

DATA = os.environ.get("SSDKERN_TEST_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="SSDKERN_TEST_DATA names no folder of real data")
SIZES = [(40, 60), (60, 40), (50, 50), (64, 80), (48, 48)]
OBJECTS = [
    [("cat", (5, 5, 25, 30)), ("dog", (30, 10, 55, 35))],
    [("cat", (2, 4, 20, 50))],
    [],
    [("dog", (10, 10, 40, 50)), ("dog", (45, 10, 75, 50)), ("cat", (5, 52, 30, 62))],
    [("emu", (8, 8, 40, 40))],
]


def write_voc(folder):
    """Five pictures; the first pixel of each tells the oracle which one it is."""
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / part).mkdir(parents=True)
    for index, ((height, width), objects) in enumerate(zip(SIZES, OBJECTS, strict=True)):
        pixels = np.full((height, width, 3), 40 * index, np.uint8)
        Image.fromarray(pixels).save(folder / f"JPEGImages/p{index}.png")
        xml = "".join(
            f"<object><name>{name}</name><difficult>{int(index == 3 and name == 'cat')}</difficult>"
            f"<bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox>"
            "</object>"
            for name, (x1, y1, x2, y2) in objects
        )
        size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
        (folder / f"Annotations/p{index}.xml").write_text(f"<annotation>{size}{xml}</annotation>")
    (folder / "ImageSets/Main/test.txt").write_text("\n".join(f"p{i}" for i in range(len(SIZES))))
    return folder


@pytest.fixture
def voc(tmp_path):
    return open_dataset(write_voc(tmp_path / "voc"), "test")


class Oracle(nn.Module):
    """Says the truth about the pictures of `write_voc`, except of the kinds in `misses`."""

    image_size = 32

    def __init__(self, names=("cat", "dog", "emu"), misses=(), invents=0):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.names, self.misses, self.invents = list(names), misses, invents
        self.modes = []

    def detect(self, images, backend=None):
        assert images.dtype == torch.uint8
        assert images.shape[1:] == (3, 32, 32)
        self.modes.append((self.training, torch.is_grad_enabled(), len(images)))
        slots = 6
        boxes, scores = torch.zeros(len(images), slots, 4), torch.zeros(len(images), slots)
        labels = torch.zeros(len(images), slots, dtype=torch.int64)
        count = torch.zeros(len(images), dtype=torch.int64)
        for b, image in enumerate(images):
            index = round(image[0, 0, 0].item() / 40)
            height, width = SIZES[index]
            known = [
                (self.names.index(n), box) for n, box in OBJECTS[index] if n not in self.misses
            ]
            known = [(0, (0, 0, 9, 9))] * self.invents + known
            for k, (label, box) in enumerate(known):
                scale = torch.tensor([width, height, width, height])
                boxes[b, k] = torch.tensor(box) / scale
                scores[b, k], labels[b, k] = 0.9 - 0.1 * k, label + 1
            count[b] = len(known)
        return Detections(boxes, scores, labels, torch.zeros_like(labels), count)


Detections = ssdkern.Detections


@pytest.mark.parametrize("metric", ["voc07", "voc", "coco"])
def test_oracle_is_perfect(voc, metric):
    model = Oracle().train()
    report = evaluate(model, voc, metric=metric, batch_size=2)
    assert report.map50 == pytest.approx(1)
    assert [row.name for row in report.classes] == ["cat", "dog", "emu"]
    assert [row.num_truth for row in report.classes] == [2, 3, 1]  # one cat is difficult
    assert [row.num_detections for row in report.classes] == [3, 3, 1]
    assert str(report).splitlines()[-1] == "mAP@0.5 = 1.000"
    assert model.training
    assert model.modes == [(False, False, 2), (False, False, 2), (False, False, 1)]
    assert report.images_per_second > 0
    assert sorted(report.stats) == (sorted(ssdkern.coco.COCO_STATS) if metric == "coco" else [])


def test_misses_and_inventions_cost_what_they_should(voc):
    report = evaluate(Oracle(misses=("dog",), invents=1), voc, metric="voc")
    # five inventions at .9 come before the two cats at .8: precision 1/6 and 2/7
    assert [row.ap50 for row in report.classes] == pytest.approx([2 / 7, 0, 1])
    assert report.map50 == pytest.approx((2 / 7 + 1) / 3)
    assert report.classes[0].recall[-1] == 1
    assert report.confusion.tolist() == [[0, 5, 0, 0], [0, 2, 0, 0], [3, 0, 0, 0], [0, 0, 0, 1]]


def test_boxes_come_back_in_pixels_and_inside():
    boxes = torch.tensor([[[0.25, 0.5, 1.5, 1.0], [-0.1, 0, 0.5, 0.5], [0, 0, 0, 0]]])
    found = ssdkern.Detections(
        boxes,
        torch.tensor([[0.9, 0.8, 0]]).bfloat16(),
        torch.tensor([[2, 1, 0]]),
        torch.tensor([[5, 7, -1]]),
        torch.tensor([2]),
    )
    (image,) = pixel_detections(found, [(100, 200)])
    assert image.boxes.tolist() == [[50, 50, 200, 100], [0, 0, 100, 50]]
    assert (image.labels.tolist(), image.labels.dtype) == ([2, 1], np.int64)
    assert image.scores.tolist() == pytest.approx([0.9, 0.8], rel=1e-2)


def test_class_names_are_translated(voc):
    model = Oracle(names=("emu", "gnu", "dog", "cat"))
    report = evaluate(model, voc, class_names=model.names)
    assert report.map50 == pytest.approx(1)
    model = Oracle(names=("dog", "cat"), misses=("emu",))
    report = evaluate(model, voc, class_names=model.names)
    assert [row.ap50 for row in report.classes] == [1, 1, 0]
    assert "unknown to the model: emu" in str(report)
    with pytest.raises(ValueError, match=r"want a model of classes \['cat', 'dog', 'emu'\], got"):
        evaluate(Oracle(), voc, class_names=["a", "b", "c"])


def test_sparse_category_ids_in_any_order(voc):
    voc.category_ids = [50, 90, 7]
    report = evaluate(Oracle(misses=("dog",), invents=1), voc, metric="coco")
    assert report.classes[1].ap50 == 0
    assert 0 < report.classes[0].ap50 < 0.5
    assert report.classes[2].ap50 == pytest.approx(1)


def test_workers_change_nothing(voc):
    one, two = (evaluate(Oracle(invents=1), voc, workers=w, batch_size=3) for w in (0, 2))
    assert one.map50 == two.map50
    for a, b in zip(one.detections, two.detections, strict=True):
        np.testing.assert_array_equal(a.boxes, b.boxes)


def test_evaluate_rejects(voc):
    with pytest.raises(ValueError, match="want metric voc07, voc, coco, got 'map'"):
        evaluate(Oracle(), voc, metric="map")
    with pytest.raises(ValueError, match=r"want iou_threshold 0\.5 with metric coco, got 0\.7"):
        evaluate(Oracle(), voc, metric="coco", iou_threshold=0.7)
    voc.paths.clear()
    with pytest.raises(ValueError, match="want images to evaluate on, got an empty data set"):
        evaluate(Oracle(), voc)


def test_classes_without_truth_are_left_out_of_mean_table_and_json(voc, tmp_path):
    voc.class_names = [*voc.class_names, "fox"]
    for metric in ("voc", "coco"):
        report = evaluate(Oracle(), voc, metric=metric, class_names=Oracle().names)
        assert report.map50 == pytest.approx(1)
        assert math.isnan(report.classes[3].ap50)
        row = next(line for line in str(report).splitlines() if line.startswith("fox"))
        assert row.split()[-1] == "-"
        save(report, tmp_path)
        written = json.loads((tmp_path / "metrics.json").read_text())
        assert written["classes"][3]["ap50"] is None
        assert written["map50"] == pytest.approx(1)


def test_saved_detections_score_the_same(voc, tmp_path):
    report = evaluate(Oracle(invents=1), voc, metric="coco")
    files = save(report, tmp_path / "new/folder", voc)
    names = {"metrics.json", "detections.json", "confusion_matrix.csv", "comparison.png"}
    if plots.available():
        names |= {"pr_curve.png", "confusion_matrix.png"}
    assert {f.name for f in files} == names
    assert all(f.stat().st_size > 100 for f in files)
    rows = json.loads(files[1].read_text())
    assert {row["image_id"] for row in rows} == {"p0", "p1", "p2", "p3", "p4"}
    assert rows[1]["bbox"] == [5, 5, 20, 25]
    assert files[2].read_text().splitlines()[1] == "(background),0,5,0,0"
    assert json.loads(files[0].read_text())["stats"]["AP50"] == pytest.approx(report.stats["AP50"])


def test_command(tmp_path, capsys, monkeypatch):
    write_voc(tmp_path / "voc")
    torch.manual_seed(0)
    weights = tmp_path / "tiny.safetensors"
    save_weights(weights, ssdkern.ssd_tiny(4, 64), ["cat", "dog", "emu"])
    command = ["--weights", str(weights), "--data", str(tmp_path / "voc"), "--workers", "0"]
    command += ["--device", "cpu"]
    for metric in ("voc07", "coco"):
        out = tmp_path / metric
        assert main([*command, "--metric", metric, "--output", str(out)]) == 0
        last = capsys.readouterr().out.splitlines()[-1]
        assert last.startswith("mAP@0.5 = 0.")
        written = json.loads((out / "metrics.json").read_text())
        assert f"{written['map50']:.3f}" == last.split()[-1]
        assert (written["metric"], written["num_images"]) == (metric, 5)
    monkeypatch.setattr("ssdkern.evaluate.save", None)  # it does not come so far
    assert main([*command, "--output", str(weights)]) == 1
    assert "File exists" in capsys.readouterr().err
    assert main([*command, "--amp", "bf16"]) == 0
    half = capsys.readouterr().out.splitlines()[-1]
    assert float(half.split()[-1]) == pytest.approx(written["map50"], abs=0.1)
    assert main([*command, "--split", "nowhere"]) == 1
    assert "nowhere" in capsys.readouterr().err
    command[1] = str(tmp_path / "absent.safetensors")
    assert main(command) == 1
    assert "absent" in capsys.readouterr().err


@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_the_network_alone_computes_in_bfloat16(voc, tmp_path, amp):
    """In evaluation and prediction, where asked; scores and boxes are float32 all the same."""
    seen = []

    class Watched(Oracle):
        def detect(self, images, backend=None):
            product = self.weight[None] @ self.weight[:, None]
            seen.append((product.dtype, torch.is_inference(product)))
            return super().detect(images, backend)

    report = evaluate(Watched(), voc, amp=amp)
    assert report.map50 == pytest.approx(1)
    (found,) = predict(Watched(), [np.zeros((40, 60, 3), np.uint8)], amp=amp)
    assert found.scores.dtype == np.float32
    assert seen == [(torch.bfloat16 if amp == "bf16" else torch.float32, True)] * 2


@needs_data
@pytest.mark.parametrize(
    ("iou_threshold", "keep_top_k", "want"),
    [(0.45, 200, (0.2244, 0.3923)), (0.6, 100, (0.2225, 0.3838))],
)
def test_figures_of_a_real_ssd(iou_threshold, keep_top_k, want):
    heads = np.load(Path(DATA, "real_heads/coco_ssd_mobilenet_tiny_val.npz"))
    scores = torch.from_numpy(heads["scores"].astype(np.float32))
    detections = ssdkern.multiclass_nms(
        torch.from_numpy(heads["boxes"]),
        nn.functional.pad(scores, (1, 0)),  # a background class that says nothing
        iou_threshold=iou_threshold,
        keep_top_k=keep_top_k,
    )
    found = pixel_detections(detections, heads["image_sizes"][:, ::-1].tolist())
    truth = json.loads(Path(DATA, "tiny_coco/annotations/instances_val2017.json").read_text())
    ids, categories = heads["image_ids"].tolist(), heads["category_ids"].tolist()
    stats, *_ = coco_evaluate(truth, coco_results(found, ids, categories))
    assert (stats["AP"], stats["AP50"]) == pytest.approx(want, abs=5e-4)


@needs_data
def test_coco_folder_keeps_ids_crowds_and_areas():
    dataset = open_dataset(Path(DATA, "tiny_coco"), "val")
    official = json.loads(Path(DATA, "tiny_coco/annotations/instances_val2017.json").read_text())
    results = json.loads(Path(DATA, "tiny_coco/tinycoco_val2017_ssd_dt.json").read_text())
    label_of = {category: label for label, category in enumerate(dataset.category_ids, 1)}

    class Replay(nn.Module):
        image_size = 16
        step = 0

        def detect(self, images, backend=None):
            found = []
            for index in range(self.step, self.step + len(images)):
                height, width = dataset.size(index)
                rows = [r for r in results if r["image_id"] == dataset.ids[index]]
                xywh = torch.tensor([r["bbox"] for r in rows]).reshape(-1, 4)
                boxes = torch.cat([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], 1)
                boxes = boxes / torch.tensor([width, height, width, height])
                scores = torch.tensor([r["score"] for r in rows])
                labels = torch.tensor([label_of[r["category_id"]] for r in rows])
                found.append((boxes, scores, labels))
            self.step += len(images)
            pad = nn.utils.rnn.pad_sequence
            boxes, scores, labels = (pad(f, True) for f in zip(*found, strict=True))
            count = torch.tensor([len(f[1]) for f in found])
            return ssdkern.Detections(boxes, scores, labels.long(), labels.long(), count)

    report = evaluate(Replay(), dataset, metric="coco", device="cpu", batch_size=50)
    stats, *_ = coco_evaluate(official, results)
    assert sum(t["iscrowd"] for t in official["annotations"]) > 0
    assert list(report.stats.values()) == pytest.approx(list(stats.values()), abs=1e-5)
