"""Pictures on disk: which files a data folder holds, and how one is decoded."""

import os
import warnings
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif"})
_ORIENTATION = 0x0112  # EXIF tag
_MAX_DEPTH = 8


class Tree:
    """Every file under a data folder, found by one walk.

    Readers open only what is listed here, so no annotation can lead out of the folder: a link
    that points outside is an error unless ``allow_outside``.
    """

    def __init__(self, root: str | os.PathLike, allow_outside: bool = False):
        self.root = Path(root).expanduser().absolute()
        if not self.root.is_dir():
            raise ValueError(f"want a folder with pictures and annotations, got {self.root}")
        self.allow_outside = allow_outside
        self._real = os.path.realpath(self.root)
        self.folders: dict[str, set[str]] = {}  # "." or "a/b" -> file names
        self._walk(self.root, PurePosixPath("."), 0)
        self._stems: dict[str, dict[str, list[str]]] = {}

    def _walk(self, folder: Path, relative: PurePosixPath, depth: int) -> None:
        names: set[str] = set()
        for entry in os.scandir(folder):
            if entry.name.startswith("."):
                continue
            if entry.is_symlink():
                self._check_link(entry.path)
            if entry.is_dir():
                if depth < _MAX_DEPTH and not _leads_up(entry):
                    self._walk(Path(entry.path), relative / entry.name, depth + 1)
            elif entry.is_file():
                names.add(entry.name)
        self.folders[str(relative)] = names

    def _check_link(self, path: str) -> None:
        real = os.path.realpath(path)
        if self.allow_outside or os.path.commonpath([real, self._real]) == self._real:
            return
        raise ValueError(
            f"{path}: want files inside the data folder, got a link to {real} "
            "(allow_outside=True accepts it)"
        )

    def path(self, relative: str) -> Path:
        return self.root / relative

    def has(self, relative: str) -> bool:
        folder, _, name = relative.rpartition("/")
        return name in self.folders.get(folder or ".", ())

    def files(self, *suffixes: str) -> list[str]:
        """Sorted paths, relative to the root, of the files that end so."""
        return sorted(
            name if folder == "." else f"{folder}/{name}"
            for folder, names in self.folders.items()
            for name in names
            if PurePosixPath(name).suffix.lower() in suffixes
        )

    def images(self, folder: str = ".", deep: bool = True) -> list[str]:
        """Sorted pictures below ``folder``."""
        found = []
        for name, files in self.folders.items():
            if name == folder or (deep and (folder == "." or name.startswith(folder + "/"))):
                prefix = "" if name == "." else name + "/"
                found += [prefix + f for f in files if _is_image(f)]
        return sorted(found)

    def image(self, folder: str, stem: str) -> str | None:
        """The picture called ``stem`` in ``folder``, whatever its suffix."""
        if folder not in self._stems:
            stems: dict[str, list[str]] = {}
            for name in sorted(self.folders.get(folder, ())):
                if _is_image(name):
                    stems.setdefault(os.path.splitext(name)[0], []).append(name)
            self._stems[folder] = stems
        names = self._stems[folder].get(stem)
        return join(folder, names[0]) if names else None


def _leads_up(entry: os.DirEntry) -> bool:
    """Whether a link leads to a folder that holds it: following it would not end."""
    if not entry.is_symlink():
        return False
    real = os.path.realpath(entry.path)
    return os.path.commonpath([real, os.path.realpath(os.path.dirname(entry.path))]) == real


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def join(folder: str, name: str) -> str:
    return name if folder in (".", "") else f"{folder}/{name}"


def parent(relative: str) -> str:
    return relative.rpartition("/")[0] or "."


def stem(relative: str) -> str:
    return os.path.splitext(relative.rpartition("/")[2])[0]


def read_text(path: Path) -> str:
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}:{line}: want UTF-8 text, got byte 0x{content[error.start]:02x}"
        ) from None


def lines(path: Path) -> list[str]:
    return read_text(path).splitlines()


def plain_path(name: str) -> str | None:
    """``name`` as a relative path with forward slashes; None where it could leave its folder."""
    name = name.replace("\\", "/")
    pure = PurePosixPath(name)
    if not name or "\0" in name or pure.is_absolute() or ".." in pure.parts or name[1:2] == ":":
        return None
    return str(pure)


def image_size(path: str | os.PathLike) -> tuple[int, int]:
    """Height and width as a viewer shows the picture (EXIF applied), from its header alone."""
    with _opened(path) as image:
        return _shown(image)


def open_image(
    path: str | os.PathLike, size: tuple[int, int] | None = None, scale: int = 1
) -> Image.Image:
    """Decode a picture as 8-bit RGB.

    Grey, palette, CMYK and 16-bit pictures are converted, transparent ones laid on white.

    Args:
        path: the file; it is never changed.
        size: height and width the annotation states. An EXIF-rotated picture is turned upright
            unless only the stored, unturned pixels have this size: then the boxes were drawn on
            those. None turns it always.
        scale: 1, 2, 4 or 8; a JPEG is decoded at this fraction, others at full size.

    Raises:
        ValueError: the file is no picture, is damaged or too large, or has another size.
    """
    with _opened(path) as image:
        stored, shown = _check_size(image, path, size)
        orientation = _orientation(image)
        turn = size is None or tuple(size) == shown
        if scale > 1 and image.format == "JPEG":
            image.draft(None, (stored[1] // scale, stored[0] // scale))
        try:
            image.load()
            if turn and orientation != 1:
                image = ImageOps.exif_transpose(image)
            return _to_rgb(image)
        except (OSError, SyntaxError, EOFError) as error:
            raise ValueError(f"{path}: want a whole picture, got a damaged one ({error})") from None


def check_header(path: str | os.PathLike, size: tuple[int, int] | None = None) -> None:
    """Raise what `open_image` would, as far as the header tells."""
    with _opened(path) as image:
        _check_size(image, path, size)


def _check_size(image: Image.Image, path, size: tuple[int, int] | None):
    """The stored and the shown height and width."""
    stored, shown = (image.height, image.width), _shown(image)
    if size is not None and tuple(size) not in (stored, shown):
        raise ValueError(
            f"{path}: want {size[1]}x{size[0]} as annotated, got {shown[1]}x{shown[0]}"
        )
    return stored, shown


def _opened(path: str | os.PathLike) -> Image.Image:
    limit = Image.MAX_IMAGE_PIXELS
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return Image.open(path)
    except FileNotFoundError:
        raise ValueError(f"{path}: want a picture, got no file") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ValueError(f"{path}: want a picture of at most {limit} pixels, got more") from None
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(f"{path}: want a picture, got another or damaged file ({error})") from None


def _shown(image: Image.Image) -> tuple[int, int]:
    turned = _orientation(image) in (5, 6, 7, 8)
    return (image.width, image.height) if turned else (image.height, image.width)


def _orientation(image: Image.Image) -> int:
    # of a PNG that has none in its header, getexif would decode all pixels to look behind them
    if image.format == "PNG" and not {"exif", "Raw profile type exif"} & image.info.keys():
        return 1
    return image.getexif().get(_ORIENTATION, 1)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "I":  # 16-bit PNG in older Pillow
        values = np.asarray(image)
        high = values.max(initial=0) > 255
        return Image.fromarray((values >> (8 if high else 0)).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise OSError("floating-point pixels")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")
