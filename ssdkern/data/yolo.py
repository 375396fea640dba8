"""YOLO txt: one text file a picture, ``class cx cy w h`` in parts of the picture."""

import math
from pathlib import Path

import yaml

from ssdkern.data.collect import Collector, Faults
from ssdkern.data.images import Tree, join, lines, parent, read_text, stem
from ssdkern.data.source import Entry, by_folder, read_names

_NAME_FILES = ("classes.txt", "obj.names", "classes.names", "labels.txt")
_MAX_CLASSES = 100_000


class YoloSource:
    """``images/`` and ``labels/`` trees, or both in one folder; names from ``data.yaml`` or
    ``classes.txt``."""

    format = "yolo"

    def __init__(self, tree: Tree):
        self.tree = tree
        self.notes: list[str] = []
        self._yaml, self._config = _config(tree)
        self._labels = set(_label_files(tree))
        labelled = {image: label for image in tree.images() if (label := self._label(image))}
        self._splits = self._from_config()
        if not self._splits:
            self._splits, notes = by_folder(tree, labelled)
            self.notes += notes
        if alone := sorted(self._labels - {*labelled.values()}):
            self.notes.append(f"{len(alone)} label files without a picture, such as {alone[0]}")
        self.splits = sorted(name for name in self._splits if name)
        self._rows: dict[str, list] = {}

    @staticmethod
    def found(tree: Tree) -> bool:
        return bool(_config(tree)[0]) or bool(_label_files(tree))

    def _from_config(self) -> dict[str, list[str]]:
        splits = {}
        for key in ("train", "val", "test"):
            value = self._config.get(key)
            parts = value if isinstance(value, list) else [value] if value else []
            images = [image for part in parts for image in self._resolve(key, str(part))]
            if images:
                splits[key] = list(dict.fromkeys(images))
        return splits

    def _resolve(self, key: str, value: str) -> list[str]:
        """Pictures of a yaml entry: a folder, or a text file that lists pictures."""
        words = [word for word in value.replace("\\", "/").split("/") if word not in ("", ".")]
        while words and words[0] == "..":  # "../train/images", though the yaml lies beside train/
            words.pop(0)
        if value.startswith("/") and self.tree.root.name in words:  # where the folder once was
            words = words[words.index(self.tree.root.name) + 1 :]
        starts = [parent(self._yaml), "."]
        given = str(self._config.get("path") or "").replace("\\", "/").strip("/")
        if given and ".." not in given.split("/"):
            starts.append(given)
        for start in starts:
            path = join(start, "/".join(words)) or "."
            if path in self.tree.folders and self.tree.images(path):
                return self.tree.images(path)
            if path.endswith(".txt") and self.tree.has(path):
                return self._listed(path)
        if key == "test":
            return []
        path = self.tree.path(self._yaml)
        raise ValueError(
            f"{path}:{_line_of(path, key)}: want {key} to name a folder or list below "
            f"{self.tree.root}, got {value!r}"
        )

    def _listed(self, file: str) -> list[str]:
        images, faults = [], Faults()
        for number, row in enumerate(lines(self.tree.path(file)), 1):
            name = row.strip().replace("\\", "/").removeprefix("./")
            if not name:
                continue
            found = next((p for p in (join(parent(file), name), name) if self.tree.has(p)), None)
            if found is None:
                faults.add(self.tree.path(file), number, f"no picture {name} in the folder")
            else:
                images.append(found)
        faults.check()
        return images

    def _label(self, image: str) -> str | None:
        """In ``labels`` instead of the last ``images``, beside the picture, or in one folder."""
        folders = parent(image).split("/")
        candidates = [parent(image), "labels"]
        for index in reversed(range(len(folders))):
            if folders[index].lower() == "images":
                swapped = "/".join([*folders[:index], "labels", *folders[index + 1 :]])
                candidates.insert(0, swapped)
                break
        return next(
            (p for f in candidates if (p := join(f, stem(image) + ".txt")) in self._labels), None
        )

    def entries(self, split: str | None) -> list[Entry]:
        return [Entry(image, self._label(image)) for image in self._splits.get(split or "", [])]

    def class_names(self) -> list[str]:
        if "names" in self._config:
            return self._yaml_names()
        for folder in (".", *sorted(self.tree.folders)):
            for name in _NAME_FILES:
                if self.tree.has(join(folder, name)):
                    return read_names(self.tree.path(join(folder, name)))
        faults = Faults()
        rows = [row for label in sorted(self._labels) for row in self._read(label, faults)]
        faults.check()
        count = 1 + max((row[1] for row in rows), default=-1)
        note = f"no data.yaml or classes.txt: the {count} classes are called by their numbers"
        if note not in self.notes:
            self.notes.append(note)
        return [str(index) for index in range(count)]

    def _yaml_names(self) -> list[str]:
        path, names = self.tree.path(self._yaml), self._config["names"]
        line = _line_of(path, "names")
        if isinstance(names, dict):
            if sorted(names) != list(range(len(names))):
                raise ValueError(f"{path}:{line}: want names numbered from 0, got {sorted(names)}")
            names = [names[index] for index in range(len(names))]
        if not isinstance(names, list) or not names:
            raise ValueError(f"{path}:{line}: want names as a list, got {names!r}")
        if self._config.get("nc", len(names)) != len(names):
            raise ValueError(
                f"{path}:{_line_of(path, 'nc')}: want nc = {len(names)}, the number of names, "
                f"got {self._config['nc']}"
            )
        return [str(name) for name in names]

    def _read(self, label: str, faults: Faults) -> list:
        """(line, class, box) of each object; the box xyxy in parts of the picture."""
        if label not in self._rows:
            path, rows = self.tree.path(label), []
            for number, text in enumerate(lines(path), 1):
                if text.strip():
                    try:
                        rows.append((number, *_parse(text.split())))
                    except ValueError as error:
                        faults.add(path, number, str(error))
            self._rows[label] = rows
        return self._rows[label]

    def fill(self, entries: list[Entry], collector: Collector) -> None:
        names, faults = self.class_names(), Faults()
        for entry in entries:
            collector.image(stem(entry.image), self.tree.path(entry.image), None)
            path = self.tree.path(entry.annotation) if entry.annotation else None
            seen = set()
            for line, number, box in self._read(entry.annotation, faults) if path else ():
                if number >= len(names):
                    text = f"want a class of 0..{len(names) - 1}, got {number}"
                    faults.add(path, line, text)
                elif (number, box) in seen:
                    collector.problem(path, line, f"{names[number]} box given twice: kept once")
                else:
                    seen.add((number, box))
                    collector.box(box, number + 1, (str(path), line, names[number]))
        faults.check()


