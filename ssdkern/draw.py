"""Pictures of boxes: detections on an image, and ground truth beside predictions."""

import colorsys

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from ssdkern.metrics import ImageDetections

_GOLDEN_RATIO = 0.618034
_PAPER = (245, 245, 245)
_INK = (40, 40, 40)


def class_colour(label):
    """RGB of a label: neighbours differ in hue, and every third one is darker."""
    value = (1.0, 0.9, 0.75)[label % 3]
    rgb = colorsys.hsv_to_rgb(label * _GOLDEN_RATIO % 1, 0.85, value)
    return tuple(round(255 * c) for c in rgb)


def _ink_on(colour):
    """Black or white, whichever reads better on `colour` (ITU-R BT.601 luma)."""
    luma = np.dot(colour, (0.299, 0.587, 0.114))
    return (0, 0, 0) if luma > 130 else (255, 255, 255)


def draw_boxes(image, boxes, labels, *, scores=None, class_names=None, difficult=None):
    """Draw labelled boxes on a copy of an image.

    Args:
        image: uint8 array [H, W, 3], RGB, or a PIL image.
        boxes (ndarray[N, 4]): xyxy in pixels.
        labels (ndarray[N]): from 1; they choose the colour.
        scores (ndarray[N]): written after the name; the highest is drawn last, on top.
        class_names: ``class_names[0]`` is that of label 1; None writes the number.
        difficult (ndarray[N] bool): drawn thin and named so.

    Returns:
        PIL.Image.Image: RGB; line and text grow with the image.
    """
    picture = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    picture = picture.convert("RGB")  # always a copy
    side = max(picture.size)
    width = max(1, round(side / 200))
    font = ImageFont.load_default(size=max(10, round(side / 44)))
    canvas = ImageDraw.Draw(picture)
    order = range(len(boxes)) if scores is None else np.argsort(scores, kind="stable")
    tags = []
    for row in order:
        label = int(labels[row])
        hard = difficult is not None and difficult[row]
        name = str(label) if class_names is None else class_names[label - 1]
        name += " (difficult)" if hard else ""
        text = name if scores is None else f"{name} {scores[row]:.2f}"
        x1, y1, x2, y2 = (float(v) for v in boxes[row])
        corners = min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)
        colour = class_colour(label)
        canvas.rectangle(corners, outline=colour, width=1 if hard else width)
        tags.append((corners, text, colour))
    for corners, text, colour in tags:  # after all boxes: no line runs through a name
        _write_tag(canvas, picture.size, corners, text, colour, font, width)
    return picture


def _write_tag(canvas, size, corners, text, colour, font, pad):
    """Text on a coloured ground above the box, or inside it where the image ends."""
    left, _, right, _ = canvas.textbbox((0, 0), text, font=font)
    _, top, _, bottom = canvas.textbbox((0, 0), "Agjl", font=font)  # equal heights for all names
    width, height = right - left + 2 * pad, bottom - top + 2 * pad
    x = min(max(corners[0], 0), max(size[0] - width, 0))
    y = corners[1] - height if corners[1] >= height else max(corners[1], 0)
    canvas.rectangle((x, y, x + width, y + height), fill=colour)
    canvas.text((x + pad - left, y + pad - top), text, fill=_ink_on(colour), font=font)


def comparison_grid(samples, detections, class_names, *, score_threshold=0.5, columns=2, cell=400):
    """Ground truth (left) beside predictions (right) of several images.

    Args:
        samples: with ``image`` uint8 [H, W, 3], ``boxes`` xyxy pixels, ``labels``, ``difficult``.
        detections (list[ImageDetections]): of the same images.
        class_names: of labels 1..C-1.
        score_threshold: detections below it are left out.
        columns: pairs in a row.
        cell: side in pixels of the square each picture fits into.

    Returns:
        PIL.Image.Image: the grid, with a line of headings.

    Raises:
        ValueError: there is no image, or not one set of detections for each.
    """
    if len(samples) != len(detections) or not samples:
        raise ValueError(f"want detections of {len(samples)} > 0 images, got {len(detections)}")
    columns = min(columns, len(samples))
    pairs = [
        _compare(sample, above(found, score_threshold), class_names, cell)
        for sample, found in zip(samples, detections, strict=True)
    ]
    rows = [pairs[start : start + columns] for start in range(0, len(pairs), columns)]
    heights = [max(truth.height for truth, _ in row) for row in rows]
    gap, head = max(4, cell // 50), max(16, cell // 14)
    pair = 2 * cell + 3 * gap
    grid = Image.new("RGB", (columns * pair + gap, head + sum(heights) + gap * len(rows)), _PAPER)
    canvas, font = ImageDraw.Draw(grid), ImageFont.load_default(size=head * 2 // 3)
    for column in range(columns):
        for text, left in (("ground truth", gap), ("prediction", cell + 2 * gap)):
            middle = column * pair + left + cell / 2, head / 2
            canvas.text(middle, text, fill=_INK, font=font, anchor="mm")
    top = head
    for row, height in zip(rows, heights, strict=True):
        for column, (truth, guess) in enumerate(row):
            left = column * pair + gap + (cell - truth.width) // 2
            y = top + (height - truth.height) // 2
            grid.paste(truth, (left, y))
            grid.paste(guess, (left + cell + gap, y))
        top += height + gap
    return grid


def _compare(sample, found, class_names, cell):
    """Two pictures that fit a square of `cell` pixels: drawn at that size, lines stay sharp."""
    height, width = sample.image.shape[:2]
    picture = ImageOps.contain(Image.fromarray(sample.image), (cell, cell))
    scale = np.array([picture.width / width, picture.height / height] * 2)
    truth = draw_boxes(
        picture,
        sample.boxes * scale,
        sample.labels,
        class_names=class_names,
        difficult=sample.difficult,
    )
    guess = draw_boxes(
        picture, found.boxes * scale, found.labels, scores=found.scores, class_names=class_names
    )
    return truth, guess


def above(detections, score_threshold):
    """The detections of one image whose score is at least `score_threshold`."""
    keep = detections.scores >= score_threshold
    return ImageDetections(*(field[keep] for field in detections))
