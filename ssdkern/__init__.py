"""ssdkern: SSD object detection on custom kernels that give the same answer on every backend."""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

from ssdkern._backend import why_not
from ssdkern.ops import *  # noqa: F403
from ssdkern.ops import __all__ as _op_names
from ssdkern.priors import PriorConfig, make_priors

try:
    __version__ = version("ssdkern")
except PackageNotFoundError:
    __version__ = "0+unknown"

_LATER = dict.fromkeys(("SSD", "ssd300", "ssd512", "ssd300_mobilenet_v2", "ssd_tiny"), "model")
_LATER |= {"capture": "graphs", "export_onnx": "export"}
__all__ = ["PriorConfig", "make_priors", "why_not", *_op_names, *_LATER]


def __getattr__(name):
    """Models load on first use: the ops must import without torchvision."""
    if name in _LATER:
        return getattr(import_module(f"ssdkern.{_LATER[name]}"), name)
    raise AttributeError(f"module 'ssdkern' has no attribute {name!r}")
