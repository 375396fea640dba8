"""The CUDA library builds without a warning, loads without a GPU and spills nothing when hot."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "build/cuda"
OPS = sorted(path.stem for path in (ROOT / "csrc/cuda").glob("*.cu"))
# in float32 and half precision these take the time; float64 is for checking gradients
HOT = ("match_priors", "claim_", "cross_entropy", "multibox_loss", "mine_hard", "tile", "settle")
HOT += ("apply", "rank", "softmax", "class_kernel", "merge", "box_iou_kernel", "code_boxes")

BUILD = """
import sys, setuptools
from distutils.core import run_setup
distribution = run_setup("setup.py", stop_after="init")
command = distribution.get_command_obj("build_ext")
command.build_lib, command.build_temp = sys.argv[1:]
command.ensure_finalized()
command.extensions = [e for e in command.extensions if e.language == "cuda"]
command.run()
"""

HOME = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
NVCC = str(Path(HOME, "bin/nvcc")) if HOME else "nvcc"

pytestmark = [
    pytest.mark.skipif(shutil.which(NVCC) is None, reason=f"there is no {NVCC}"),
    pytest.mark.skipif(torch.version.cuda is None, reason="this torch is a CPU-only build"),
]


@pytest.fixture(scope="module")
def library():
    """Built for the oldest and the newest GPU and those between, warnings being errors."""
    warnings = "-Werror all-warnings -Xcompiler=-Wall"
    env = {**os.environ, "SSDKERN_CUDA": "1", "SSDKERN_REQUIRE_NATIVE": "1"}
    env |= {"TORCH_CUDA_ARCH_LIST": "7.5 8.0 9.0 10.0 12.0+PTX", "NVCC_APPEND_FLAGS": warnings}
    command = [sys.executable, "-c", BUILD, str(OUT), str(OUT / "temp")]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return next(OUT.rglob("libssdkern_cuda.so"))


def test_holds_no_unstable_symbol(library):
    command = ["nm", "--dynamic", "--undefined-only", "--demangle", str(library)]
    symbols = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "aoti_torch_get_current_cuda_stream" in symbols
    assert not re.findall(r" U (?:at|c10|torch)::.*", symbols)


def test_loads_without_a_gpu(library):
    code = f"""
import torch, ssdkern
torch.ops.load_library({str(library)!r})
has = torch._C._dispatch_has_kernel_for_dispatch_key
print(*(op for op in {OPS} if not has(f"ssdkern::{{op}}", "CUDA")))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [], "these have no CUDA kernel"


def cuobjdump():
    if found := shutil.which("cuobjdump"):
        return found
    triton = pytest.importorskip("triton")
    return str(Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump")


def test_spills_nothing(library, capsys):
    command = [cuobjdump(), "--dump-resource-usage", str(library)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    text = subprocess.run(["c++filt"], input=text, capture_output=True, text=True).stdout
    pattern = r"arch = (sm_\d+)|Function (.*):\n\s*REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)"
    arch, table, spilled = "", [], []
    for found in re.finditer(pattern, text):
        if found[1]:
            arch = found[1]
            continue
        name = re.sub(r"\(.*", "", found[2].replace("(anonymous namespace)::", ""))
        name = name.replace("ssdkern::", "").replace("void ", "")
        name = name.replace("torch::headeronly::", "").replace("c10::", "")
        registers, stack, shared, local = map(int, found.groups()[2:])
        table.append(f"{arch:7} {registers:4} {stack:6} {shared:7}  {name}")
        if stack + local and name.startswith(HOT) and "double" not in name:
            spilled.append(f"{name} for {arch}: {stack} bytes of stack, {local} local")
    with capsys.disabled():
        print(
            "\narch    regs  stack  shared  kernel", *sorted(table, key=lambda r: r[29:]), sep="\n"
        )
    assert len(table) > 5 * len(OPS)
    assert spilled == []
