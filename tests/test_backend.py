"""Which backend runs, and what is said when it cannot."""

import os
import subprocess
import sys

import pytest
import torch

from ssdkern import box_iou, why_not
from ssdkern._backend import resolve


def run(code, **env):
    return subprocess.run(
        [sys.executable, "-W", "always", "-c", code],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
    )


def test_torch_always_runs():
    assert why_not("box_iou", "torch", "cpu") is None
    assert resolve("box_iou", "torch", torch.device("cpu")) == "torch"


def test_unknown_backend_is_named():
    with pytest.raises(ValueError, match=r"want a backend of .* got 'cuda'"):
        box_iou(torch.rand(1, 4), torch.rand(1, 4), backend="cuda")


def test_explicit_backend_never_falls_back():
    done = run(
        "import ssdkern, torch; b = torch.rand(2, 4); ssdkern.box_iou(b, b, backend='native')",
        SSDKERN_DISABLE="native",
    )
    assert done.returncode == 1
    message = "box_iou cannot run on backend 'native': switched off by SSDKERN_DISABLE"
    assert f"RuntimeError: {message}" in done.stderr


def test_fallback_is_announced_once():
    code = "import ssdkern, torch; b = torch.rand(2, 4); [ssdkern.box_iou(b, b) for _ in range(3)]"
    done = run(code, SSDKERN_DISABLE="native")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("box_iou on cpu runs on 'torch', not 'native'") == 1


def test_misspelt_switch_is_refused():
    done = run("import ssdkern", SSDKERN_DISABLE="cuda")
    assert "want SSDKERN_DISABLE to name native or triton, got ['cuda']" in done.stderr


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter is on")
def test_triton_says_why_not_on_cpu():
    assert "TRITON_INTERPRET=1" in why_not("box_iou", "triton", "cpu")
