"""From the name of a kernel to the callable of a backend."""

import importlib
import sys

import torch
from torch import library

import ssdkern._backend  # noqa: F401  the schemas are there once the libraries are loaded


def kernel(name, backend):
    """The `native` or `triton` callable of `name`, such as "box_iou" or "box_iou_backward"."""
    if backend == "native":
        return getattr(torch.ops.ssdkern, name)
    module = _import(f"ssdkern.kernels.{name.removesuffix('_backward')}")
    return getattr(sys.modules[module], f"{name}_triton")


@torch.compiler.assume_constant_result
def _import(module):
    """Dynamo traces no import by name, but takes its result as it is."""
    return importlib.import_module(module).__name__


def fake(name):
    """Registers the decorated function as the fake of a native op, where a library defines it."""

    def register(function):
        if hasattr(torch.ops.ssdkern, name):
            library.register_fake(f"ssdkern::{name}", function)
        return function

    return register
