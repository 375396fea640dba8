"""Pascal VOC: one XML file a picture, in a devkit, in split folders or beside the pictures."""

from collections.abc import Iterable

from ssdkern.data.collect import Collector, Faults
from ssdkern.data.images import Tree, join, lines, parent, plain_path, stem
from ssdkern.data.source import SPLIT_ALIASES, Entry, by_folder, read_names
from ssdkern.data.voc_xml import Annotation, read_xml


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
            self._folders, notes = by_folder(tree, self._xml)
            self.notes += notes
        self.splits = sorted(self._lists or [name for name in self._folders if name])
        self._parsed: dict[str, Annotation] = {}

    @staticmethod
    def found(tree: Tree) -> bool:
        return bool(tree.files(".xml"))

    def _by_image(self, files: list[str]) -> dict[str, str]:
        """XML path of each picture: of those of its name, the one whose folder fits best."""
        pictures: dict[str, list[str]] = {}
        for image in self.tree.images():
            pictures.setdefault(stem(image), []).append(image)
        owner: dict[str, str] = {}
        alone = []
        for xml in files:
            images = pictures.get(stem(xml), [])
            if not images:
                alone.append(xml)
                continue
            likeness = [_likeness(parent(xml), parent(image)) for image in images]
            best = [i for i, score in zip(images, likeness, strict=True) if score == max(likeness)]
            if len(best) > 1:
                raise ValueError(f"{self.tree.path(xml)}: want one picture for it, got {best}")
            if best[0] in owner:
                raise ValueError(
                    f"{self.tree.path(xml)}: want one annotation for {best[0]}, "
                    f"got also {owner[best[0]]}"
                )
            owner[best[0]] = xml
        if alone:
            self.notes.append(f"{len(alone)} annotations without a picture, such as {alone[0]}")
        return owner

    def _image_sets(self) -> dict[str, list[tuple[str, str]]]:
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
            for number, row in enumerate(lines(self.tree.path(file)), 1):
                name = row.strip()
                first, _, flag = name.rpartition(" ")
                if first and flag in ("-1", "0", "1"):
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
        """Every class of the folder in alphabetical order, or those of ``classes.txt``."""
        for name in ("classes.txt", "labels.txt"):
            if self.tree.has(name):
                return read_names(self.tree.path(name))
        faults = Faults()
        names = {
            thing.name
            for xml in sorted(set(self._xml.values()))
            for thing in self._annotation(xml, faults).objects
        }
        faults.check()
        return sorted(names)

    def _annotation(self, xml: str, faults: Faults) -> Annotation:
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


def _likeness(home: str, folder: str) -> tuple[bool, bool, int]:
    """How well a picture's folder fits an annotation's; the second point rules out masks."""
    words = folder.split("/")
    proper = words[-1].lower() in ("jpegimages", "images")
    return folder == home, proper, len({*home.split("/")} & {*words})


def _unknown(name: str, labels: dict[str, int]) -> str:
    return f"want a class of {', '.join(labels)}, got {name!r}"
