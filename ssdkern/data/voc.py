"""Pascal VOC: one XML file a picture, in a devkit, in split folders or beside the pictures."""

import math
from collections.abc import Iterable
from pathlib import Path
from xml.sax import SAXParseException
from xml.sax.handler import ContentHandler

import defusedxml.sax
from defusedxml.common import DefusedXmlException

from .collect import Collector, Faults
from .images import Tree, join, parent, plain_path, stem
from .source import SPLIT_ALIASES, Entry, split_of

_MAX_BYTES = 16 << 20
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


class VocSource:
    """Annotations by picture; ``ImageSets/Main`` or split folders where there are any."""

    format = "voc"

    def __init__(self, tree: Tree):
        self.tree = tree
        self.notes: list[str] = []
        self._xml = self._by_image(tree.files(".xml"))
        self._lists = self._image_sets()
        self._folders: dict[str, list[str]] = {}
        if not self._lists:
            for image in tree.images():
                self._folders.setdefault(split_of(parent(image)) or "", []).append(image)
            if set(self._folders) == {""}:
                self._folders = {"": self._folders[""]}
        self.splits = sorted(self._lists or [name for name in self._folders if name])
        self._parsed: dict[str, Annotation] = {}

    @staticmethod
    def found(tree: Tree) -> bool:
        return bool(tree.files(".xml"))

    def _by_image(self, files: list[str]) -> dict[str, str]:
        """XML path of each picture: beside it, or in the folder beside its folder."""
        owner: dict[str, str] = {}
        around: dict[str, list[str]] = {}  # folder above -> picture folders
        for folder in self.tree.folders:
            around.setdefault(parent(folder), []).append(folder)
        for xml in files:
            home = parent(xml)
            folders = [home, *around.get(parent(home), []), parent(home)]
            image = next((i for f in folders if (i := self.tree.image(f, stem(xml)))), None)
            if image is None:
                # Annotations/train/a.xml belongs to JPEGImages/train/a.jpg
                above, last = parent(parent(home)), home.rpartition("/")[2]
                twins = [join(f, last) for f in around.get(above, [])]
                image = next((i for f in twins if (i := self.tree.image(f, stem(xml)))), None)
            if image is None:
                self.notes.append(f"{xml}: no picture of that name")
            elif image in owner:
                raise ValueError(
                    f"{self.tree.path(xml)}: want one annotation for {image}, "
                    f"got also {owner[image]}"
                )
            else:
                owner[image] = xml
        return owner

    def _image_sets(self) -> dict[str, list[tuple[str, str, int]]]:
        """Split -> (folder of the devkit, list file) of every ``ImageSets/Main/<split>.txt``."""
        lists: dict[str, list[tuple[str, str]]] = {}
        for file in self.tree.files(".txt"):
            home, name = parent(file), stem(file)
            if not (home == "ImageSets/Main" or home.endswith("/ImageSets/Main")):
                continue
            if name.rpartition("_")[2] in SPLIT_ALIASES and "_" in name:
                continue  # aeroplane_train.txt: one class
            devkit = parent(parent(home))
            name = SPLIT_ALIASES.get(name, name)
            lists.setdefault(name, []).append((devkit, file))
            if devkit != ".":  # "VOC2007/trainval" where a devkit holds several years
                lists.setdefault(f"{devkit.rpartition('/')[2]}/{name}", []).append((devkit, file))
        return lists

    def entries(self, split: str | None) -> list[Entry]:
        if not self._lists:
            images = self._folders.get(split or "", [])
            return [Entry(image, self._xml.get(image)) for image in images]
        entries, faults = [], Faults()
        for devkit, file in self._lists[split]:
            folders = [join(devkit, "JPEGImages"), join(devkit, "images"), devkit]
            for number, row in enumerate(_lines(self.tree.path(file)), 1):
                name = row.strip()
                first, _, flag = name.rpartition(" ")
                if flag in ("-1", "0", "1"):
                    name = first.strip()
                if not name:
                    continue
                image = self._find(folders, name)
                if image is None:
                    faults.add(self.tree.path(file), number, f"no picture {name} in {folders[0]}")
                else:
                    entries.append(Entry(image, self._xml.get(image)))
        faults.check()
        return entries

    def _find(self, folders: Iterable[str], name: str) -> str | None:
        name = plain_path(name) or ""
        for folder in folders:
            path = join(folder, name)
            if self.tree.has(path) and not path.endswith(".xml"):
                return path
            if image := self.tree.image(parent(path), path.rpartition("/")[2]):
                return image
        return None

    def class_names(self) -> list[str]:
        """Every class of the folder in alphabetical order, or the lines of ``classes.txt``."""
        for name in ("classes.txt", "labels.txt"):
            if self.tree.has(name):
                return [row.strip() for row in _lines(self.tree.path(name)) if row.strip()]
        faults = Faults()
        names = {
            thing.name
            for xml in sorted(set(self._xml.values()))
            for thing in self._annotation(xml, faults).objects
        }
        faults.check()
        return sorted(names)

    def _annotation(self, xml: str, faults: Faults) -> "Annotation":
        if xml not in self._parsed:
            self._parsed[xml] = read_xml(self.tree.path(xml), faults)
        return self._parsed[xml]

    def fill(self, entries: list[Entry], collector: Collector) -> None:
        labels = {name: label for label, name in enumerate(self.class_names(), 1)}
        faults = Faults()
        for entry in entries:
            note = self._annotation(entry.annotation, faults) if entry.annotation else Annotation()
            collector.image(stem(entry.image), self.tree.path(entry.image), note.size)
            for thing in note.objects:
                if thing.name not in labels:
                    file = self.tree.path(entry.annotation)
                    faults.add(file, thing.line, _unknown(thing.name, labels))
                    continue
                where = (str(self.tree.path(entry.annotation)), thing.line, thing.name)
                collector.box(thing.box, labels[thing.name], where, thing.difficult)
        faults.check()


