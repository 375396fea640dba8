"""Open a data folder, whatever its format."""

import os

from ssdkern.data.coco import CocoSource
from ssdkern.data.collect import Collector
from ssdkern.data.images import Tree
from ssdkern.data.samples import DetectionDataset
from ssdkern.data.source import choose
from ssdkern.data.voc import VocSource
from ssdkern.data.yolo import YoloSource

_SOURCES = {"coco": CocoSource, "voc": VocSource, "yolo": YoloSource}


def open_dataset(
    root: str | os.PathLike,
    split: str = "train",
    *,
    format: str | None = None,
    val_fraction: float | None = None,
    allow_outside: bool = False,
) -> DetectionDataset:
    """Open a folder of pictures with boxes: Pascal VOC, COCO json or YOLO txt.

    Format, splits and class names are found by looking. Class names are those of ``data.yaml``,
    ``classes.txt`` or the json's categories, else (VOC) every name in the folder, sorted.

    A split the folder has is taken as it is. Where it has none, a share of the pictures is held
    back as ``val`` by a hash of their names. Where only ``val`` is missing, ``test`` stands in;
    where both are missing, a share of ``train`` is held back. Where ``test`` is missing, ``val``
    stands in. ``notes`` says which.

    Args:
        root: the folder, or one above it; all files read lie in it.
        split: ``train``, ``val``, ``test``, any other the folder has, or several as ``a+b``.
        format: ``voc``, ``coco`` or ``yolo``, where a folder holds more than one.
        val_fraction: hold back this share of ``train`` as ``val``, whatever splits there are.
        allow_outside: follow links that lead out of the folder.

    Returns:
        DetectionDataset: boxes that are empty or outside are dropped, others clipped to the
        picture; both are listed in ``problems``.

    Raises:
        ValueError: no known format, no such split, or faulty annotations, with file and line.
    """
    tree = Tree(root, allow_outside)
    if format is not None and format not in _SOURCES:
        raise ValueError(f"want format of {sorted(_SOURCES)}, got {format!r}")
    found = [format] if format else [name for name, kind in _SOURCES.items() if kind.found(tree)]
    if not found:
        raise ValueError(
            f"want VOC xml, COCO json or YOLO txt annotations, got none in {tree.root} "
            f"({len(tree.images())} pictures)"
        )
    if len(found) > 1:
        raise ValueError(f"want one format, got {found} in {tree.root}: say which by format=")
    source = _SOURCES[found[0]](tree)
    entries, notes = choose(source, split, val_fraction)
    dataset = DetectionDataset(source.format, source.class_names(), split)
    collector = Collector(dataset)
    source.fill(entries, collector)
    collector.finish(relative=source.format == "yolo")
    dataset.splits = source.splits or ["train", "val"]
    dataset.notes = [*notes, *source.notes]
    if source.format == "coco":
        dataset.category_ids = source.category_ids
        dataset.annotation_file = source.annotation_file
    return dataset
