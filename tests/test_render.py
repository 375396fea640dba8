"""Crop, resize, flip and distortion in one pass: against a slow twin, Pillow, every machine."""

import hashlib
import os
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from ssdkern.data import TrainTransform
from ssdkern.data import render as module
from ssdkern.data.distort import UNDISTORTED, Distortion, draw_distortion
from ssdkern.data.render import INTERPOLATIONS, render
from ssdkern.host import host

try:
    from ssdkern import _host
except ImportError:
    _host = None
built = pytest.mark.skipif(_host is None, reason="ssdkern._host is not built")

FILTERS = {  # support, weight
    "bilinear": (1, lambda x: (1 - np.abs(x)).clip(0)),
    "area": (0.5, lambda x: ((x > -0.5) & (x <= 0.5)).astype(float)),
    "bicubic": (2, lambda x: np.select([x < 0, x < 1, x < 2], [0, *cubic(x)])),
    "lanczos": (3, lambda x: np.sinc(x) * np.sinc(x / 3) * (np.abs(x) < 3)),
}


def cubic(x):
    return 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2


def weights(inputs, outputs, mode):
    """Every output's share of every input, float64 [outputs, inputs]."""
    scale = inputs / outputs
    centre = (np.arange(outputs)[:, None] + 0.5) * scale
    if mode == "nearest-exact":
        return (np.floor(centre + 1e-9) == np.arange(inputs)).astype(float)
    reach = max(scale, 1)
    away = (np.arange(inputs) + 0.5 - centre) / reach
    share = FILTERS[mode][1](np.abs(away) if mode == "bicubic" else away)
    return share / share.sum(1, keepdims=True)


def slow_colours(rgb, distortion):
    """Pixels [..., 3] in other colours, by the textbook's HSV, float64."""
    shift, before, depth, turn, after = distortion
    rgb = ((rgb + shift).clip(0, 255) * before).clip(0, 255)
    value, chroma = rgb.max(-1), np.ptp(rgb, -1)
    red, green, blue = np.moveaxis(rgb, -1, 0)
    with np.errstate(all="ignore"):
        hue = np.select(
            [chroma == 0, value == red, value == green],
            [0, (green - blue) / chroma % 6, (blue - red) / chroma + 2],
            (red - green) / chroma + 4,
        )
        saturation = np.where(value > 0, (chroma / value * depth).clip(0, 1), 0)
    steps = (np.array([5, 3, 1]) + ((hue + turn) % 6)[..., None]) % 6
    share = np.minimum(steps, 4 - steps).clip(0, 1)
    rgb = value[..., None] * (1 - saturation[..., None] * share)
    return (rgb * after).clip(0, 255)


def slow_render(pixels, source, target, size, mode, distortion, flips, fill):
    """What `render` computes, float64 [3, size, size], not rounded."""
    left, top, right, bottom = source
    crop = pixels[top:bottom, left:right, :3].astype(float)
    width, height = target[2] - target[0], target[3] - target[1]
    down, across = weights(bottom - top, height, mode), weights(right - left, width, mode)
    patch = np.einsum("ij,jkc,lk->ilc", down, crop, across, optimize=True).clip(0, 255)
    result = np.empty((size, size, 3))
    result[:] = fill
    result[target[1] : target[3], target[0] : target[2]] = slow_colours(patch, distortion)
    return result[:: -1 if flips[1] else 1, :: -1 if flips[0] else 1].transpose(2, 0, 1)


