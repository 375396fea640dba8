"""The native CPU library: the same answers on every instruction set and number of threads, in code
that any machine and any later torch can load."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cases import assert_same
from native_calls import FLOATS, calls, cast, has_native, native_ops, run

from ssdkern import _backend

HERE = Path(__file__).parent
SIZE = (3, 2500, 21, 30), 6000
ISAS = ["v2", "v3", "v4"]
EXACT = "box_iou", "match_priors", "mine_hard_negatives", "nms", "batched_nms", "multiclass_nms"


def answers():
    """What every op gives, by op and dtype; run with each instruction set."""
    args = {op: args for op, args in calls(*SIZE).items() if has_native(op)}
    return {(op, dtype): run(op, *cast(args[op], dtype)) for op in args for dtype in FLOATS}


def python(code, *args, **env):
    return subprocess.run(
        [sys.executable, "-c", code, *args],
        cwd=HERE,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def by_isa(tmp_path_factory):
    """The answers of each instruction set, or why this machine gives none."""
    found = {}
    for isa in ISAS:
        path = tmp_path_factory.mktemp("isa") / f"{isa}.pt"
        code = "import sys, torch, test_native; torch.save(test_native.answers(), sys.argv[1])"
        done = python(code, str(path), SSDKERN_ISA=isa)
        lacks = f"want SSDKERN_ISA to be one of v2, v3, v4 that runs here, got {isa}"
        assert done.returncode == 0 or lacks in done.stderr, done.stderr
        found[isa] = torch.load(path) if done.returncode == 0 else lacks
    return found


@pytest.mark.parametrize("isa", ISAS[1:])
@native_ops
def test_instruction_sets_agree(op, isa, by_isa):
    if isinstance(by_isa[isa], str):
        pytest.skip(by_isa[isa])
    for dtype in FLOATS:
        for got, want in zip(by_isa[isa][op, dtype], by_isa["v2"][op, dtype], strict=True):
            if op in EXACT or not want.is_floating_point():
                assert_same(got, want)
            else:
                torch.testing.assert_close(got, want, rtol=2e-6, atol=0, equal_nan=True)


@native_ops
def test_unknown_instruction_set_is_refused(op):
    code = "import sys, native_calls as n; n.run(sys.argv[1], *n.calls(*n.SMALL)[sys.argv[1]])"
    done = python(code, op, SSDKERN_ISA="v5")
    assert "want SSDKERN_ISA to be one of v2, v3, v4 that runs here, got v5" in done.stderr


@pytest.fixture
def set_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def raw(tensors):
    return [t.flatten().view(torch.uint8) for t in tensors]


@native_ops
def test_threads_change_no_bit(op, set_threads):
    args = calls(*SIZE)[op]
    for dtype in FLOATS:
        cut = cast(args, dtype)
        set_threads(1)
        want = raw(run(op, *cut))
        for count in (2, 16):
            set_threads(count)
            assert torch.get_num_threads() == count
            assert all(map(torch.equal, raw(run(op, *cut)), want)), f"{dtype}, {count} threads"


def test_missing_library_is_named():
    code = "import ssdkern; print(ssdkern.why_not('nms', 'native', 'cpu'))"
    done = python(code, SSDKERN_LIBRARY_CPU="nowhere/libother.so")
    assert "libother.so was not built" in done.stdout, done.stderr


def listing(*command):
    """What a tool says about the library, or a skip where either is missing."""
    path = os.environ.get("SSDKERN_LIBRARY_CPU")
    path = Path(path or Path(_backend.__file__).with_name("libssdkern_cpu.so"))
    if not path.exists():
        pytest.skip(f"{path.name} was not built")
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run([*command, path], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_library_needs_only_the_stable_abi():
    names = [line.split(maxsplit=1)[-1] for line in listing("nm", "-DC", "--undefined-only")]
    assert any(name.startswith("aoti_torch_") for name in names)
    assert not [name for name in names if re.search(r"\b(at|c10|torch)::", name)]


def test_newer_instructions_stay_in_their_namespace():
    """Code outside of ssdkern::v3 and v4 runs on any x86-64 machine."""
    function, kinds = "", set()
    vex = re.compile(r"\t(v[a-z]\w+|andn|bextr|blsr|bzhi|mulx|pdep|pext|rorx|s[ah][lr]x) ")
    for line in listing("objdump", "-d", "-C", "--no-show-raw-insn"):
        if line.endswith(">:"):
            function = line
            name = re.search(r"ssdkern::(v[34])::", line)
            home = name and name[1]
        elif "zmm" in line or "%k" in line:
            kinds.add("v4")
            assert home == "v4", f"{line} in {function}"
        elif "ymm" in line or vex.search(line):
            kinds.add("v3")
            assert home, f"{line} in {function}"
    if not kinds:
        pytest.skip("not x86-64, or without names")
    assert kinds == {"v3", "v4"}
