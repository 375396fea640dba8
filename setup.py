"""Builds what the machine can: the CPU ops, the CUDA ops, and the NumPy-facing host module.

All three are optional: where a tool is missing or fails, the rest is installed and `ssdkern doctor`
names what is absent. The ops use torch's stable ABI, so torch is only looked at, never imported:
its headers are found in the target environment even from an isolated build.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

try:
    from pybind11.setup_helpers import ParallelCompile, Pybind11Extension
except ImportError:
    Pybind11Extension = None

STABLE_ABI = "0x020b000000000000"  # torch 2.11: one build serves every later torch
ARCHITECTURES = os.environ.get("TORCH_CUDA_ARCH_LIST")


def find_torch():
    roots = [*sys.path, sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    header = "include/torch/csrc/stable/ops.h"
    return next((Path(r, "torch") for r in roots if Path(r, "torch", header).exists()), None)


def has_gpu():
    smi = shutil.which("nvidia-smi")
    return smi is not None and subprocess.run([smi, "-L"], capture_output=True).returncode == 0


def nvcc_path():
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    return str(Path(home, "bin/nvcc")) if home else shutil.which("nvcc")


def wants_cuda(torch):
    asked = os.environ.get("SSDKERN_CUDA")
    if asked == "0" or not (torch / "lib/libtorch_cuda.so").exists():
        return False
    return nvcc_path() is not None and (asked == "1" or has_gpu())


def gencode():
    """The GPU at hand, else (where SSDKERN_CUDA=1 asks) sm_80, sm_90, sm_100 and PTX."""
    if not ARCHITECTURES and has_gpu():
        return ["-arch=native"]
    flags = []
    for name in (ARCHITECTURES or "8.0 9.0 10.0+PTX").replace(";", " ").split():
        arch = name.removesuffix("+PTX").replace(".", "")
        flags.append(f"-gencode=arch=compute_{arch},code=sm_{arch}")
        if name.endswith("+PTX"):
            flags.append(f"-gencode=arch=compute_{arch},code=compute_{arch}")
    return flags


class BuildExt(build_ext):
    """Sends .cu files to nvcc, and names op libraries without Python's suffix: torch loads them."""

    def get_ext_filename(self, name):
        if name.split(".")[-1].startswith("lib"):
            return name.replace(".", "/") + ".so"
        return super().get_ext_filename(name)

    def build_extension(self, ext):
        if ext.language == "cuda":
            self.link_with_nvcc(ext)
        else:
            super().build_extension(ext)

    def link_with_nvcc(self, ext):
        nvcc = nvcc_path()
        includes = [f"-isystem={path}" for path in ext.include_dirs]
        macros = [f"-D{key}={value}" for key, value in ext.define_macros]
        flags = [*ext.extra_compile_args, *gencode(), *includes, *macros]

        def compile_one(source):
            target = Path(self.build_temp, source).with_suffix(".cu.o")
            target.parent.mkdir(parents=True, exist_ok=True)
            newest = max(os.path.getmtime(path) for path in [source, *ext.depends])
            if not target.exists() or target.stat().st_mtime < newest:
                self.spawn([nvcc, "-c", source, "-o", str(target), *flags])
            return str(target)

        jobs = int(os.environ.get("SSDKERN_BUILD_JOBS") or os.cpu_count() or 1)
        with ThreadPoolExecutor(jobs) as pool:
            objects = list(pool.map(compile_one, ext.sources))
        Path(self.get_ext_fullpath(ext.name)).parent.mkdir(parents=True, exist_ok=True)
        self.spawn(
            [nvcc, "-shared", *objects, "-o", self.get_ext_fullpath(ext.name), *ext.extra_link_args]
        )


def torch_library(torch, name, sources, compile_args, link_args, macros=(), **options):
    return Extension(
        f"ssdkern.lib{name}",
        sources,
        include_dirs=[str(torch / "include")],
        define_macros=[("TORCH_TARGET_VERSION", STABLE_ABI), *macros],
        depends=glob("csrc/**/*.h*", recursive=True) + glob("csrc/**/*.cuh", recursive=True),
        extra_compile_args=compile_args,
        extra_link_args=[f"-L{torch / 'lib'}", *link_args],
        optional=os.environ.get("SSDKERN_REQUIRE_NATIVE") != "1",
        **options,
    )


def extensions(torch):
    found = []
    cxx = ["-std=c++20", "-O3", "-fPIC", "-ffp-contract=off", "-fvisibility=hidden", "-Wall"]
    if torch:
        links = ["-Wl,--no-as-needed", "-ltorch", "-ltorch_cpu"]
        found.append(
            torch_library(torch, "ssdkern_cpu", sorted(glob("csrc/cpu/*.cpp")), cxx, links)
        )
        if wants_cuda(torch):
            nvcc = ["-std=c++20", "-O3", "-fmad=false", "-Xcompiler=-fPIC,-fvisibility=hidden"]
            links = ["-Xlinker=--no-as-needed", "-ltorch", "-ltorch_cpu", "-ltorch_cuda"]
            sources = sorted(glob("csrc/cuda/*.cu"))
            macros = [("USE_CUDA", "1")]
            found.append(
                torch_library(torch, "ssdkern_cuda", sources, nvcc, links, macros, language="cuda")
            )
    if Pybind11Extension:
        ParallelCompile("SSDKERN_BUILD_JOBS").install()
        sources = sorted(glob("csrc/host/*.cpp"))
        found.append(
            Pybind11Extension(
                "ssdkern._host",
                sources,
                depends=[*glob("csrc/*.h"), *glob("csrc/host/*.h")],
                extra_compile_args=["-O3", "-ffp-contract=off"],
                cxx_std=20,
                optional=True,
            )
        )
    return [ext for ext in found if ext.sources]


TORCH = find_torch()
setup(
    ext_modules=extensions(TORCH),
    cmdclass={"build_ext": BuildExt},
    setup_requires=[] if TORCH else ["torch>=2.11"],
)
