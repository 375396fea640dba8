"""Write data sets as VOC, COCO or YOLO folders."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from xml.sax.saxutils import escape

import yaml
from PIL import Image

from ssdkern.data.samples import Sample


def write_voc(splits: Mapping[str, object], folder, suffix: str = ".jpg") -> Path:
    """JPEGImages, Annotations and ImageSets/Main.

    Args:
        splits: data set of each split, of `open_dataset` or the same protocol; all of the same
            classes.
        folder: created where it is not there.
        suffix: of the pictures, which says their format.

    Returns:
        Path: ``folder``.
    """
    folder = Path(folder)
    for name in ("Annotations", "ImageSets/Main"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    names = _class_names(splits)
    for split, dataset in splits.items():
        stems = []
        for stem, sample in _saved(dataset, split, folder / "JPEGImages", suffix):
            stems.append(stem)
            (folder / "Annotations" / f"{stem}.xml").write_text(_xml(sample, stem + suffix, names))
        (folder / "ImageSets/Main" / f"{split}.txt").write_text("\n".join(stems) + "\n")
    return folder


def write_coco(splits: Mapping[str, object], folder, suffix: str = ".jpg") -> Path:
    """annotations/instances_<split>.json and one folder of pictures a split; see `write_voc`."""
    folder = Path(folder)
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    for split, dataset in splits.items():
        names = _class_names(splits)
        ids = getattr(dataset, "category_ids", None) or range(1, len(names) + 1)
        images, annotations = [], []
        for stem, sample in _saved(dataset, split, folder / split, suffix):
            height, width = sample.size
            image = len(images) + 1
            images.append(
                {"id": image, "file_name": stem + suffix, "height": height, "width": width}
            )
            for box, label, difficult, area in zip(*_columns(sample), strict=True):
                x, y, right, bottom = box
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image,
                        "category_id": int(ids[label - 1]),
                        "bbox": [x, y, right - x, bottom - y],
                        "area": area,
                        "iscrowd": int(difficult),
                    }
                )
        categories = [{"id": int(i), "name": n} for i, n in zip(ids, names, strict=True)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return folder


def write_yolo(splits: Mapping[str, object], folder, suffix: str = ".jpg") -> Path:
    """images/<split>, labels/<split> and data.yaml; see `write_voc`. Difficult marks are lost."""
    folder = Path(folder)
    for split, dataset in splits.items():
        labels = folder / "labels" / split
        labels.mkdir(parents=True, exist_ok=True)
        for stem, sample in _saved(dataset, split, folder / "images" / split, suffix):
            height, width = sample.size
            rows = []
            for (x1, y1, x2, y2), label, _, _ in zip(*_columns(sample), strict=True):
                values = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height)
                values += ((x2 - x1) / width, (y2 - y1) / height)
                rows.append(" ".join([str(label - 1), *(f"{value:.8f}" for value in values)]))
            (labels / f"{stem}.txt").write_text("".join(row + "\n" for row in rows))
    config = {split: f"images/{split}" for split in splits}
    config["names"] = dict(enumerate(_class_names(splits)))
    (folder / "data.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return folder


def _class_names(splits: Mapping[str, object]) -> list[str]:
    names = {tuple(dataset.class_names) for dataset in splits.values()}
    if len(names) != 1:
        raise ValueError(f"want splits of the same classes, got {sorted(names)}")
    return list(names.pop())


def _saved(dataset, split: str, folder: Path, suffix: str) -> Iterator[tuple[str, Sample]]:
    """Saves the pictures one by one."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(len(dataset)):
        sample, stem = dataset[index], f"{split}_{index:06d}"
        Image.fromarray(sample.image).save(folder / (stem + suffix))
        yield stem, sample


def _columns(sample: Sample) -> tuple[list, list, list, list]:
    columns = (sample.boxes, sample.labels, sample.difficult, sample.area)
    return tuple(column.tolist() for column in columns)


def _xml(sample: Sample, file: str, names: list[str]) -> str:
    height, width = sample.size
    rows = ["<annotation>", f"  <filename>{escape(file)}</filename>"]
    rows += [f"  <size><width>{width}</width><height>{height}</height><depth>3</depth></size>"]
    for box, label, difficult, _ in zip(*_columns(sample), strict=True):
        rows.append("  <object>")
        rows.append(f"    <name>{escape(names[label - 1])}</name>")
        rows.append(f"    <difficult>{int(difficult)}</difficult>")
        corners = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
        inner = "".join(f"<{corner}>{value:.9g}</{corner}>" for corner, value in corners)
        rows += [f"    <bndbox>{inner}</bndbox>", "  </object>"]
    return "\n".join([*rows, "</annotation>", ""])
