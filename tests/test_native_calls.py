"""Direct calls of `torch.ops.ssdkern.*`: what does not fit is refused, and nothing is read out of
bounds; what is empty, half precision or strided has its answer."""

import pytest
import torch
from cases import assert_same
from native_calls import (
    CODING,
    LAYOUTS,
    LIMITS,
    SMALL,
    calls,
    cast,
    change,
    native_ops,
    needs_op,
    run,
)

NAN, INF = float("nan"), float("inf")
# (op, argument, dimension) whose size no other argument fixes
FREE = {
    ("encode_boxes", 0, 0),
    ("decode_boxes", 0, 0),
    ("box_iou", 0, 1),
    ("box_iou", 1, 1),
    ("match_priors", 0, 0),
    ("match_priors", 1, 0),  # rows behind the last image's are nobody's
    ("multibox_loss", 0, 2),
    ("multibox_loss_backward", 2, 2),
    ("multiclass_nms", 1, 2),
    ("detect", 0, 2),
}


def tensors(op):
    return [(i, a) for i, a in enumerate(calls(*SMALL)[op]) if isinstance(a, torch.Tensor)]


def call_with(op, index, value):
    args = list(calls(*SMALL)[op])
    args[index] = value
    return run(op, *args)


@native_ops
def test_wrong_number_of_dimensions(op):
    for index, tensor in tensors(op):
        for wrong in (tensor[None], tensor[..., None], *([tensor[0]] if tensor.ndim else [])):
            with pytest.raises(RuntimeError, match="want "):
                call_with(op, index, wrong)


@native_ops
def test_wrong_sizes(op):
    """Each dimension of each argument one shorter, one longer, and gone."""
    for index, tensor in tensors(op):
        for dim, size in enumerate(tensor.shape):
            longer = torch.cat((tensor, torch.zeros_like(tensor.narrow(dim, 0, 1))), dim)
            if (op, index, dim) in FREE:
                call_with(op, index, longer)
                continue
            shorter = tensor.narrow(dim, 0, size - 1)
            if (op, index) == ("match_priors", 2):
                call_with(op, index, shorter)  # an image fewer
                shorter = longer
            for wrong in (shorter, longer, tensor.narrow(dim, 0, 0)):
                with pytest.raises(RuntimeError, match="want "):
                    call_with(op, index, wrong)


@native_ops
def test_wrong_dtypes(op):
    for index, tensor in tensors(op):
        others = (torch.int64, torch.complex64) if tensor.is_floating_point() else (torch.float32,)
        for dtype in others:
            with pytest.raises(RuntimeError, match="want "):
                call_with(op, index, tensor.to(dtype))


RANGES = [
    ("multiclass_nms", 4, 0),
    ("multiclass_nms", 4, -(2**63)),
    ("multiclass_nms", 5, -1),
    ("detect", 5, 0),
    ("detect", 6, 0),
    ("mine_hard_negatives", 2, -1.0),
    ("mine_hard_negatives", 2, NAN),
    ("mine_hard_negatives", 2, INF),
    ("multibox_loss", 6, -0.5),
    ("multibox_loss", 6, NAN),
]
PACKED = [[1, 1, 4], [0, 5, 4], [0, -1, 4], [0, 1, 5], [0, 2**31 - 1, 4], [-1, 0, 4]]


@pytest.mark.parametrize(("op", "index", "value"), [needs_op(*case) for case in RANGES])
def test_numbers_out_of_range(op, index, value):
    with pytest.raises(RuntimeError, match="want "):
        call_with(op, index, value)


@pytest.mark.parametrize(("op", "offsets"), [needs_op("match_priors", case) for case in PACKED])
def test_ranges_of_rows_that_do_not_fit(op, offsets):
    priors, boxes, _, *rest = calls(*SMALL)[op]
    offsets = torch.tensor(offsets)
    for packed in (offsets.int(), offsets, offsets + 2**32):
        with pytest.raises(RuntimeError, match="want gt_offsets"):
            run(op, priors, boxes[:1].expand(4, 4), packed, *rest)


@pytest.mark.parametrize(
    ("op", "labels", "matched"),
    [needs_op("multibox_loss", 4, 5), needs_op("multibox_loss_backward", 6, 7)],
)
def test_rows_and_labels_out_of_range(op, labels, matched):
    args = calls(*SMALL)[op]
    for index, wrong in (
        *((labels, value) for value in (-1, SMALL[0][2], 2**40, -(2**63))),
        *((matched, value) for value in (-3, len(args[labels]), 2**31 - 1, -(2**31))),
    ):
        tensor = args[index].clone()
        tensor.view(-1)[-1] = wrong
        with pytest.raises(RuntimeError, match="want "):
            call_with(op, index, tensor)