def _unknown(name: str, labels: dict[str, int]) -> str:
    return f"want a class of {', '.join(labels)}, got {name!r}"


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8-sig").splitlines()


class Thing:
    """One <object>."""

    def __init__(self, line: int):
        self.line = line
        self.name = ""
        self.difficult = False
        self.corners: dict[str, float] = {}

    @property
    def box(self) -> tuple[float, ...]:
        return tuple(self.corners[corner] for corner in _CORNERS)


class Annotation:
    """What one XML file says."""

    def __init__(self):
        self.size: tuple[int, int] | None = None
        self.objects: list[Thing] = []


class _Handler(ContentHandler):
    """Keeps the line of every element, which ElementTree forgets."""

    def __init__(self, path: Path, faults: Faults):
        self.path, self.faults = path, faults
        self.annotation = Annotation()
        self.sides: dict[str, int] = {}
        self.tags: list[str] = []
        self.text: list[str] = []
        self.started = 0

    @property
    def line(self) -> int:
        return self._locator.getLineNumber()

    def startElement(self, tag, attributes):  # noqa: N802
        self.tags.append(tag)
        self.text.clear()
        self.started = self.line
        if self.tags[1:] == ["object"]:
            self.annotation.objects.append(Thing(self.line))

    def characters(self, content):
        self.text.append(content)

    def endElement(self, tag):  # noqa: N802
        path, text = self.tags[1:], "".join(self.text).strip()
        self.tags.pop()
        if path == ["object"]:
            self._end_object()
        elif path[:1] == ["object"]:
            thing = self.annotation.objects[-1]
            if path[1:] == ["name"]:
                thing.name = text
            elif path[1:] == ["difficult"]:
                thing.difficult = text not in ("", "0", "false", "False")
            elif len(path) == 3 and path[1] == "bndbox" and tag in _CORNERS:
                thing.corners[tag] = self._number(tag, text)
        elif path in (["size", "width"], ["size", "height"]):
            value = self._number(tag, text)
            self.sides[tag] = int(value) if math.isfinite(value) else 0
        elif not path and min(self.sides.values(), default=0) > 0 and len(self.sides) == 2:
            self.annotation.size = (self.sides["height"], self.sides["width"])

    def _number(self, tag: str, text: str) -> float:
        try:
            return float(text)
        except ValueError:
            self.faults.add(self.path, self.started, f"want a number in <{tag}>, got {text!r}")
            return 0.0

    def _end_object(self) -> None:
        thing = self.annotation.objects[-1]
        missing = [corner for corner in _CORNERS if corner not in thing.corners]
        if not thing.name:
            self.faults.add(self.path, thing.line, "want a <name> in <object>, got none")
        if missing:
            text = f"want <bndbox> with {', '.join(_CORNERS)} in <object>, got no {missing[0]}"
            self.faults.add(self.path, thing.line, text)
            self.annotation.objects.pop()


def read_xml(path: Path, faults: Faults) -> Annotation:
    """Parse one VOC file; what is wrong with it goes to ``faults``."""
    data = path.read_bytes()
    handler = _Handler(path, faults)
    if not data.strip():
        return handler.annotation
    if len(data) > _MAX_BYTES:
        faults.add(path, None, f"want at most {_MAX_BYTES} bytes, got {len(data)}")
        return handler.annotation
    try:
        defusedxml.sax.parseString(data, handler)
    except SAXParseException as error:
        faults.add(path, error.getLineNumber(), f"want XML, got {error.getMessage()}")
    except DefusedXmlException as error:
        faults.add(path, None, f"want XML without entities, got {error}")
    return handler.annotation
