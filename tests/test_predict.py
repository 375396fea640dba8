"""The predict command on the pictures people have, good and bad."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import ssdkern
from ssdkern.checkpoint import save_weights
from ssdkern.predict import find_pictures, main, predict, predict_files

ROTATED = 6  # EXIF: the camera was held upright
BLUE = (30, 60, 220)


class Fixed(nn.Module):
    """Sees one object of class 2 in the left upper quarter, and a faint one of class 1."""

    image_size = 24

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.seen = []

    def detect(self, images, backend=None):
        self.seen.append(images)
        size = len(images)
        boxes = torch.tensor([[0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1], [0, 0, 0, 0]]).expand(size, 3, 4)
        return ssdkern.Detections(
            boxes,
            torch.tensor([0.75, 0.3, 0]).expand(size, 3),
            torch.tensor([2, 1, 0]).expand(size, 3),
            torch.tensor([4, 9, -1]).expand(size, 3),
            torch.full((size,), 2),
        )


@pytest.fixture
def pictures(tmp_path):
    """A folder with one picture of each awkward kind, 40 wide and 80 high as shown."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    upright = Image.new("RGB", (40, 80), BLUE)
    upright.save(folder / "plain.png")
    upright.convert("L").save(folder / "grey.JPG")
    upright.convert("RGBA").save(folder / "alpha.png")
    upright.convert("P").save(folder / "palette.gif")
    exif = Image.Exif()
    exif[0x0112] = ROTATED
    upright.rotate(90, expand=True).save(folder / "turned.jpg", exif=exif)
    (folder / "notes.txt").write_text("no picture")
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_weights(file, ssdkern.ssd_tiny(4, 64), ["cat", "dog", "emu"])
    return file


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_predict_gives_pixels_above_the_threshold():
    images = [np.zeros((80, 40, 3), np.uint8), np.zeros((20, 60, 3), np.uint8)]
    first, second = predict(Fixed(), images)
    assert first.boxes.tolist() == [[0, 0, 20, 40]]
    assert second.boxes.tolist() == [[0, 0, 30, 10]]
    assert (first.labels.tolist(), first.scores.tolist()) == ([2], [0.75])
    for threshold, want in ((0.31, 1), (0.3, 2), (0.76, 0)):
        found = predict(Fixed(), images, score_threshold=threshold)
        assert [len(each.labels) for each in found] == [want, want]
    assert predict(Fixed(), []) == []


def test_awkward_pictures(pictures, tmp_path):
    model, out = Fixed(), tmp_path / "out"
    before = contents(pictures)
    rows = list(predict_files(model, ["cat", "dog"], find_pictures([pictures]), out))
    assert [row["file"].rpartition("/")[2] for row in rows] == [
        *("alpha.png", "grey.JPG", "palette.gif", "plain.png", "turned.jpg")
    ]
    assert json.loads((out / "predictions.json").read_text()) == rows
    for row, image in zip(rows, model.seen, strict=True):
        assert row["size"] == [40, 80]
        assert row["detections"] == [
            {"label": 2, "name": "dog", "score": 0.75, "box": [0, 0, 20, 40]}
        ]
        assert image.shape == (1, 3, 24, 24)
        drawn = Image.open(row["picture"])
        assert (drawn.size, drawn.mode) == ((40, 80), "RGB")
        if "grey" not in row["file"]:
            assert (image[0].float().mean((1, 2)) - torch.tensor(BLUE)).abs().max() < 4
    assert contents(pictures) == before


def test_results_never_overwrite_inputs_or_each_other(pictures, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(pictures / "plain.png", other / "turned.png")
    (other / "link.jpg").symlink_to(pictures / "turned.jpg")
    before = contents(pictures)
    inputs = [*find_pictures([pictures, other])]
    rows = list(predict_files(Fixed(), ["cat", "dog"], inputs, pictures))
    targets = [row["picture"] for row in rows]
    assert len(set(targets)) == len(inputs) == 7
    after = contents(pictures)
    assert {path: after[path] for path in before} == before
    assert {str(pictures / "turned-2.jpg"), str(pictures / "turned-3.jpg")} < set(targets)
    linked = list(predict_files(Fixed(), ["cat", "dog"], [pictures / "turned.jpg"], other))
    again = list(predict_files(Fixed(), ["cat", "dog"], [other / "link.jpg"], other))
    assert (linked[0]["picture"], again[0]["picture"]) == (
        str(other / "turned.jpg"),
        str(other / "link-2.jpg"),
    )
    assert {path: contents(pictures)[path] for path in before} == before


def test_command_names_bad_files_and_goes_on(pictures, weights, tmp_path, capsys):
    bad = pictures / "broken.jpg"
    bad.write_bytes((pictures / "turned.jpg").read_bytes()[:400])
    (pictures / "gone.png").symlink_to("nowhere.png")
    out = tmp_path / "out"
    command = ["--weights", str(weights), "--output", str(out), "--device", "cpu"]
    command += ["--score-threshold", "0.2"]
    assert main([*command, str(pictures), str(pictures / "notes.txt")]) == 1
    printed = capsys.readouterr()
    assert "broken.jpg" in printed.err
    assert "notes.txt" in printed.err
    assert "gone.png: want a picture, got no file" in printed.err
    assert "3 of 8 inputs skipped" in printed.err
    rows = json.loads((out / "predictions.json").read_text())
    assert [("error" in row) for row in rows] == [False, True, True, *[False] * 4, True]
    assert len(list(out.glob("*.jpg"))) == 5

    assert main([*command, str(pictures / "plain.png")]) == 0
    (row,) = json.loads((out / "predictions.json").read_text())
    model, info = ssdkern.checkpoint.load_model(weights)
    (found,) = predict(model, [np.asarray(Image.open(pictures / "plain.png"))], score_threshold=0.2)
    assert [each["name"] for each in row["detections"]] == [
        info["class_names"][label - 1] for label in found.labels
    ]


def test_command_says_what_is_missing(weights, tmp_path, capsys):
    assert main(["--weights", str(weights), str(tmp_path / "absent.jpg")]) == 1
    assert "absent.jpg, which does not exist" in capsys.readouterr().err
    assert main(["--weights", str(weights), str(tmp_path)]) == 1
    assert f"want pictures in {tmp_path}, got none" in capsys.readouterr().err
    wrong = tmp_path / "wrong.safetensors"
    wrong.write_bytes(b"not a checkpoint")
    assert main(["--weights", str(wrong), str(weights)]) == 1
    assert "ssdkern predict: " in capsys.readouterr().err
