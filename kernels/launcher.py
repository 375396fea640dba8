"""Launchers as torch ops, which torch.compile calls as they are.

Dynamo would trace a bare launch, but knows no `enable_fp_fusion`, on which the bits of IoU hang.
"""

import torch
from torch import library

_LIBRARY = library.Library("ssdkern_triton", "FRAGMENT")


def _contiguous(args):
    return [arg.contiguous() if isinstance(arg, torch.Tensor) else arg for arg in args]


def launcher(fake):
    """Registers the decorated `<op>_triton` as an op; `fake` makes its results, uninitialised.

    Both see contiguous tensors, so that the results have the strides that the fake promises.
    """

    def register(launch):
        def run(*args):
            args = _contiguous(args)
            if args[0].device.type != "cuda":
                return launch(*args)
            with torch.cuda.device(args[0].device):
                return launch(*args)

        def promise(*args):
            return fake(*_contiguous(args))

        name = launch.__name__.removesuffix("_triton")
        schema = name + library.infer_schema(launch, mutates_args=())
        _LIBRARY.define(schema, tags=torch.Tag.pt2_compliant_tag)
        for device in ("CPU", "CUDA"):
            _LIBRARY.impl(name, run, device)
        library.register_fake(f"ssdkern_triton::{name}", promise, lib=_LIBRARY)
        return getattr(torch.ops.ssdkern_triton, name).default

    return register
