"""Boxes inside kernels: rows of four, IoU, SSD's coding, in the order of the references."""

import triton
import triton.language as tl

EPS = tl.constexpr(1e-8)  # least width and height in encode and decode


@triton.jit
def widen(x):
    """float64 stays, all else becomes float32."""
    if x.dtype == tl.float64:
        return x
    else:
        return x.to(tl.float32)


@triton.jit
def number(value, like):
    """A float64 argument of a kernel in the dtype of `like`."""
    if like.dtype == tl.float64:
        return value
    else:
        return tl.cast(value, tl.float32)


@triton.jit
def divide(x, y):
    """IEEE division: `/` is approximate in float32."""
    if x.dtype == tl.float64:
        return x / y
    else:
        return tl.div_rn(x, y)


@triton.jit
def load_boxes(pointer, rows, mask):
    """Four columns of the [*, 4] array at `pointer`, zeros where not `mask`."""
    places = pointer + rows.to(tl.int64)[:, None] * 4 + tl.arange(0, 4)[None, :]
    tile = widen(tl.load(places, mask=mask[:, None], other=0.0))
    x, y = tl.split(tl.reshape(tile, [rows.shape[0], 2, 2]))
    x1, x2 = tl.split(x)
    y1, y2 = tl.split(y)
    return x1, y1, x2, y2


@triton.jit
def store_boxes(pointer, rows, mask, x1, y1, x2, y2):
    tile = tl.reshape(tl.join(tl.join(x1, x2), tl.join(y1, y2)), [rows.shape[0], 4])
    places = pointer + rows.to(tl.int64)[:, None] * 4 + tl.arange(0, 4)[None, :]
    tl.store(places, tile, mask=mask[:, None])


@triton.jit
def intersection_and_union(ax1, ay1, ax2, ay2, bx1, by1, bx2, by2):
    """Both areas; a pair with a NaN has a union that is NaN."""
    width = tl.maximum(tl.minimum(ax2, bx2) - tl.maximum(ax1, bx1), 0.0)
    height = tl.maximum(tl.minimum(ay2, by2) - tl.maximum(ay1, by1), 0.0)
    inter = width * height
    return inter, (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - inter


@triton.jit
def iou(ax1, ay1, ax2, ay2, bx1, by1, bx2, by2):
    """Intersection over union; 0/0 and every pair with a NaN is NaN."""
    inter, union = intersection_and_union(ax1, ay1, ax2, ay2, bx1, by1, bx2, by2)
    apart = (inter == 0) & (union > 0)  # as most pairs are; a division of 0 is many times slower
    return tl.where(apart, 0.0, divide(tl.where(apart, 1.0, inter), union))


@triton.jit
def at_least(x, least):
    """torch's clamp: NaN stays NaN, and the bound keeps its digits in float64."""
    return tl.where(x < least, least, x)


@triton.jit
def encode_axis(low, high, prior_low, prior_high, center_variance, size_variance):
    """Shift and log scale of one axis."""
    prior_size = at_least(prior_high - prior_low, EPS)
    shift = divide((low + high) * 0.5 - (prior_low + prior_high) * 0.5, prior_size)
    scale = tl.log(divide(at_least(high - low, EPS), prior_size))
    shift = divide(shift, number(center_variance, shift))
    return shift, divide(scale, number(size_variance, scale))


@triton.jit
def exponential(x):
    """`tl.exp` loses digits of float32 beyond 40 or so, where it multiplies by log2(e) first."""
    if x.dtype == tl.float64:
        return tl.exp(x)
    else:
        power = tl.floor(x * 1.4426950408889634 + 0.5)
        power = tl.minimum(tl.maximum(power, -126.0), 127.0)
        rest = (
            x - power * 0.693359375
        ) + power * 2.12194440e-4  # log(2), whose first part is exact
        return tl.exp(rest) * tl.exp2(power)


@triton.jit
def decode_axis(shift, scale, prior_low, prior_high, center_variance, size_variance, max_log_scale):
    """Low and high corner of one axis."""
    prior_size = at_least(prior_high - prior_low, EPS)
    center = shift * number(center_variance, shift) * prior_size + (prior_low + prior_high) * 0.5
    scale = scale * number(size_variance, scale)
    bound = number(max_log_scale, scale)
    half = exponential(tl.where(scale > bound, bound, scale)) * prior_size * 0.5
    return center - half, center + half


@triton.jit
def residuals(
    offsets, priors, gt_boxes, row, prior, match, positive, center_variance, size_variance
):
    """Offsets minus encoded truth, zeros where not `positive`."""
    dx, dy, dw, dh = load_boxes(offsets, row, positive)
    u1, v1, u2, v2 = load_boxes(priors, prior, positive)
    x1, y1, x2, y2 = load_boxes(gt_boxes, match, positive)
    tx, tw = encode_axis(x1, x2, u1, u2, center_variance, size_variance)
    ty, th = encode_axis(y1, y2, v1, v2, center_variance, size_variance)
    return dx - tx, dy - ty, dw - tw, dh - th
