"""What the three readers share: entries, split names, choosing a split."""

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ssdkern.data.collect import Collector
from ssdkern.data.images import Tree, lines, parent

SPLIT_ALIASES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
    "trainval": "trainval",
}
_HELD_BACK = 0.2


@dataclass(frozen=True)
class Entry:
    """A picture of a split: its path below the root, and what its reader needs to annotate it."""

    image: str
    annotation: Any = None


class Source(Protocol):
    """A data folder seen by the reader of its format."""

    format: str
    splits: list[str]  # empty: the folder has none
    notes: list[str]

    def __init__(self, tree: Tree): ...

    def entries(self, split: str | None) -> list[Entry]: ...

    def class_names(self) -> list[str]: ...

    def fill(self, entries: list[Entry], collector: Collector) -> None: ...


def choose(source: Source, split: str, val_fraction: float | None) -> tuple[list[Entry], list[str]]:
    """The entries of ``split``, and what has to be said about how they were found.

    A split of the folder is taken as it is. Otherwise: ``train`` may be ``trainval``; without
    ``val`` the ``test`` split stands in for it, and without both a share of ``train`` is held
    back by file name; without ``test``, ``val`` stands in for it. ``a+b`` joins two splits.
    """
    if "+" in split:
        entries, notes = {}, []
        for part in split.split("+"):
            found, said = choose(source, part, val_fraction)
            entries.update((entry.image, entry) for entry in found)
            notes += [note for note in said if note not in notes]
        return list(entries.values()), notes
    real = source.splits
    if split not in ("train", "val", "test"):
        if split in real:
            return source.entries(split), []
        raise ValueError(f"want a split of {real or ['train', 'val', 'test']}, got {split!r}")
    if split == "test":
        if "test" in real:
            return source.entries("test"), []
        entries, notes = choose(source, "val", val_fraction)
        return entries, [*notes, "no test split: val stands in for it"]
    has_val = "val" in real and val_fraction is None
    if has_val and split == "val":
        return source.entries("val"), []
    base = next((name for name in ("train", "trainval") if name in real), None)
    if real and base is None:
        if split == "val" and "test" in real:
            return source.entries("test"), ["no val split: test stands in for it"]
        raise ValueError(f"want a {split} split, got only {real}")
    if has_val:
        held = {entry.image for entry in source.entries("val")} if base == "trainval" else ()
        return [entry for entry in source.entries(base) if entry.image not in held], []
    if val_fraction is None and "test" in real:
        if split == "val":
            note = "no val split: test stands in for it; val_fraction=0.1 holds back train instead"
            return source.entries("test"), [note]
        return source.entries(base), []
    return _held_back(source.entries(base), base, split, val_fraction)


def _held_back(
    entries: list[Entry], base: str | None, split: str, fraction: float | None
) -> tuple[list[Entry], list[str]]:
    """The share of ``entries`` whose hashed names come first is val, the rest train."""
    fraction = _HELD_BACK if fraction is None else fraction
    if not 0 < fraction < 1:
        raise ValueError(f"want val_fraction between 0 and 1, got {fraction}")
    if len(entries) < 2:
        return entries, ["a single picture: it is both train and val"]
    ranked = sorted(
        entries, key=lambda e: hashlib.blake2b(e.image.encode(), digest_size=8).digest()
    )
    count = min(max(round(fraction * len(entries)), 1), len(entries) - 1)
    held = {entry.image for entry in ranked[:count]}
    origin = f"of {base} " if base else ""
    note = (
        f"{'no val split' if base else 'no splits'}: {count} of {len(entries)} pictures {origin}"
        "held back as val, by a hash of the file name"
    )
    return [entry for entry in entries if (entry.image in held) == (split == "val")], [note]


def split_of(folder: str) -> str | None:
    """The split a folder path names: ``images/valid`` is val."""
    names = [SPLIT_ALIASES[p.lower()] for p in folder.split("/") if p.lower() in SPLIT_ALIASES]
    return names[-1] if names else None


def by_folder(tree: Tree, annotated: Collection[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Pictures of each split the folder names speak of ("" where they name none), and a note.

    Folders without a single annotated picture are left out: masks, the pictures of a README.
    """
    folders = {parent(image) for image in annotated}
    splits: dict[str, list[str]] = {}
    for image in tree.images():
        if parent(image) in folders:
            splits.setdefault(split_of(parent(image)) or "", []).append(image)
    if "" in splits and len(splits) > 1:
        return splits, [f"{len(splits.pop(''))} pictures outside of the splits are left out"]
    return splits, []


def read_names(path: Path) -> list[str]:
    """Class names, one a line; a background class, which some tools put first, is left out."""
    names = [row.strip() for row in lines(path) if row.strip()]
    names = [name for name in names if name.lower().strip("_") != "background"]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{path}: want each class once, got {', '.join(twice)} twice")
    return names
