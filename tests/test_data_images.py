"""Pictures of every kind become upright 8-bit RGB, and faulty ones are named."""

import numpy as np
import pytest
from PIL import Image

from ssdkern.data import open_dataset, open_image
from ssdkern.data.images import image_size

# left half red, right half blue, upper right corner white: every turn and mirror shows
SCENE = np.zeros((40, 64, 3), np.uint8)
SCENE[:, :32], SCENE[:, 32:] = (250, 0, 0), (0, 0, 250)
SCENE[:20, 32:] = 255


def test_plain_png(tmp_path):
    Image.fromarray(SCENE).save(tmp_path / "a.png")
    np.testing.assert_array_equal(np.asarray(open_image(tmp_path / "a.png")), SCENE)
    assert image_size(tmp_path / "a.png") == (40, 64)


@pytest.mark.parametrize("mode", ["L", "LA", "1", "P", "RGBA", "I;16", "CMYK", "YCbCr"])
def test_modes(tmp_path, mode):
    ramp = np.tile(np.linspace(0, 255, 64).astype(np.uint8), (40, 1))
    grey = np.repeat(ramp[:, :, None], 3, axis=2)
    if mode == "I;16":
        image = Image.fromarray(ramp.astype(np.uint16) * 256 + 255 - ramp)
    else:
        image = Image.fromarray(grey).convert(mode)
    path = tmp_path / ("a.tif" if mode in ("CMYK", "YCbCr") else "a.png")
    image.save(path)
    found = np.asarray(open_image(path, (40, 64)))
    assert found.shape == (40, 64, 3) and found.dtype == np.uint8
    if mode == "1":  # dithered
        assert set(np.unique(found)) == {0, 255}
        assert abs(found.mean() - grey.mean()) < 3
    elif mode == "P":
        np.testing.assert_array_equal(found, np.asarray(image.convert("RGB")))
    else:
        assert np.abs(found.astype(int) - grey).max() <= 2


def test_transparent_parts_lie_on_white(tmp_path):
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[:4] = (10, 200, 30, 255)
    pixels[4:6] = (100, 100, 100, 128)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    found = np.asarray(open_image(tmp_path / "a.png"))
    assert found[0, 0].tolist() == [10, 200, 30]
    assert np.abs(found[4, 0].astype(int) - 177).max() <= 1
    assert found[7, 0].tolist() == [255, 255, 255]
    palette = Image.fromarray(pixels[:, :, :3]).quantize(4)
    palette.save(tmp_path / "b.png", transparency=palette.getpixel((0, 7)))
    assert np.asarray(open_image(tmp_path / "b.png"))[7, 0].tolist() == [255, 255, 255]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_exif_turns_the_picture_upright(tmp_path, orientation, suffix):
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # EXIF orientation: PIL transpose
    stored = Image.fromarray(SCENE)
    if orientation > 1:
        stored = stored.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    stored.save(path, exif=exif, **({"quality": 95, "subsampling": 0} if suffix == "jpg" else {}))
    assert image_size(path) == (40, 64)
    for size in (None, (40, 64)):
        found = np.asarray(open_image(path, size)).astype(int)
        assert np.abs(found - SCENE).max() < 12
    half = np.asarray(open_image(path, scale=2)).astype(int)
    wanted = SCENE[::2, ::2] if suffix == "jpg" else SCENE
    assert half.shape == wanted.shape and np.abs(half - wanted).mean() < 4
    if orientation >= 5:  # boxes drawn on the stored pixels
        found = np.asarray(open_image(path, (64, 40))).astype(int)
        assert np.abs(found - np.asarray(stored)).max() < 12


def test_boxes_follow_the_size_they_were_drawn_on(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(SCENE).transpose(Image.Transpose.ROTATE_90).save(tmp_path / "a.jpg", exif=exif)
    xml = (
        "<annotation><size><width>{}</width><height>{}</height></size><object><name>x</name><bndbox>"
        "<xmin>2</xmin><ymin>3</ymin><xmax>20</xmax><ymax>30</ymax></bndbox></object></annotation>"
    )
    for width, height in ((64, 40), (40, 64)):
        (tmp_path / "a.xml").write_text(xml.format(width, height))
        sample = open_dataset(tmp_path)[0]
        assert sample.image.shape == (height, width, 3) == (*sample.size, 3)
        assert sample.boxes.tolist() == [[2, 3, 20, 30]]
    (tmp_path / "a.xml").write_text(xml.format(50, 40))
    with pytest.raises(ValueError, match=r"a.jpg: want 50x40 as annotated, got 64x40"):
        _ = open_dataset(tmp_path)[0].image


@pytest.mark.parametrize("suffix", ["jpg", "JPG", "jpeg", "png", "PNG", "bmp", "webp", "tif"])
def test_suffixes(tmp_path, suffix):
    Image.fromarray(SCENE).save(tmp_path / f"a.{suffix}")
    (tmp_path / "a.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    found = open_dataset(tmp_path)
    assert found[0].image.shape == SCENE.shape
    assert found[0].boxes.tolist() == [[16, 10, 48, 30]]


def test_decoding_at_a_fraction(tmp_path):
    ramp = np.tile(np.linspace(0, 255, 101).astype(np.uint8)[None, :, None], (75, 1, 3))
    Image.fromarray(ramp).save(tmp_path / "a.jpg", quality=95)
    for scale in (1, 2, 4, 8):
        found = np.asarray(open_image(tmp_path / "a.jpg", scale=scale))
        assert found.shape[:2] == (-(-75 // scale), -(-101 // scale))
        steps = np.arange(found.shape[1] - 1) * scale + (scale - 1) / 2
        assert np.abs(found[0, :-1, 0] - steps * 2.55).max() < 6


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "want a picture, got another or damaged file"),
        (b"not a picture", "want a picture, got another or damaged file"),
        (None, "want a picture, got no file"),
    ],
)
def test_what_is_no_picture(tmp_path, content, message):
    if content is not None:
        (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(ValueError, match=f"a.jpg: {message}"):
        open_image(tmp_path / "a.jpg")


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_cut_off_files(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (100, 100, 3), np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=f"a.{suffix}: want a whole picture, got a damaged one"):
        open_image(path)


def test_decompression_bombs(tmp_path, monkeypatch):
    Image.new("L", (300, 300)).save(tmp_path / "a.png")
    for limit in (80_000, 1_000):  # Pillow warns above the limit, raises above twice the limit
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(ValueError, match=f"want a picture of at most {limit} pixels"):
            open_image(tmp_path / "a.png")
