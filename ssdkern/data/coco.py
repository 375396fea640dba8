"""COCO json: ``annotations/instances_*.json``, or a json beside its pictures."""

import json
import re
from typing import Any

from ssdkern.data.collect import Collector, Faults
from ssdkern.data.images import Tree, join, parent, plain_path, stem
from ssdkern.data.source import SPLIT_ALIASES, Entry, split_of

_KEYS = {"images", "annotations", "categories"}
_MAX_SIDE = 1 << 20  # pixels: what is above is no size


class CocoSource:
    """One json a split. Only the json of the asked split is read."""

    format = "coco"

    def __init__(self, tree: Tree):
        self.tree = tree
        self.notes: list[str] = []
        self._files = self._by_split(self._candidates(tree))
        self.splits = sorted(name for name in self._files if name)
        self._loaded: dict[str, dict] = {}
        self.category_ids: list[int] = []
        self.annotation_file: str | None = None

    @staticmethod
    def found(tree: Tree) -> bool:
        return bool(CocoSource._candidates(tree))

    @staticmethod
    def _candidates(tree: Tree) -> list[str]:
        files = tree.files(".json")
        official = [file for file in files if stem(file).startswith("instances")]
        return official or [file for file in files if _looks_like_coco(tree, file)]

    def _by_split(self, files: list[str]) -> dict[str, str]:
        named = [(_split_name(file), file) for file in files]
        plain = [name for name, _ in named]
        splits: dict[str, str] = {}
        for name, file in named:
            if plain.count(name) > 1:
                name = stem(file).removeprefix("instances_")
            if name in splits:
                raise ValueError(
                    f"{self.tree.path(file)}: want one json a split, got also {splits[name]}"
                )
            splits[name] = file
        return splits

    def _load(self, file: str) -> dict:
        if file not in self._loaded:
            path = self.tree.path(file)
            try:
                content = json.loads(path.read_bytes())
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}:{error.lineno}: want json, got {error.msg}") from None
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}: want json, got other bytes ({error})") from None
            if not isinstance(content, dict) or not content.keys() >= _KEYS:
                raise ValueError(f"{path}: want an object with {sorted(_KEYS)}, got none")
            for key in _KEYS:
                if not isinstance(content[key], list) or not all(
                    isinstance(item, dict) for item in content[key]
                ):
                    raise ValueError(f"{path}: want {key} as a list of objects, got another")
            self._loaded[file] = content
        return self._loaded[file]

    def entries(self, split: str | None) -> list[Entry]:
        file = self._files[split] if split else next(iter(self._files.values()))
        content, path = self._load(file), self.tree.path(file)
        self.annotation_file = str(path)
        folder, faults, entries = self._folder(file, content), Faults(), []
        by_image: dict[Any, list[int]] = {}
        for index, item in enumerate(content["annotations"]):
            if _is_id(item.get("image_id")):
                by_image.setdefault(item["image_id"], []).append(index)
            else:
                text = f"annotations[{index}]: want image_id as a number or text, got {item}"
                faults.add(path, None, text)
        missing = 0
        for index, image in enumerate(content["images"]):
            name = plain_path(str(image.get("file_name", "")))
            if name is None or not _is_id(image.get("id")):
                text = f"images[{index}]: want id and a file_name inside the folder, got {image}"
                faults.add(path, None, text)
                continue
            if not self.tree.has(join(folder, name)):
                missing += 1
                last = join(folder, name)
                continue
            entries.append(Entry(join(folder, name), (file, index, by_image.pop(image["id"], []))))
        faults.check()
        if missing and not entries:
            raise ValueError(f"{path}: want its pictures below {self.tree.root}, got no {last}")
        if missing:
            self.notes.append(f"{path}: {missing} pictures are not there, such as {last}")
        elif by_image:
            image_id, indices = next(iter(by_image.items()))
            faults.add(path, None, f"annotations[{indices[0]}]: image_id {image_id} is no image")
            faults.check()
        return entries

    def _folder(self, file: str, content: dict) -> str:
        """The folder that holds most of the first pictures of this json."""
        names = [plain_path(str(i.get("file_name", ""))) for i in content["images"][:50]]
        home = parent(file)
        wanted = stem(file).removeprefix("instances_")

        def score(folder: str) -> tuple[int, bool, bool]:
            present = sum(bool(name) and self.tree.has(join(folder, name)) for name in names)
            return present, folder.rpartition("/")[2] == wanted, folder == home

        return max(sorted(self.tree.folders), key=score)

    def _categories(self, file: str) -> dict[int, str]:
        """Names by ascending id."""
        path, faults = self.tree.path(file), Faults()
        categories = self._load(file)["categories"]
        for index, item in enumerate(categories):
            if not isinstance(item.get("id"), int) or not isinstance(item.get("name"), str):
                faults.add(path, None, f"categories[{index}]: want an id and a name, got {item}")
        faults.check()
        ids = [item["id"] for item in categories]
        if len(set(ids)) != len(ids):
            raise ValueError(f"{path}: want one category an id, got {sorted(ids)}")
        return {
            item["id"]: item["name"] for item in sorted(categories, key=lambda item: item["id"])
        }

    def class_names(self) -> list[str]:
        """In the order of the category ids, which need not be contiguous."""
        first, *others = list(self._loaded) or list(self._files.values())[:1]
        names = self._categories(first)
        for file in others:
            if (got := self._categories(file)) != names:
                path = self.tree.path(file)
                raise ValueError(f"{path}: want the categories of {first}, {names}, got {got}")
        self.category_ids = list(names)
        return list(names.values())

    def fill(self, entries: list[Entry], collector: Collector) -> None:
        self.class_names()
        labels = {category: label for label, category in enumerate(self.category_ids, 1)}
        faults = Faults()
        for entry in entries:
            file, index, rows = entry.annotation
            content, path = self._load(file), self.tree.path(file)
            image = content["images"][index]
            size = (image.get("height"), image.get("width"))
            known = all(isinstance(side, int) and 0 < side < _MAX_SIDE for side in size)
            collector.image(image["id"], self.tree.path(entry.image), size if known else None)
            for row in rows:
                item, name = content["annotations"][row], f"annotations[{row}]"
                box = _corners(item.get("bbox"))
                category, area = item.get("category_id"), item.get("area")
                label = labels.get(category) if isinstance(category, int) else None
                if box is None:
                    text = f"{name}: want bbox as 4 numbers, got {item.get('bbox')}"
                    faults.add(path, None, text)
                elif label is None:
                    text = f"{name}: category_id {category} is no category"
                    faults.add(path, None, text)
                else:
                    crowd = bool(item.get("iscrowd", 0))
                    area = area if _is_number(area) else None
                    collector.box(box, label, (str(path), None, name), crowd, area)
        faults.check()


