"""The rules of the house: imports point downward, files are short, the package imports lean."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LAYERS = [
    {"_backend", "_host", "host", "kernels"},
    {"ops", "priors"},
    {
        "backbones",
        "model",
        "ssd",
        "data",
        "weights",
        "compat",
        "checkpoint",
        "distributed",
        "export",
        "graphs",
        "lists",
        "frozen",
        "memory",
        "metrics",
        "coco",
        "draw",
        "plots",
        "report",
    },
    {"recipes", "evaluate", "stepper", "stop"},
    {"trainer"},
    {"train", "predict", "verify", "doctor"},
    {"demo"},
    {"cli"},
]
LIMITS = {
    "ssdkern/ops": 200,
    "kernels": 250,
    "csrc": 300,
    "ssdkern": 350,
    "tests": 350,
    "bench": 300,
}


def layer(name):
    return next((level for level, names in enumerate(LAYERS) if name in names), None)


def modules():
    return [p for p in (ROOT / "ssdkern").rglob("*.py") if p != ROOT / "ssdkern/__init__.py"]


def imported(path):
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    parts = [name.split(".") for name in names]
    return {part[1] for part in parts if part[0] == "ssdkern" and len(part) > 1}


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_downward(path):
    own = path.relative_to(ROOT / "ssdkern").parts[0].removesuffix(".py")
    assert layer(own) is not None, f"{own} has no place among the layers"
    for name in imported(path):
        if layer(name) is not None and name != own:
            assert layer(name) <= layer(own), f"{own} imports {name}, which lies above it"


def test_files_are_short():
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in tracked.stdout.split():
        limit = next((LIMITS[folder] for folder in LIMITS if name.startswith(folder + "/")), None)
        if limit and name.endswith((".py", ".cpp", ".h", ".cu", ".cuh")):
            lines = len((ROOT / name).read_text().splitlines())
            assert lines <= limit, f"{name} has {lines} lines, want at most {limit}"


def test_core_imports_without_the_training_packages():
    code = (
        "import sys, ssdkern;"
        "extra = {'torchvision', 'PIL', 'matplotlib', 'yaml', 'pycocotools'};"
        "sys.exit(', '.join(extra & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, f"importing ssdkern also imports {done.stderr}"
