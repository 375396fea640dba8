"""Runs tests on the CUDA kernels, compiled for the CPU: run.py asan|shadow [pytest arguments].

The ops of csrc/cuda take the place of the native CPU ones, so the tests of the ops run as they are:
those of all ops, or the files that the arguments name. asan is AddressSanitizer with undefined
behaviour trapped; shadow follows every access to memory. Both find divergent barriers.
"""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
MODES = {
    "asan": ["-fsanitize=address,undefined", "-fsanitize-undefined-trap-on-error"],
    "shadow": [
        "-DCUDA_ON_HOST_SHADOW",
        "-fsanitize=thread",  # only for its calls at every access: shadow.cpp answers them
        "--param=tsan-instrument-func-entry-exit=0",
        "--param=tsan-distinguish-volatile=1",
    ],
}
FLAGS = [
    "-std=c++20",
    "-O1",
    "-g1",
    "-fPIC",
    "-ffp-contract=off",
    "-fvisibility=hidden",
    "-Wall",
    "-Wno-sign-compare",  # threadIdx.x is unsigned
    "-Werror",
    "-Wno-unknown-pragmas",  # unroll
    "-Wno-subobject-linkage",
    "-DTORCH_TARGET_VERSION=0x020b000000000000",
]
SELECTED = "cpu-native and not compiles and not exports"  # Dynamo does not care whose kernels run


def build(mode, sources=None, name="ssdkern"):
    """Compiles kernels for the CPU; returns the library's path, or None without g++."""
    compiler = shutil.which("g++")
    if compiler is None:
        return None
    sources = list(sources or (ROOT / "csrc/cuda").glob("*.cu"))
    if mode == "shadow":
        sources.append(HERE / "shadow.cpp")
    folder = ROOT / "build/cuda_on_host" / mode
    folder.mkdir(parents=True, exist_ok=True)
    parts = Path(torch.__file__).parent
    headers = [*ROOT.glob("csrc/**/*.*h"), *HERE.glob("*.h"), Path(__file__)]
    newest = max(path.stat().st_mtime for path in headers)
    includes = [f"-I{HERE}", f"-I{ROOT / 'csrc/cuda'}", "-isystem", str(parts / "include")]

    def compile_one(source):
        target = folder / f"{source.stem}.o"
        if target.exists() and target.stat().st_mtime > max(newest, source.stat().st_mtime):
            return target
        command = [compiler, "-x", "c++", "-c", str(source), "-o", str(target)]
        extra = MODES[mode] if source.suffix == ".cu" else [MODES[mode][0], "-O2"]
        subprocess.run([*command, *FLAGS, *extra, *includes], check=True)
        return target

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = [str(path) for path in pool.map(compile_one, sources)]
    library = folder / f"lib{name}.so"
    links = ["-fsanitize=address"] if mode == "asan" else []
    links += [f"-L{parts / 'lib'}", "-Wl,--no-as-needed", "-ltorch", "-ltorch_cpu"]
    subprocess.run([compiler, "-shared", *objects, "-o", str(library), *links], check=True)
    return library


def environment(mode, library):
    """What a process needs to load the library."""
    env = {**os.environ, "SSDKERN_CUDA_ON_HOST": str(library)}
    if mode == "asan":
        preload = []  # libstdc++ too: AddressSanitizer looks for its __cxa_throw when it starts
        for name in ("libasan.so", "libstdc++.so.6"):
            command = ["g++", f"-print-file-name={name}"]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            preload.append(done.stdout.strip())
        env |= {"LD_PRELOAD": " ".join(preload)}
        env |= {"ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0"}
    return env


def main():
    mode, *arguments = sys.argv[1:]
    library = build(mode)
    if library is None:
        sys.exit("want g++ to compile the CUDA kernels for the CPU, got none")
    env = environment(mode, library)
    env["PYTHONPATH"] = os.pathsep.join([str(HERE), env.get("PYTHONPATH", "")])
    if not any(argument.startswith("tests/") for argument in arguments):
        names = [*(path.stem for path in sorted((ROOT / "csrc/cuda").glob("*.cu"))), "cuda_paths"]
        files = [f"tests/test_{name}.py" for name in names]
        arguments += [file for file in files if (ROOT / file).exists()]
    command = [sys.executable, "-m", "pytest", "-p", "plugin", "-k", SELECTED, *arguments]
    sys.exit(subprocess.run(command, cwd=ROOT, env=env).returncode)


if __name__ == "__main__":
    main()
