"""Compiles Triton kernels for GPUs that are not there: as launched, then read from the binary."""

import inspect
import re
import subprocess
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
DTYPES = {
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.bool: "*i1",
}
OPTIONS = {"num_warps", "num_stages", "enable_fp_fusion"}


def record_launches(monkeypatch):
    """The launches that follow go into the returned list, as (kernel, arguments, options)."""
    launches = []

    def record(kernel, *args, grid, warmup, **kwargs):
        options = {name: kwargs.pop(name) for name in OPTIONS & set(kwargs)}
        bound = inspect.signature(kernel.fn).bind(*args, **kwargs)
        launches.append((kernel, bound.arguments, options))

    monkeypatch.setattr(JITFunction, "run", record)
    return launches


def compile_launch(launch, target):
    """What Triton would compile for this launch on `target`: aligned pointers, ones folded in."""
    kernel, arguments, options = launch
    signature, constants, attributes = {}, {}, {}
    for parameter in kernel.params:
        value, place = arguments[parameter.name], (parameter.num,)
        kind = parameter.annotation_type
        special = type(value) is int and not parameter.do_not_specialize
        if isinstance(value, torch.Tensor):
            kind = DTYPES[value.dtype]
        elif parameter.is_constexpr or value is None or (special and value == 1):
            kind, constants[place] = "constexpr", value
        elif type(value) is int:
            kind = "i32" if -(2**31) <= value < 2**31 else "i64"
        if kind.startswith("*") or (special and kind != "constexpr" and value % 16 == 0):
            attributes[place] = [["tt.divisibility", 16]]
        signature[parameter.name] = kind
    source = ASTSource(kernel, signature, constants, attributes)
    return triton.compile(source, target=TARGETS[target], options=options)


def usage(compiled):
    """Registers a thread, shared memory in bytes, and bytes a thread spills."""
    asm, shared = compiled.asm, compiled.metadata.shared
    if "amdgcn" in asm:
        registers, spills = (
            int(re.search(rf"\.{name}:\s+(\d+)", asm["amdgcn"])[1])
            for name in ("vgpr_count", "vgpr_spill_count")
        )
        return registers, shared, 4 * spills
    registers, stack = map(
        int, re.search(r"REG:(\d+) STACK:(\d+)", _resources(asm["cubin"])).groups()
    )
    return registers, shared, _spills(asm["ptx"]) if stack else 0


def _resources(cubin):
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [TOOLS / "cuobjdump", "-res-usage", file.name]
        return subprocess.run(command, capture_output=True, check=True, text=True).stdout


def _spills(ptx):
    """Bytes stored by spills, which only the assembler tells from other uses of the stack."""
    arch, number = re.search(r"\.target (sm_(\d+)\w*)", ptx).groups()
    tool = get_ptxas(int(number)).path
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        command = [tool, "-v", "--gpu-name", arch, file.name, "-o", "/dev/null"]
        text = subprocess.run(command, capture_output=True, check=True, text=True).stderr
    return int(re.search(r"(\d+) bytes spill stores", text)[1])
