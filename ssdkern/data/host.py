"""The C++ module that data-loading workers run, or why they do without."""

import os
import warnings
from functools import cache


@cache
def host():
    """`ssdkern._host`, or None (said once) where it is not built.

    ``SSDKERN_DISABLE=native`` hides it.
    """
    if "native" in os.environ.get("SSDKERN_DISABLE", "").split(","):
        return None
    try:
        from ssdkern import _host
    except ImportError as error:
        message = f"ssdkern._host is not built ({error}); augmentation takes about twice the time"
        warnings.warn(message, RuntimeWarning, stacklevel=2)
        return None
    return _host
