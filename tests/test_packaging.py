"""What a source archive and an installation hold: everything."""

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def tracked():
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in done.stdout.split("\0") if (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def packed(tracked, tmp_path_factory):
    """A folder with the source archive in dist/ and the installed modules in lib/."""
    source = tmp_path_factory.mktemp("source")
    for name in tracked:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "setup.py", "-q", "sdist", "build_py", "--build-lib", "lib"]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return source


def test_source_archive_builds_every_kernel(packed, tracked):
    with tarfile.open(next(packed.glob("dist/*.tar.gz"))) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    needed = {name for name in tracked if name.startswith(("csrc/", "kernels/", "ssdkern/"))}
    needed |= {"README.md", "LICENSE", "pyproject.toml", "setup.py"}
    assert needed - inside == set()


def test_installation_holds_every_module(packed, tracked):
    inside = {str(path.relative_to(packed / "lib")) for path in packed.glob("lib/**/*.py")}
    needed = {name for name in tracked if name.startswith("ssdkern/") and name.endswith(".py")}
    needed |= {f"ssdkern/{name}" for name in tracked if name.startswith("kernels/")}
    assert needed - inside == set()
