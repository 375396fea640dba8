"""Which implementation of an op runs on a device, and why another does not.

`native` is built C++ and CUDA C++, `triton` compiles at first use, `torch` is always there.
Which of them can run is settled once per process; `SSDKERN_DISABLE=native,triton` hides backends,
`SSDKERN_LIBRARY_CPU=<path>` puts another build of the CPU ops in place of the installed one.
"""

import functools
import importlib.util
import os
import warnings
from pathlib import Path

import torch

BACKENDS = ("native", "triton", "torch")
_PREFERENCE = {"cpu": ("native", "torch"), "cuda": ("native", "triton", "torch")}
_DISABLED = {name for name in os.environ.get("SSDKERN_DISABLE", "").split(",") if name}
_REBUILD = "reinstall ssdkern where {} is: pip install --force-reinstall --no-deps -v ."
_announced = set()


def _load(library):
    """Loads one of our op libraries; returns None, or the reason that it cannot be used."""
    installed = Path(__file__).with_name(f"libssdkern_{library}.so")
    path = Path(os.environ.get(f"SSDKERN_LIBRARY_{library.upper()}") or installed)
    if "native" in _DISABLED:
        return "switched off by SSDKERN_DISABLE"
    if library == "cuda" and torch.version.cuda is None:
        return "this torch is a CPU-only build"
    if not path.exists():
        needs = "a C++ compiler" if library == "cpu" else "nvcc and a GPU (or SSDKERN_CUDA=1)"
        return f"{path.name} was not built; {_REBUILD.format(needs)}"
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        return f"{path.name} does not load: {error}"
    return None


def _triton_reason():
    if "triton" in _DISABLED:
        return "switched off by SSDKERN_DISABLE"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed; pip install triton"
    return None


if unknown := _DISABLED - set(BACKENDS[:2]):
    raise RuntimeError(f"want SSDKERN_DISABLE to name native or triton, got {sorted(unknown)}")
# The schemas live in the CPU library, so the CUDA one is of no use without it.
_LIBRARY = {"cpu": _load("cpu")}
_LIBRARY["cuda"] = _LIBRARY["cpu"] or _load("cuda")
_TRITON = _triton_reason()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@torch.compiler.assume_constant_result
def why_not(op, backend, device):
    """The reason that `backend` cannot run `op` on `device`, or None where it can.

    Args:
        op: name of a public op, such as ``"box_iou"``.
        backend: ``"native"``, ``"triton"`` or ``"torch"``.
        device: ``"cpu"``, ``"cuda"`` or a torch.device.
    """
    return _reason(op, backend, torch.device(device).type)


@functools.cache
def _reason(op, backend, device):
    if backend not in BACKENDS:
        raise ValueError(f"want a backend of {BACKENDS}, got {backend!r}")
    if backend == "torch":
        return None
    if backend == "native":
        if device not in _LIBRARY:
            return f"there are no native kernels for {device} tensors"
        if _LIBRARY[device]:
            return _LIBRARY[device]
        has = torch._C._dispatch_has_kernel_for_dispatch_key
        name = f"ssdkern::{op}"
        known = torch._C._dispatch_has_kernel(name) and has(name, device.upper())
        return None if known else f"there is no native {op} for {device} tensors"
    if _TRITON:
        return _TRITON
    if device == "cpu" and not INTERPRETED:
        return "triton runs on CPU tensors only under TRITON_INTERPRET=1"
    if device not in ("cpu", "cuda"):
        return f"there are no triton kernels for {device} tensors"
    if importlib.util.find_spec(f"ssdkern.kernels.{op}") is None:
        return f"there is no triton {op}"
    return None


def preference(device):
    """The backends that are tried on `device`, best first."""
    return _PREFERENCE.get(torch.device(device).type, ("torch",))


@torch.compiler.assume_constant_result
def resolve(op, backend, device):
    """The backend that runs `op` on `device`: the named one, or the best that can run.

    Raises:
        RuntimeError: the named backend cannot run; the message says why.
    """
    device = torch.device(device).type
    if backend is None:
        return _choose(op, device)
    if reason := _reason(op, backend, device):
        raise RuntimeError(f"{op} cannot run on backend {backend!r}: {reason}")
    return backend


@functools.cache
def _choose(op, device):
    order = preference(device)
    reasons = {name: _reason(op, name, device) for name in order}
    chosen = next(name for name in order if reasons[name] is None)
    if chosen != order[0] and device not in _announced:
        _announced.add(device)
        warnings.warn(
            f"ssdkern: {op} on {device} runs on {chosen!r}, not {order[0]!r}: "
            f"{reasons[order[0]]}. `ssdkern doctor` shows every op.",
            stacklevel=4,
        )
    return chosen
