"""What the fuzz tests draw: hypothesis chooses sizes, kinds and a seed, torch fills the numbers."""

import os

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from native_calls import FLOATS, LAYOUTS

import ssdkern

NAN, INF = float("nan"), float("inf")
counts = st.sampled_from([15, 16, 17, 31, 32, 33, 63, 64, 65]) | st.integers(0, 70)
iou_thresholds = st.sampled_from(
    [0.45, 0.5, 1 / 3, 0.25, 0.1, 0.0, -0.0, 1.0, -1.0, 1e-300, 2.0, NAN, INF, -INF]
)
KINDS = "random", "grid", "same", "odd", "inverted"
SCALES = 1.0, 1.0, 300.0, 1e-6, 1e-20, 1e15, 1e25
ODD = 0.0, -0.0, 1.0, NAN, INF, -INF, 1e25, -1e25, 1e-30


def fuzz(examples):
    """Runs a test on so many examples, drawn from its argument `data`, the same ones each time.

    SSDKERN_FUZZ=5000 looks at that many others instead.
    """
    asked = os.environ.get("SSDKERN_FUZZ")
    limits = settings(
        max_examples=int(asked or examples),
        derandomize=not asked,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    return lambda test: limits(given(data=st.data())(test))


def both(op, device, *tensors, **kwargs):
    """The answers of the native op and of the reference."""
    function = getattr(ssdkern, op)
    got = function(*(t.to(device) for t in tensors), **kwargs, backend="native")
    return got, function(*tensors, **kwargs, backend="torch")


def assert_values(got, want, scale):
    """Equal within 2e-6 of `scale`; infinite and NaN in the same places."""
    got, want, scale = got.cpu().double(), want.double(), scale.double()
    near = (got - want).abs() <= torch.where(scale.isfinite(), 2e-6 * scale, 0)
    wrong = ~(near | (got == want) | (got.isnan() & want.isnan()))
    assert not wrong.any(), f"{got[wrong][:5]} against {want[wrong][:5]}"


class Inputs:
    """Draws the tensors of one example."""

    def __init__(self, draw):
        self.draw = draw
        self.generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
        self.dtype = draw(st.sampled_from(FLOATS))
        self.compute = torch.float64 if self.dtype == torch.float64 else torch.float32

    def one_of(self, *values):
        return self.draw(st.sampled_from(values))

    def rand(self, *shape):
        return torch.rand(shape, generator=self.generator, dtype=torch.float64)

    def randn(self, *shape):
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def randint(self, low, high, shape):
        return torch.randint(low, high, shape, generator=self.generator)

    def strew(self, tensor, values, share=0.2):
        """`tensor` with a share of its numbers replaced by some of `values`."""
        chosen = torch.tensor(values, dtype=tensor.dtype)[
            self.randint(0, len(values), tensor.shape)
        ]
        return torch.where(self.rand(*tensor.shape) < share, chosen, tensor)

    def lay_out(self, tensor):
        """The same numbers, in one of several layouts."""
        layout = self.one_of(None, *LAYOUTS)
        return tensor if layout is None else LAYOUTS[layout](tensor)

    def floats(self, tensor):
        return self.lay_out(tensor.to(self.dtype))

    def boxes(self, *shape, kinds=KINDS, scales=SCALES):
        """xyxy [*shape, 4]: clusters, quarters of a unit with sides of 0 too, or worse."""
        kind = self.one_of(*kinds)
        if kind in ("grid", "same"):
            corner = self.randint(-1, 3 if kind == "grid" else 0, (*shape, 2)) / 4
            boxes = torch.cat((corner, corner + self.randint(0, 4, (*shape, 2)) / 4), dim=-1)
        else:
            corner = self.rand(*shape, 2)
            boxes = torch.cat((corner, corner + 0.05 + self.rand(*shape, 2) / 2), dim=-1)
        boxes = boxes.double() * self.one_of(*scales)
        if kind == "odd":
            boxes = self.strew(boxes, ODD)
        if kind == "inverted":
            boxes = torch.where(self.rand(*shape, 1) < 0.5, boxes, boxes.roll(2, -1))
        return boxes

    def scores(self, *shape):
        kind = self.one_of("random", "few", "one", "odd")
        if kind in ("few", "one"):
            return self.randint(0, 4 if kind == "few" else 1, shape).double() / 4
        scores = self.rand(*shape)
        return scores if kind == "random" else self.strew(scores, (0.0, -0.0, -1.0, NAN, INF, -INF))
