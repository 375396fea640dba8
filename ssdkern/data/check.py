"""What is in a set, and whether it can be trained on."""

import textwrap

import numpy as np

from ssdkern.data.images import check_header, open_image
from ssdkern.data.samples import DetectionDataset, Problem

_LISTED = 20
_TABLE = 20  # classes shown one a line; more are run together
_MAX_DROPPED = 0.1  # of all boxes: above, the annotations are taken for misread
_MAX_OPENED = 20_000  # pictures whose headers are read, 0.1 ms each


def summarize(dataset) -> str:
    """A table of pictures, boxes per class, what was dropped and where.

    Args:
        dataset: `DetectionDataset`. Of another of the same protocol, pictures and classes alone
            are told, as its boxes would have to be asked for one by one.
    """
    names = dataset.class_names
    if not isinstance(dataset, DetectionDataset):
        return f"{len(dataset)} pictures, {len(names)} classes: {', '.join(names)}"
    counts = dataset.label_counts().tolist()
    lines = [
        f"{dataset.format} data, split {dataset.split}: {len(dataset)} pictures, "
        f"{sum(counts)} boxes, {len(names)} classes"
    ]
    present = [(n, c) for n, c in zip(names, counts, strict=True) if c]
    if len(present) <= _TABLE:
        width = max((len(name) for name, _ in present), default=0)
        lines += [f"  {name:<{width}}  {count}" for name, count in present]
    else:
        text = ", ".join(f"{name} {count}" for name, count in present)
        lines += textwrap.wrap(text, 98, initial_indent="  ", subsequent_indent="  ")
    absent = [n for n, c in zip(names, counts, strict=True) if not c]
    if absent:
        lines.append(f"  no boxes of {len(absent)} classes: {_some(absent)}")
    empty = int((np.diff(dataset.offsets) == 0).sum())
    difficult = int(dataset.difficult.sum())
    kind = "crowds" if dataset.format == "coco" else "difficult"
    lines += [f"  {empty} pictures without objects"] if empty else []
    lines += [f"  {difficult} boxes marked {kind}"] if difficult else []
    if dataset.dropped or dataset.clipped:
        lines.append(f"  {dataset.dropped} boxes dropped, {dataset.clipped} clipped")
    lines += [f"  {note}" for note in dataset.notes]
    lines += [f"  {problem}" for problem in dataset.problems[:_LISTED]]
    if len(dataset.problems) > _LISTED:
        lines.append(f"  ... and {len(dataset.problems) - _LISTED} more")
    return "\n".join(lines)


def _some(names: list[str], limit: int = 10) -> str:
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")


def damaged_pictures(dataset: DetectionDataset, decode: bool = False) -> list[Problem]:
    """Pictures that cannot be read or have another size than annotated.

    Args:
        decode: read every picture whole, which also finds cut-off files. False: headers only,
            of at most 20000 pictures, evenly spread.
    """
    indices = np.arange(len(dataset))
    if not decode and len(indices) > _MAX_OPENED:
        indices = np.linspace(0, len(dataset) - 1, _MAX_OPENED).astype(int)
    found = []
    for index in indices:
        path = dataset.paths[index]
        annotated = tuple(int(side) for side in dataset.sizes[index])
        try:
            (open_image if decode else check_header)(path, annotated if annotated[0] else None)
        except ValueError as error:
            found.append(Problem(path, None, str(error).removeprefix(f"{path}: ")))
    return found


def check(dataset, decode: bool = False) -> None:
    """Refuse a set that cannot be trained on.

    Args:
        dataset: `DetectionDataset`, or another of the same protocol.
        decode: see `damaged_pictures`.

    Raises:
        ValueError: no pictures or no boxes, over a tenth of the boxes dropped, or damaged
            pictures; all of them are named.
    """
    if not len(dataset):
        raise ValueError("want pictures to train on, got an empty set")
    if not isinstance(dataset, DetectionDataset):
        return
    boxes = len(dataset.labels)
    if not boxes:
        raise ValueError(
            f"want boxes in split {dataset.split}, got none on {len(dataset)} pictures"
        )
    if dataset.dropped > _MAX_DROPPED * (boxes + dataset.dropped):
        first = "\n".join(str(problem) for problem in dataset.problems[:_LISTED])
        raise ValueError(
            f"want at most {_MAX_DROPPED:.0%} of the boxes dropped, got {dataset.dropped} of "
            f"{boxes + dataset.dropped}:\n{first}"
        )
    damaged = damaged_pictures(dataset, decode)
    if damaged:
        more = f"\n... and {len(damaged) - _LISTED} more" if len(damaged) > _LISTED else ""
        raise ValueError("\n".join(str(problem) for problem in damaged[:_LISTED]) + more)