def _parse(words: list[str]) -> tuple[int, tuple[float, float, float, float]]:
    """A box, or an outline of three points and more, which becomes its bounding box."""
    try:
        number, values = float(words[0]), [float(word) for word in words[1:]]
    except ValueError:
        raise ValueError(f"want numbers, got {' '.join(words)!r}") from None
    if not number.is_integer() or not 0 <= number < _MAX_CLASSES:
        raise ValueError(f"want a class number from 0 to {_MAX_CLASSES - 1}, got {words[0]}")
    if len(values) != 4 and (len(values) < 6 or len(values) % 2):
        raise ValueError(f"want class cx cy w h, got {len(words)} values")
    if any(abs(value) > 2 for value in values if math.isfinite(value)):
        raise ValueError(f"want parts of the picture in 0..1, got {' '.join(words[1:])}")
    if len(values) > 4:
        xs, ys = values[::2], values[1::2]
        return int(number), (min(xs), min(ys), max(xs), max(ys))
    x, y, width, height = values
    return int(number), (x - width / 2, y - height / 2, x + width / 2, y + height / 2)


def _config(tree: Tree) -> tuple[str | None, dict]:
    """The yaml that names classes or splits, nearest the root first."""
    for file in sorted(tree.files(".yaml", ".yml"), key=lambda f: (f.count("/"), f)):
        path = tree.path(file)
        written = read_text(path)
        if "names" not in written:
            continue
        try:
            content = yaml.safe_load(written)
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            line = f":{mark.line + 1}" if mark else ""
            raise ValueError(f"{path}{line}: want yaml, got {error}") from None
        if isinstance(content, dict) and "names" in content and content.keys() & {"train", "val"}:
            return file, content
    return None, {}


def _label_files(tree: Tree) -> list[str]:
    """Text files called like a picture, or in a folder called labels."""
    pictures = {stem(image) for image in tree.images()}
    return [
        file
        for file in tree.files(".txt")
        if file.rpartition("/")[2] not in _NAME_FILES and stem(file) in pictures
    ]


def _line_of(path: Path, key: str) -> int:
    rows = enumerate(lines(path), 1)
    return next((number for number, row in rows if row.lstrip().startswith(f"{key}:")), 1)
