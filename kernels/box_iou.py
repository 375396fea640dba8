"""IoU of every pair of boxes, in tiles."""

import torch
import triton
import triton.language as tl

from ssdkern.kernels.boxes import divide, iou, load_boxes, store_boxes, widen
from ssdkern.kernels.launcher import launcher


@triton.jit(do_not_specialize=["N", "M"])
def _box_iou_kernel(boxes1, boxes2, out, N, M, ROWS: tl.constexpr, COLS: tl.constexpr):
    tiles = tl.cdiv(N, ROWS) * tl.cdiv(M, COLS)
    image = (tl.program_id(0) // tiles).to(tl.int64)
    tile = tl.program_id(0) % tiles
    row = tile // tl.cdiv(M, COLS) * ROWS + tl.arange(0, ROWS)
    col = tile % tl.cdiv(M, COLS) * COLS + tl.arange(0, COLS)
    x1, y1, x2, y2 = load_boxes(boxes1 + image * N * 4, row, row < N)
    u1, v1, u2, v2 = load_boxes(boxes2 + image * M * 4, col, col < M)
    x1, y1, x2, y2 = x1[:, None], y1[:, None], x2[:, None], y2[:, None]
    value = iou(x1, y1, x2, y2, u1[None, :], v1[None, :], u2[None, :], v2[None, :])
    place = (image * N + row)[:, None] * M + col[None, :]
    tl.store(out + place, value, mask=(row < N)[:, None] & (col < M)[None, :])


@triton.jit
def _share(a, b):
    """The part of its gradient that min or max hands to `a`, the winner where a < b."""
    return tl.where(a < b, 1.0, tl.where(a == b, 0.5, 0.0))


@triton.jit(
    do_not_specialize=["N", "M"], do_not_specialize_on_alignment=["row_stride", "col_stride"]
)
def _box_iou_backward_kernel(
    grad,  # element (row, col) of an image at row * row_stride + col * col_stride
    boxes,
    others,
    out,
    N,
    M,
    row_stride,
    col_stride,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    image = (tl.program_id(0) // tl.cdiv(N, ROWS)).to(tl.int64)
    row = tl.program_id(0) % tl.cdiv(N, ROWS) * ROWS + tl.arange(0, ROWS)
    x1, y1, x2, y2 = load_boxes(boxes + image * N * 4, row, row < N)
    grad_x1, grad_y1 = tl.zeros_like(x1), tl.zeros_like(x1)
    grad_x2, grad_y2 = tl.zeros_like(x1), tl.zeros_like(x1)
    x1, y1, x2, y2 = x1[:, None], y1[:, None], x2[:, None], y2[:, None]
    for start in range(0, M, COLS):
        col = start + tl.arange(0, COLS)
        u1, v1, u2, v2 = load_boxes(others + image * M * 4, col, col < M)
        u1, v1, u2, v2 = u1[None, :], v1[None, :], u2[None, :], v2[None, :]
        mask = (row < N)[:, None] & (col < M)[None, :]
        place = row.to(tl.int64)[:, None] * row_stride + col.to(tl.int64)[None, :] * col_stride
        g = widen(tl.load(grad + image * N * M + place, mask=mask, other=0.0))

        width = tl.minimum(x2, u2) - tl.maximum(x1, u1)
        height = tl.minimum(y2, v2) - tl.maximum(y1, v1)
        inter = tl.maximum(width, 0.0) * tl.maximum(height, 0.0)
        union = (x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1) - inter
        g = divide(g, union)
        grad_area = -g * divide(inter, union)
        grad_width = tl.where(width > 0, (g - grad_area) * tl.maximum(height, 0.0), 0.0)
        grad_height = tl.where(height > 0, (g - grad_area) * tl.maximum(width, 0.0), 0.0)
        to_x1 = -grad_width * _share(u1, x1) - grad_area * (y2 - y1)
        to_x2 = grad_width * _share(x2, u2) + grad_area * (y2 - y1)
        to_y1 = -grad_height * _share(v1, y1) - grad_area * (x2 - x1)
        to_y2 = grad_height * _share(y2, v2) + grad_area * (x2 - x1)
        grad_x1 += tl.sum(tl.where(mask, to_x1, 0.0), axis=1)
        grad_y1 += tl.sum(tl.where(mask, to_y1, 0.0), axis=1)
        grad_x2 += tl.sum(tl.where(mask, to_x2, 0.0), axis=1)
        grad_y2 += tl.sum(tl.where(mask, to_y2, 0.0), axis=1)
    store_boxes(out + image * N * 4, row, row < N, grad_x1, grad_y1, grad_x2, grad_y2)


def _fake(boxes1, boxes2):
    return boxes1.new_empty(boxes1.shape[0], boxes1.shape[1], boxes2.shape[1])


@launcher(_fake)
def box_iou_triton(boxes1: torch.Tensor, boxes2: torch.Tensor) -> torch.Tensor:
    out = _fake(boxes1, boxes2)
    images, N, M = out.shape
    rows, cols = 16, 128
    if out.numel():
        grid = (images * triton.cdiv(N, rows) * triton.cdiv(M, cols),)
        options = {"num_warps": 4, "enable_fp_fusion": False}
        _box_iou_kernel[grid](boxes1, boxes2, out, N, M, ROWS=rows, COLS=cols, **options)
    return out


def _fake_backward(grad, boxes1, boxes2):
    return torch.empty_like(boxes1), torch.empty_like(boxes2)


@launcher(_fake_backward)
def box_iou_backward_triton(
    grad: torch.Tensor, boxes1: torch.Tensor, boxes2: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    grad1, grad2 = _fake_backward(grad, boxes1, boxes2)
    images, N, M = grad.shape
    rows, blocks = 16, {"ROWS": 16, "COLS": 64, "num_warps": 4}
    if grad1.numel():
        grid = (images * triton.cdiv(N, rows),)
        _box_iou_backward_kernel[grid](grad, boxes1, boxes2, grad1, N, M, M, 1, **blocks)
    if grad2.numel():
        grid = (images * triton.cdiv(M, rows),)
        _box_iou_backward_kernel[grid](grad, boxes2, boxes1, grad2, M, N, 1, M, **blocks)
    return grad1, grad2
