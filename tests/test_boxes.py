"""The small box functions against torchvision, on every dtype."""

import pytest
import torch
import torchvision.ops as tv
from cases import assert_close, assert_same, random_boxes, whole

from ssdkern import (
    box_area,
    box_convert,
    clip_boxes_to_image,
    generalized_box_iou,
    remove_small_boxes,
)

FORMATS = ("xyxy", "xywh", "cxcywh")
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8]
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
NAN = float("nan")


def pixels(dtype, count=50):
    return (200 * random_boxes(count) + 40).to(dtype).reshape(5, count // 5, 4)


@dtypes
@pytest.mark.parametrize("fmt", FORMATS)
def test_box_area(fmt, dtype):
    boxes = pixels(dtype)
    assert_same(box_area(boxes, fmt), tv.box_area(boxes, fmt))
    assert box_area(boxes[:0]).shape == (0, 10)


@dtypes
@pytest.mark.parametrize("in_fmt", FORMATS)
@pytest.mark.parametrize("out_fmt", FORMATS)
def test_box_convert(in_fmt, out_fmt, dtype):
    boxes = pixels(dtype)
    got = box_convert(boxes, in_fmt, out_fmt)
    assert_same(got, tv.box_convert(boxes, in_fmt, out_fmt))
    assert got.data_ptr() != boxes.data_ptr()


@dtypes
def test_clip_boxes_to_image(dtype):
    boxes = pixels(dtype) - (120 if dtype != torch.uint8 else 0)
    before = boxes.clone()
    assert_same(clip_boxes_to_image(boxes, (70, 90)), tv.clip_boxes_to_image(boxes, (70, 90)))
    assert_same(boxes, before)
    nan = clip_boxes_to_image(torch.tensor([[NAN, -1, 200, 3.0]]), (70, 90))
    assert_same(nan, torch.tensor([[NAN, 0, 90, 3.0]]))


@dtypes
def test_remove_small_boxes(dtype):
    boxes = pixels(dtype).flatten(0, 1)
    got = remove_small_boxes(boxes, 40)
    assert_same(got, tv.remove_small_boxes(boxes, 40))
    assert 0 < len(got) < 50
    odd = torch.tensor([[0, 0, 2, 2], [NAN, 0, 2, 2], [0, 0, 1.9, 3], [2, 2, 0, 0]])
    assert remove_small_boxes(odd, 2).tolist() == [0]
    assert remove_small_boxes(odd[:0], 2).dtype == torch.int64


@dtypes
def test_generalized_box_iou(dtype):
    if dtype == torch.uint8:
        pytest.skip("torchvision's differences of uint8 wrap")
    boxes = pixels(dtype)
    assert_same(generalized_box_iou(boxes, boxes[:1]), tv.generalized_box_iou(boxes, boxes[:1]))
    assert generalized_box_iou(boxes[0, :0], boxes[0]).shape == (0, 10)


def test_gradients():
    boxes, others = random_boxes(6).double().requires_grad_(), random_boxes(4).double()
    assert torch.autograd.gradcheck(lambda b: generalized_box_iou(b, others), boxes)
    assert torch.autograd.gradcheck(lambda b: box_convert(b, "cxcywh", "xywh"), boxes)
    assert torch.autograd.gradcheck(box_area, boxes)


def test_rejects():
    boxes = random_boxes(3)
    for function in (
        lambda b: box_area(b),
        lambda b: box_convert(b, "xyxy", "xywh"),
        lambda b: clip_boxes_to_image(b, (1, 1)),
        lambda b: remove_small_boxes(b, 0),
        lambda b: generalized_box_iou(boxes, b),
    ):
        with pytest.raises(ValueError, match=r"want boxes2? \[.*4\], got \[3, 3\]"):
            function(boxes[:, :3])
    with pytest.raises(ValueError, match=r"want in_fmt in .*, got 'yxyx'"):
        box_convert(boxes, "yxyx", "xyxy")
    with pytest.raises(ValueError, match=r"want out_fmt in .*, got 'xyxyxyxy'"):
        box_convert(boxes, "xyxy", "xyxyxyxy")
    with pytest.raises(ValueError, match=r"want fmt in .*, got None"):
        box_area(boxes, None)


def test_compiles_whole():
    def run(boxes):
        boxes = clip_boxes_to_image(box_convert(boxes, "cxcywh", "xyxy"), (1, 1))
        return generalized_box_iou(boxes, boxes) + box_area(boxes)

    boxes = random_boxes(10)
    assert_close(whole(run)(boxes), run(boxes))
