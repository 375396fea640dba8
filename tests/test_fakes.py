"""What compilers are told of the results of an op, by its fake, is what the op returns."""

import importlib

import pytest
import torch
from cases import cannot
from native_calls import LAYOUTS, OPS, SMALL, calls, change
from torch._subclasses import FakeTensorMode

FIXED = [op for op in OPS if op not in ("nms", "batched_nms")]  # sizes that no data decides
pytestmark = pytest.mark.ops
LIBRARIES = {"native": "ssdkern", "triton": "ssdkern_triton"}


def facts(results):
    results = results if isinstance(results, tuple) else (results,)
    return [(t.shape, t.stride(), t.dtype) for t in results]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("backend", LIBRARIES)
@pytest.mark.parametrize("op", FIXED)
def test_strides_of_any_layout(op, backend, layout):
    if reason := cannot(op.removesuffix("_backward"), backend, "cpu"):
        pytest.skip(reason)
    if backend == "triton":
        importlib.import_module(f"ssdkern.kernels.{op.removesuffix('_backward')}")
    run = getattr(getattr(torch.ops, LIBRARIES[backend]), op)
    args = change(calls(*SMALL)[op], LAYOUTS[layout])
    with FakeTensorMode() as mode:
        expected = facts(run(*change(args, mode.from_tensor)))
    assert facts(run(*args)) == expected
