"""Parse one Pascal VOC annotation, keeping the line of every element."""

import math
from pathlib import Path
from xml.sax import SAXParseException
from xml.sax.handler import ContentHandler

from ssdkern.data.collect import Faults

_MAX_BYTES = 16 << 20
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


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
    # here, so that all that reads no XML runs without it
    import defusedxml.sax
    from defusedxml.common import DefusedXmlException

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
