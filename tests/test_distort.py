"""The photometric distortion against the standard library and the reference's four steps."""

import colorsys

import numpy as np
import pytest

from ssdkern.data.distort import distort, draw_distortion, shift_hsv


class Scripted:
    """A generator that says what it was told: coins and the four amounts."""

    def __init__(self, coins, amounts):
        ranges = np.array([[-32, 32], [0.5, 1.5], [0.5, 1.5], [-36, 36]])
        self.draws = np.append(coins, (amounts - ranges[:, 0]) / np.ptp(ranges, axis=1))

    def random(self, count):
        assert count == len(self.draws)
        return self.draws


def slow_hsv(pixel, depth, degrees):
    """One pixel by the standard library, in float64."""
    hue, saturation, value = colorsys.rgb_to_hsv(*(pixel / 255))
    hue = (hue + degrees / 360) % 1
    return np.array(colorsys.hsv_to_rgb(hue, min(saturation * depth, 1), value)) * 255


def pixels(count=3000):
    """Random colours, and all of the corner cases of HSV."""
    rng = np.random.default_rng(0)
    some = rng.integers(0, 256, (count, 3))
    edges = np.stack(np.meshgrid(*[[0, 1, 127, 128, 255]] * 3), -1).reshape(-1, 3)
    return np.concatenate([some, edges]).astype(np.uint8)


@pytest.mark.parametrize("depth", [0.5, 1.0, 1.5])
@pytest.mark.parametrize("degrees", [0.0, 36.0, -36.0, 17.3])
def test_saturation_and_hue_as_the_standard_library(depth, degrees):
    colours = pixels()
    found = shift_hsv(np.ascontiguousarray(colours.T[:, None]), depth, degrees / 60)[:, 0].T
    wanted = np.array([slow_hsv(colour, depth, degrees) for colour in colours])
    assert np.abs(found - wanted).max() <= 0.5 + 1e-3


def test_chunks_do_not_show():
    planes = np.random.default_rng(0).integers(0, 256, (3, 150, 301), np.uint8)  # over two chunks
    whole = shift_hsv(planes, 1.4, 0.3)
    rows = np.concatenate([shift_hsv(planes[:, i : i + 1], 1.4, 0.3) for i in range(150)], axis=1)
    np.testing.assert_array_equal(whole, rows)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("chosen", [(1, 1, 1, 1), (1, 1, 0, 0), (0, 1, 1, 0), (1, 0, 0, 1)])
def test_order_of_the_distortion(first, chosen):
    bright, contrast, depth, degrees = 31.0, 1.4, 1.4, -30.0
    colours = pixels(500)
    rng = Scripted(
        [0.0 if on else 0.9 for on in (first, *chosen)], [bright, contrast, depth, degrees]
    )
    found = distort(np.ascontiguousarray(colours.T[:, None]), draw_distortion(rng))[:, 0].T
    steps = {
        "brightness": lambda x: x + bright,
        "contrast": lambda x: x * contrast,
        "saturation": lambda x: np.array([slow_hsv(p, depth, 0) for p in x]),
        "hue": lambda x: np.array([slow_hsv(p, 1, degrees) for p in x]),
    }
    names = list(steps)
    on = dict(zip(names, chosen, strict=True))
    order = names if first else [names[0], names[2], names[3], names[1]]
    wanted = colours.astype(float)
    for name in order:
        if on[name]:
            wanted = steps[name](wanted).round().clip(0, 255)
    # halves are rounded either way, once where hue follows saturation, and contrast widens that
    assert np.abs(found - wanted).max() <= (3 if on["saturation"] and on["hue"] else 2)


def test_amounts_and_chances_of_the_distortion():
    grey = np.full((3, 1, 1), 100, np.uint8)  # which saturation and hue leave alone
    rng = np.random.default_rng(0)
    values = np.array([int(distort(grey, draw_distortion(rng))[0, 0, 0]) for _ in range(4000)])
    assert abs((values == 100).mean() - 0.25) < 0.03  # neither, or next to nothing
    assert values.min() >= 34 - 1 and values.max() <= 198 + 1
    assert values.min() < 45 and values.max() > 185
    red = np.array([130, 34, 34], np.uint8).reshape(3, 1, 1)  # which nothing clips
    turned = np.array([distort(red, draw_distortion(rng))[:, 0, 0] for _ in range(4000)], float)
    hues = np.array([colorsys.rgb_to_hsv(*(p / 255))[0] for p in turned])
    degrees = (hues * 360 + 180) % 360 - 180
    assert abs((np.abs(degrees) < 1).mean() - (0.5 + 0.5 / 36)) < 0.03
    assert -38 < degrees.min() < -34 and 34 < degrees.max() < 38