@pytest.mark.parametrize("op", [needs_op("nms"), needs_op("batched_nms")])
def test_more_boxes_than_an_index_can_name(op):
    boxes, scores, *rest = calls(*SMALL)[op]
    rest = [r[:1].expand(2**31) if isinstance(r, torch.Tensor) else r for r in rest]
    with pytest.raises(RuntimeError, match="want at most"):
        run(op, boxes[:1].expand(2**31, 4), scores[:1].expand(2**31), *rest)


# no image; no prior; no ground truth; one prior; the background alone; no class at all
SHAPES = [(0, 5, 3, 2), (2, 0, 3, 2), (2, 5, 3, 0), (1, 1, 2, 1), (2, 5, 1, 0), (2, 5, 0, 0)]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "B{}P{}C{}T{}".format(*s))
@native_ops
def test_empty(op, shape):
    batch, count, classes, truths = shape
    if batch == 0:
        truths = 0
    grid, boxes = (batch, count), torch.rand(batch, count, 4)
    priors, gt = torch.rand(count, 4), torch.rand(truths, 4)
    logits, labels = torch.rand(*grid, classes), torch.ones(truths, dtype=torch.int64)
    offsets = torch.tensor([0] + [truths] * batch, dtype=torch.int32)
    matched, none = torch.full(grid, -1, dtype=torch.int32), torch.zeros(grid, dtype=torch.bool)
    targets = logits, boxes, priors, gt, labels, matched
    weights = torch.ones(()), torch.ones(())
    zero = torch.zeros(())
    nothing = (
        torch.zeros(batch, 40, 4),
        torch.zeros(batch, 40),
        torch.zeros(batch, 40, dtype=torch.int64),
        torch.full((batch, 40), -1),
        torch.zeros(batch, dtype=torch.int64),
    )
    args, want = {
        "box_iou": ((boxes, boxes[:, :0]), (torch.empty(*grid, 0),)),
        "box_iou_backward": (
            (torch.empty(*grid, 0), boxes, boxes[:, :0]),
            (torch.zeros_like(boxes), boxes[:, :0]),
        ),
        "encode_boxes": ((boxes[:0], priors, *CODING), (boxes[:0],)),
        "encode_boxes_backward": ((boxes[:0], boxes[:0], priors, *CODING), (boxes[:0],)),
        "decode_boxes": ((boxes[:0], priors, *CODING, INF), (boxes[:0],)),
        "decode_boxes_backward": ((boxes[:0], boxes[:0], priors, *CODING, INF), (boxes[:0],)),
        "match_priors": ((priors, gt[:0], offsets * 0, 0.5, True), (matched,)),
        "mine_hard_negatives": ((logits.sum(-1), none, 3.0), (none,)),
        "multibox_loss": ((*targets, 3.0, *CODING), (zero, zero, torch.tensor(0), none)),
        "multibox_loss_backward": (
            (*weights, *targets, none, *CODING),
            (torch.zeros_like(logits), torch.zeros_like(boxes)),
        ),
        "nms": ((priors[:0], priors[:0, 0], 0.5), (torch.empty(0, dtype=torch.int64),)),
        "batched_nms": (
            (priors[:0], priors[:0, 0], torch.empty(0, dtype=torch.int64), 0.5),
            (torch.empty(0, dtype=torch.int64),),
        ),
        "multiclass_nms": ((boxes, 0 * logits, *LIMITS), nothing),
        "detect": ((logits, boxes, priors, 1.0, *LIMITS[1:], *CODING, INF, False), nothing),
    }[op]
    for got, expected in zip(run(op, *args), want, strict=True):
        assert_same(got, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@native_ops
def test_half_is_computed_in_float32(op, dtype):
    half = cast(calls(*SMALL)[op], dtype)
    want = run(op, *cast(half, torch.float32))
    for got, expected in zip(run(op, *half), want, strict=True):
        assert_same(got, expected.to(got.dtype))


@pytest.mark.parametrize("layout", LAYOUTS)
@native_ops
def test_layouts(op, layout):
    args = calls(*SMALL)[op]
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        plain = cast(args, dtype)
        for got, want in zip(
            run(op, *change(plain, LAYOUTS[layout])), run(op, *plain), strict=True
        ):
            assert_same(got, want)


@native_ops
def test_arguments_are_left_alone(op):
    args = calls(*SMALL)[op]
    before = change(args, torch.clone)
    run(op, *args)
    for left, right in zip(args, before, strict=True):
        assert_same(torch.as_tensor(left), torch.as_tensor(right))
