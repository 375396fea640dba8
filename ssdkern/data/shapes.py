"""Outlines and textures of the synthetic scenes."""

from functools import cache

import numpy as np
from PIL import Image, ImageChops, ImageDraw

SHAPES = ("circle", "square", "triangle", "star", "ring", "cross", "heart", "moon")
_TURN = 20.0  # degrees


def draw_shape(
    shape: str, width: int, height: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """The filled shape and its outline alone, turned a little; uint8 masks [height, width]."""
    angle = np.deg2rad(rng.uniform(-_TURN, _TURN))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    outer, hole = (part @ turn for part in _outline(shape))
    low, high = outer.min(axis=0), outer.max(axis=0)
    big = np.array([2 * width, 2 * height])  # drawn at twice the size, for smooth edges
    outer, hole = ((part - low) / (high - low) * (big - 1) for part in (outer, hole))
    filled, edge = Image.new("L", tuple(big.tolist())), Image.new("L", tuple(big.tolist()))
    thickness = max(2, int(min(big) * rng.uniform(0.03, 0.08)))
    for points, colour in ((outer, 255), (hole, 0)):
        if len(points):
            corners = [tuple(point) for point in points.tolist()]
            ImageDraw.Draw(filled).polygon(corners, fill=colour)
            ImageDraw.Draw(edge).line([*corners, corners[0]], fill=255, width=thickness)
    edge = ImageChops.darker(edge, filled)
    return np.asarray(filled.reduce(2)), np.asarray(edge.reduce(2))


@cache
def _outline(shape: str) -> tuple[np.ndarray, np.ndarray]:
    """Corners of the outline and of the hole in it, [n, 2], about the origin, y down."""
    none = np.zeros((0, 2))
    if shape in ("circle", "ring"):
        hole = _circle(0.55) if shape == "ring" else none
        return _circle(1.0), hole
    if shape == "square":
        return np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], float), none
    if shape == "triangle":
        return np.array([[0, -1], [1, 0.8], [-1, 0.8]]), none
    if shape == "star":
        angles = np.pi * np.arange(10) / 5
        radius = np.where(np.arange(10) % 2, 0.42, 1.0)[:, None]
        return radius * np.stack([np.sin(angles), -np.cos(angles)], axis=1), none
    if shape == "cross":
        a, b = 0.32, 1.0
        corners = [(-a, -b), (a, -b), (a, -a), (b, -a), (b, a), (a, a)]
        return np.array(corners + [(-x, -y) for x, y in corners]), none
    if shape == "heart":
        t = np.linspace(0, 2 * np.pi, 48, endpoint=False)
        y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
        return np.stack([np.sin(t) ** 3, -y / 16], axis=1), none
    if shape == "moon":
        far = np.linspace(0.25 * np.pi, 1.75 * np.pi, 40)
        outside = np.stack([np.cos(far), np.sin(far)], axis=1)
        near = np.linspace(1.62 * np.pi, 0.38 * np.pi, 32)
        inside = np.stack([0.435 + 0.74 * np.cos(near), 0.765 * np.sin(near)], axis=1)
        return np.concatenate([outside, inside]), none
    raise ValueError(f"want a shape of {SHAPES}, got {shape!r}")


def _circle(radius: float) -> np.ndarray:
    angles = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def ground(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """A muted surface: a colour, soft clouds, now and then stripes; float32 [3, H, W]."""
    shade = _clouds(height, width, int(rng.integers(2, 5)), rng.uniform(10, 45), rng)
    shade += _clouds(height, width, int(rng.integers(8, 25)), rng.uniform(4, 18), rng)
    if rng.random() < 0.3:
        shade += pattern(height, width, rng) * np.float32(rng.uniform(6, 20))
    return _colour(rng, 40, 215) + shade


def _colour(rng: np.random.Generator, low: float, high: float) -> np.ndarray:
    return rng.uniform(low, high, (3, 1, 1)).astype(np.float32)


def _clouds(
    height: int, width: int, cells: int, depth: float, rng: np.random.Generator
) -> np.ndarray:
    """Smooth noise in about -depth..depth, float32 [H, W]."""
    grid = Image.fromarray(rng.uniform(-depth, depth, (cells, cells)).astype(np.float32))
    return np.array(grid.resize((width, height), Image.Resampling.BICUBIC))


def pattern(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Stripes or checks, -1 and 1; float32 [H, W]."""
    period = rng.uniform(4, max(6, min(height, width) / 3))
    angle = rng.uniform(0, np.pi)
    across, down = np.cos(angle) / period, np.sin(angle) / period
    y = np.arange(height, dtype=np.float32)[:, None]
    x = np.arange(width, dtype=np.float32)[None]
    odd = _stripes(np.float32(across) * x + np.float32(down) * y)
    if rng.random() < 0.5:
        odd ^= _stripes(np.float32(down) * x - np.float32(across) * y)
    return odd.astype(np.float32) * 2 - 1


def _stripes(phase: np.ndarray) -> np.ndarray:
    return (np.floor(phase * 2).astype(np.int32) & 1).astype(bool)


def paint(
    image: np.ndarray, filled: np.ndarray, edge: np.ndarray, rng: np.random.Generator
) -> None:
    """Lay a shape of random colour, shading, pattern and outline on ``image`` [3, h, w], in place.

    The colour differs from that under its middle by 70 levels or more in some channel.
    """
    height, width = filled.shape
    below = image[:, height // 2, width // 2, None, None]
    colour = _colour(rng, 0, 255)
    while np.abs(colour - below).max() < 70:
        colour = _colour(rng, 0, 255)
    kind, surface = rng.random(), colour
    if kind < 0.35:
        surface = colour + _clouds(height, width, 3, rng.uniform(10, 50), rng)
    elif kind < 0.6 and min(height, width) > 16:
        surface = colour + pattern(height, width, rng) * np.float32(rng.uniform(12, 45))
    if rng.random() < 0.4:
        tone = colour * np.float32(0.35) if colour.mean() > 90 else 255 - colour * np.float32(0.5)
        surface = surface + (tone - surface) * (edge * np.float32(1 / 255))
    image += (surface - image) * (filled * np.float32(1 / 255))


def finish(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Light from one side and film grain on ``image`` [3, H, W]; uint8 [H, W, 3]."""
    height, width = image.shape[1:]
    slope = rng.uniform(-0.25, 0.25, 2)
    light = 1 + np.linspace(-slope[0], slope[0], height, dtype=np.float32)[:, None]
    light = light + np.linspace(-slope[1], slope[1], width, dtype=np.float32)[None]
    grain = int(rng.integers(1, 7))
    lit = image * light
    lit += rng.integers(-grain, grain + 1, (height, width), np.int8)
    np.maximum(lit, 0, out=lit)
    np.minimum(lit, 255, out=lit)
    return np.ascontiguousarray(lit.astype(np.uint8).transpose(1, 2, 0))
