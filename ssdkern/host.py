"""The C++ module that data-loading workers and the evaluation run, or why they do without."""

import os
import warnings
from functools import cache


def why_no_host():
    """The reason that `ssdkern._host` cannot be used, or None."""
    if "native" in os.environ.get("SSDKERN_DISABLE", "").split(","):
        return "switched off by SSDKERN_DISABLE"
    try:
        import ssdkern._host  # noqa: F401
    except ImportError as error:
        return f"not built ({error}); reinstall ssdkern where pybind11 and a C++ compiler are"
    return None


@cache
def host():
    """`ssdkern._host`, or None (said once) where it cannot be used."""
    if reason := why_no_host():
        message = f"ssdkern._host is {reason}; augmentation and evaluation take longer in NumPy"
        if "SSDKERN_DISABLE" not in reason:
            warnings.warn(message, RuntimeWarning, stacklevel=2)
        return None
    import ssdkern

    return ssdkern._host