def _corners(bbox) -> tuple[float, float, float, float] | None:
    if not isinstance(bbox, list) or len(bbox) != 4:
        return None
    if not all(_is_number(value) for value in bbox):
        return None
    x, y, width, height = bbox
    return x, y, x + width, y + height


def _is_id(value) -> bool:
    return isinstance(value, int | str)


def _is_number(value) -> bool:
    """Whether it fits a float: json has integers of any length."""
    return isinstance(value, int | float) and not abs(value) > 1e300


def _split_name(file: str) -> str:
    for word in re.split(r"[^a-z]+", stem(file).removeprefix("instances_").lower()):
        if word in SPLIT_ALIASES:
            return SPLIT_ALIASES[word]
    official = stem(file).startswith("instances_")
    return split_of(parent(file)) or (stem(file).removeprefix("instances_") if official else "")


def _looks_like_coco(tree: Tree, file: str) -> bool:
    """Whether the three keys occur in the first or last part of the file, so that none is read
    whole for nothing."""
    with open(tree.path(file), "rb") as stream:
        head = stream.read(1 << 16)
        stream.seek(0, 2)
        stream.seek(max(stream.tell() - (1 << 16), 0))
        text = head + stream.read()
    return sum(f'"{key}"'.encode() in text for key in _KEYS) >= 2