def picture(height, width, seed=0):
    """Noise, flat parts of every grey and full colour, and a smooth part."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), np.uint8)
    image[: height // 4] = np.linspace(0, 255, width).astype(np.uint8)[:, None]
    image[height // 4 : height // 2] = rng.choice([0, 255], (width, 3))
    waves = np.sin(np.arange(width)[:, None] / 9 + [0, 1, 2]) * 127 + 128
    image[-(height // 4) :] = waves.astype(np.uint8)
    return image


GEOMETRY = {
    "shrink": ((0, 0, 320, 240), (0, 0, 100, 100), 100),
    "grow": ((100, 50, 153, 113), (0, 0, 128, 128), 128),
    "apart": ((3, 40, 318, 77), (17, 5, 40, 95), 97),
    "same": ((20, 30, 84, 94), (0, 0, 64, 64), 64),
    "one pixel": ((7, 8, 8, 9), (11, 0, 12, 30), 33),
    "to one pixel": ((0, 0, 320, 240), (5, 6, 6, 7), 20),
}
COLOURS = {
    "none": UNDISTORTED,
    "first": Distortion(-20.5, 1.4, 1.45, 0.55, 1.0),
    "last": Distortion(31.0, 1.0, 0.5, -0.6, 1.5),
    "depth": Distortion(depth=1.5),
    "turn": Distortion(turn=0.31),
    "levels": Distortion(shift=-32.0, after=1.5),
}


def close(found, exact):
    """Rounded within a level, and but for float32 at the halves to the nearest."""
    away = np.abs(found - exact)
    assert away.max() < 1 and (away > 0.501).mean() < 1e-3


@built
@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("mode", INTERPOLATIONS)
@pytest.mark.parametrize("geometry", GEOMETRY)
def test_pixel_for_pixel(geometry, mode, channels):
    image = picture(240, 320)
    pixels = image if channels == 3 else np.dstack([image, np.full((240, 320), 9, np.uint8)])
    source, target, size = GEOMETRY[geometry]
    for number, distortion in enumerate(COLOURS.values()):
        flips, fill = (bool(number % 2), bool(number // 2 % 2)), (123, 7, 250)
        args = source, target, size, mode, distortion, flips, fill
        found = _host.render(pixels, *args)
        assert found.dtype == np.uint8 and found.shape == (3, size, size)
        close(found, slow_render(image, *args))


@built
def test_random_parameters():
    rng, image = np.random.default_rng(5), picture(150, 210, 1)
    for _ in range(150):
        left, top = rng.integers(0, 200), rng.integers(0, 140)
        source = (left, top, rng.integers(left, 210) + 1, rng.integers(top, 150) + 1)
        x, y = rng.integers(0, 60, 2)
        target = (x, y, rng.integers(x, 70) + 1, rng.integers(y, 70) + 1)
        args = source, target, 70, rng.choice(INTERPOLATIONS), draw_distortion(rng)
        args += (rng.random(2) < 0.5).tolist(), (0, 0, 0)
        close(_host.render(image, *args), slow_render(image, *args))


@built
def test_colours_pixel_for_pixel():
    levels = [0, 1, 2, 31, 126, 127, 128, 129, 200, 254, 255]
    image = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(1, -1, 3).astype(np.uint8)
    image = np.resize(image, (40, 40, 3))
    rng = np.random.default_rng(2)
    for distortion in [*COLOURS.values(), *(draw_distortion(rng) for _ in range(60))]:
        args = (0, 0, 40, 40), (0, 0, 40, 40), 40, "bilinear", distortion, (False, False), (0,) * 3
        close(_host.render(image, *args), slow_colours(image, distortion).transpose(2, 0, 1))


@pytest.mark.parametrize("mode", INTERPOLATIONS)
@pytest.mark.parametrize("size", [61, 300])
def test_resize_is_that_of_pillow(mode, size):
    y, x = np.mgrid[:120, :170]
    waves = np.stack([np.sin(x / 7 + y / 11), np.cos(y / 9), np.sin(x * y / 900)], -1)
    image = Image.fromarray((waves * 100 + 128).astype(np.uint8))
    kind = dict(area="BOX", lanczos="LANCZOS", bicubic="BICUBIC", bilinear="BILINEAR")
    kind["nearest-exact"] = "NEAREST"
    box, square = (11, 20, 160, 115), (0, 0, size, size)
    found = render(image, box, square, size, interpolation=mode).transpose(1, 2, 0)
    wanted = image.crop(box).resize((size, size), Image.Resampling[kind[mode]])
    assert np.abs(found - np.asarray(wanted, int)).max() <= (2 if mode == "lanczos" else 1)


@built
@pytest.mark.parametrize("mode", INTERPOLATIONS)
def test_the_python_path_is_near(mode, monkeypatch):
    """It rounds after each step, and contrast widens that."""
    y, x = np.mgrid[:200, :260]
    waves = np.stack([np.sin(x / 9), np.cos(y / 13), np.sin((x + y) / 20)], -1)
    image = Image.fromarray((waves * 120 + 128).astype(np.uint8))
    for number, distortion in enumerate(COLOURS.values()):
        for source, target, size in GEOMETRY.values():
            options = dict(
                interpolation=mode,
                distortion=distortion,
                flips=(bool(number % 2), number > 2),
                fill=(1, 2, 3),
            )
            source = tuple(np.minimum(source, [260, 200, 260, 200]).tolist())
            ours = render(image, source, target, size, **options).astype(int)
            with monkeypatch.context() as patch:
                patch.setattr(module, "host", lambda: None)
                slow = render(image, source, target, size, **options)
            assert slow.shape == ours.shape and slow.dtype == np.uint8
            away = np.abs(ours - slow)
            assert away.max() <= 5 and away.mean() < 0.6


@built
def test_pictures_are_read_in_place():
    image = Image.fromarray(picture(50, 70))
    view = module._pixels(image, _host)
    assert view.shape == (50, 70, 4) or not hasattr(image, "__arrow_c_array__")
    np.testing.assert_array_equal(view[..., :3], np.asarray(image))
    kept = view[..., :3].copy()
    del image
    np.testing.assert_array_equal(view[..., :3], kept)
    with pytest.raises(ValueError, match="read-only"):
        view[0] = 0
    large = Image.new("RGB", (2100, 2100), (1, 2, 3))  # over 16 MB: not in one block
    assert (module._pixels(large, _host)[:, :, :3] == (1, 2, 3)).all()
    grey = Image.new("L", (4, 3))
    capsule = grey.__arrow_c_array__()[1] if hasattr(grey, "__arrow_c_array__") else None
    for wrong, message in ((capsule, "four bytes"), (module, "incompatible function arguments")):
        if wrong is not None:
            with pytest.raises((ValueError, TypeError), match=message):
                _host.arrow_pixels(wrong, 3, 4)


@built
def test_threads_do_not_meet():
    image, (source, target, size) = picture(240, 320), GEOMETRY["apart"]

    def call(number):
        distortion = draw_distortion(np.random.default_rng(number))
        mode = INTERPOLATIONS[number % 5]
        args = source, target, size, mode, distortion, (False, False), (0, 0, 0)
        return _host.render(image, *args).tobytes()

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(call, range(80))) == [call(number) for number in range(80)]


@built
def test_rejects():
    pixels = np.zeros((20, 30, 3), np.uint8)
    square, same, no, black = (0, 0, 8, 8), (0, 0, 1, 1), (False, False), (0, 0, 0)

    def call(pixels=pixels, source=same, target=square, size=8, mode="area", colours=UNDISTORTED):
        return _host.render(pixels, source, target, size, mode, colours, no, black)

    assert call().shape == (3, 8, 8)
    for source in ((0, 0, 31, 1), (0, 0, 1, 21), (-1, 0, 1, 1), (3, 0, 3, 1), (5, 0, 2, 1)):
        with pytest.raises(ValueError, match="want source with pixels inside 30x20, got"):
            call(source=source)
    with pytest.raises(ValueError, match="want target with pixels inside 8x8, got"):
        call(target=(0, 0, 9, 8))
    with pytest.raises(ValueError, match="want size of at least 1, got 0"):
        call(size=0)
    with pytest.raises(ValueError, match=r"want interpolation of bilinear, .* got cubic"):
        call(mode="cubic")
    for turn in (1.5, np.nan):
        with pytest.raises(ValueError, match="want turn from -1 to 1, got"):
            call(colours=Distortion(turn=turn))
    for wrong in (pixels[..., :2], pixels[0], pixels[:, ::2], pixels[::-1]):
        with pytest.raises(ValueError, match="want "):
            call(wrong)
    with pytest.raises(TypeError):
        call(pixels.astype(float))
    assert call(pixels[::2, 3:]).shape == (3, 8, 8)  # rows may lie apart


def fingerprint():
    digest, image, rng = hashlib.sha256(), picture(90, 130, 3), np.random.default_rng(3)
    for mode in INTERPOLATIONS:
        for distortion in [*COLOURS.values(), *(draw_distortion(rng) for _ in range(20))]:
            args = (3, 2, 121, 85), (0, 1, 71, 68), 73, mode, distortion, (True, False), (9, 8, 7)
            digest.update(_host.render(image, *args).tobytes())
    return digest.hexdigest()


@built
@pytest.mark.parametrize("isa", ["v2", "v3", "v4"])
def test_every_instruction_set_gives_the_same(isa):
    code = "from tests.test_render import fingerprint; print(fingerprint())"
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "SSDKERN_ISA": isa},
        capture_output=True,
        text=True,
    )
    if "that runs here" in run.stderr:
        pytest.skip(f"this machine has no {isa}")
    assert run.stdout.strip() == fingerprint(), run.stderr


def test_without_the_module_the_python_path_is_announced(monkeypatch):
    host.cache_clear()
    try:
        monkeypatch.setitem(sys.modules, "ssdkern._host", None)
        monkeypatch.delattr("ssdkern._host", raising=False)
        with pytest.warns(RuntimeWarning, match="ssdkern._host is not built"):
            TrainTransform(20)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert host() is None  # and not again
    finally:
        host.cache_clear()
