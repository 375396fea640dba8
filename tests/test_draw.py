"""Drawings by their pixels: colours where boxes are, nothing elsewhere, inputs untouched."""

from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from ssdkern.draw import above, class_colour, comparison_grid, draw_boxes
from ssdkern.metrics import ImageDetections

GREY = 128


def blank(height, width):
    return np.full((height, width, 3), GREY, np.uint8)


def sample(height, width, boxes, labels, difficult=None):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    difficult = np.zeros(len(boxes), bool) if difficult is None else np.array(difficult)
    labels = np.array(labels, np.int64)
    return SimpleNamespace(
        image=blank(height, width), boxes=boxes, labels=labels, difficult=difficult
    )


def nothing():
    return ImageDetections(np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64))


def test_colours_are_stable_and_apart():
    colours = [class_colour(label) for label in range(1, 21)]
    assert colours == [class_colour(label) for label in range(1, 21)]
    for one, two in combinations(colours, 2):
        assert np.abs(np.subtract(one, two)).max() > 12
    assert np.abs(np.subtract(class_colour(1), class_colour(2))).max() > 100


def test_box_line_and_tag_where_they_belong():
    image = blank(300, 400)
    picture = np.array(
        draw_boxes(image, np.array([[100, 120, 260, 200]]), [1], class_names=["cat"])
    )
    assert (image == GREY).all()
    colour = class_colour(1)
    for x, y in ((100, 160), (260, 160), (180, 200), (101, 161)):
        assert tuple(picture[y, x]) == colour
    assert (picture[126:196, 106:256] == GREY).all()
    rows, columns = np.nonzero((picture != GREY).any(2))
    assert (columns.min(), columns.max(), rows.max()) == (100, 260, 200)
    assert 100 < rows.min() < 115  # the tag stands on the box
    tag = picture[rows.min() : 120, 100:130].reshape(-1, 3)
    assert (tag == colour).all(1).mean() > 0.3
    assert (tag > 200).all(1).any()  # white letters on blue


@pytest.mark.parametrize(
    "box", [[0, 0, 50, 50], [380, 2, 399, 60], [-30, -30, 900, 900], [5, 5, 5, 5]]
)
def test_tags_stay_inside(box):
    picture = draw_boxes(
        blank(300, 400), np.array([box]), [2], scores=[0.5], class_names=["a", "dog"]
    )
    assert picture.size == (400, 300)
    found = (np.array(picture) == class_colour(2)).all(2)
    assert found[:40].sum() > 60  # the whole tag, in view


def test_lines_grow_with_the_image():
    def line(side):
        boxes = np.array([[0.2, 0.2, 0.8, 0.8]]) * side
        middle = np.array(draw_boxes(blank(side, side), boxes, [1]))[side // 2, : side // 2]
        return (middle != GREY).any(1).sum()

    assert [line(100), line(400), line(2000)] == [1, 2, 10]


def test_highest_score_is_drawn_last():
    boxes = np.array([[20, 20, 80, 80.0]] * 2)
    for scores, top in ([0.9, 0.3], 1), ([0.3, 0.9], 2):
        picture = draw_boxes(blank(100, 100), boxes, [1, 2], scores=scores)
        assert picture.getpixel((20, 60)) == class_colour(top)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "RGB"])
def test_any_mode_is_copied_to_rgb(mode):
    image = Image.new(mode, (60, 60))
    before = image.tobytes()
    picture = draw_boxes(image, np.array([[10, 10, 50, 50]]), [1])
    assert (picture.mode, image.tobytes()) == ("RGB", before)
    assert picture.tobytes() != image.convert("RGB").tobytes()


def test_above_keeps_the_threshold():
    found = ImageDetections(
        np.arange(12).reshape(3, 4), np.array([0.2, 0.5, 0.9]), np.array([1, 2, 3])
    )
    kept = above(found, 0.5)
    assert kept.labels.tolist() == [2, 3]
    assert kept.boxes.tolist() == [[4, 5, 6, 7], [8, 9, 10, 11]]


def test_grid_puts_truth_left_and_prediction_right():
    samples = [
        sample(100, 200, [[20, 20, 180, 80]], [1]),
        sample(200, 100, [], []),
        sample(50, 50, [[5, 5, 45, 45]], [2], [True]),
    ]
    detections = [
        nothing(),
        ImageDetections(
            np.array([[10, 40, 90, 160.0]] * 2), np.array([0.8, 0.4]), np.array([3, 1])
        ),
        nothing(),
    ]
    grid = comparison_grid(samples, detections, ["a", "b", "c"], columns=2, cell=200)
    pixels = np.array(grid)

    def where(label):
        rows, columns = np.nonzero((pixels == class_colour(label)).all(2))
        return columns.min(), columns.max(), rows.min(), rows.max()

    half = grid.width // 4
    assert where(1)[1] < half  # first pair, left; the second image's .4 is left out
    assert where(3)[0] > 3 * half  # second pair, right
    assert where(2)[1] < half
    assert where(2)[2] > where(3)[3]  # third pair, in the next row
    assert (where(1)[1] - where(1)[0], where(2)[1] - where(2)[0]) == (160, 160)
    assert all((each.image == GREY).all() for each in samples)


def test_grid_rejects():
    with pytest.raises(ValueError, match="want detections of 1 > 0 images, got 0"):
        comparison_grid([sample(9, 9, [], [])], [], [])
    with pytest.raises(ValueError, match="want detections of 0 > 0 images, got 0"):
        comparison_grid([], [], [])
