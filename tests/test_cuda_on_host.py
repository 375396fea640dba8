"""The emulation of CUDA on the CPU finds the faults that it says it finds, and no others."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).with_name("cuda_on_host")
sys.path.insert(0, str(HERE))
run = pytest.importorskip("run")

CODE = """
import os, sys, torch
torch.ops.load_library(os.environ["SSDKERN_CUDA_ON_HOST"])
for fault in map(int, sys.argv[1:]):
    try:
        print(torch.ops.cuda_on_host.run(torch.zeros(0), fault).tolist())
    except RuntimeError as error:
        print(str(error).splitlines()[0])
"""
ABORTS = 10  # AddressSanitizer ends the process
SOUND_BLOCKS = 18  # blocks that tell each other, by fences and atomics
# fault -> what is said of it, by the build that finds it
FAULTS = {
    "asan": {
        1: r"divergent barrier: threads 0-31 wait for the block at faults.cu:9; "
        r"threads 32-63 wait for the block at faults.cu:11",
        2: r"threads 0-4 wait for the block at faults.cu:18; threads 5-5 wait for lanes at "
        r"faults.cu:17; threads 6-31 wait for the block at faults.cu:18; "
        r"threads 32-33 have returned|lane \d+ is not in the mask it names, faults.cu:19",
        3: r"lane \d+ shuffles from lane 20, which takes no part, faults.cu:24",
        4: r"lane \d+ is not in the mask it names, faults.cu:28",
        10: r"AddressSanitizer: heap-buffer-overflow",
        11: r"sound_kernel.*invalid configuration of the launch",
    },
    "shadow": {
        5: r"unwritten_kernel block \(0, 0, 0\) of \(1, 1, 1\), 64 threads: thread \d+ reads "
        r"shared memory that nothing wrote",
        6: r"unwritten_static_kernel block \(1, 0, 0\).* thread \d+ reads shared memory that "
        r"nothing wrote",
        7: r"race_kernel.* thread \d+ reads what thread \d+ wrote, with no barrier between|"
        r"race_kernel.* thread \d+ reads shared memory that nothing wrote",
        8: r"shuffle_orders_nothing_kernel.* thread \d+ reads what thread \d+ wrote, with no",
        9: r"write_after_read_kernel.* thread \d+ (writes what thread \d+ read|"
        r"reads what thread \d+ wrote), with no barrier",
        12: r"global_race_kernel.* thread \d+ (writes what thread \d+ read|"
        r"reads what thread \d+ wrote), with no barrier",
        13: r"blocks_write_alike_kernel block .* thread \d+ writes what another block wrote",
        14: r"block_reads_another_kernel block .* thread \d+ (reads what another block wrote|"
        r"writes what another block read)",
        15: r"block_writes_what_was_read_kernel block .* thread \d+ (writes what another block "
        r"read|reads what another block wrote)",
        16: r"plain_beside_atomic_kernel.* (reads what thread \d+ wrote|writes what thread \d+ "
        r"read), with no barrier",
        17: r"early_fence_kernel block .* thread \d+ reads what another block wrote",
    },
}


@pytest.fixture(scope="module", params=FAULTS)
def library(request):
    path = run.build(request.param, [HERE / "faults.cu"], "faults")
    if path is None:
        pytest.skip("no g++")
    return request.param, path


def call(mode, library, *faults):
    env = run.environment(mode, library)
    command = [sys.executable, "-c", CODE, *map(str, faults)]
    return subprocess.run(command, capture_output=True, text=True, env=env)


def test_faults_are_found_and_no_others(library):
    messages = {fault: m for fault, m in FAULTS[library[0]].items() if fault != ABORTS}
    done = call(*library, *messages, 0, SOUND_BLOCKS)
    assert done.returncode == 0, done.stderr[-2000:]
    *told, sound, sound_blocks = done.stdout.splitlines()
    for (fault, message), text in zip(messages.items(), told, strict=True):
        assert re.search(message, text), (fault, text)
    values = [(i ^ 1) + 6400 + 10000 * (32 if i < 32 else 18) + 50000000 for i in range(50)]
    assert sound == str(values + [0] * 14)
    shared = [8, *range(5, 36)]
    assert sound_blocks == str([2, 2, 1, 1, 1, 1, 0, 0, 0, 0, *shared] + [0] * 22)


def test_accesses_outside_are_found(library):
    if message := FAULTS[library[0]].get(ABORTS):
        done = call(*library, ABORTS)
        assert done.returncode != 0
        assert re.search(message, done.stderr)
