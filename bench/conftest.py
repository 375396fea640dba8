"""One fixture, `timed`: checks that the answers agree, then times one column of one row."""

import os
import platform
import signal
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from ssdkern import why_not
from ssdkern.memory import keep_freed_memory

COLUMNS = ("torch", "compile", "torchvision", "native", "triton")


def pytest_addoption(parser):
    parser.addoption("--device", default="cpu", help="cpu or cuda: where the benchmarks run")
    group = parser.getgroup("whole models", "by default only what takes a minute on the device")
    group.addoption("--models", help="ssd300,ssd512")
    group.addoption("--batches", help="1,8,32,128")
    group.addoption("--modes", help="eager,compiled,captured,compiled+captured, or +host")
    group.addoption("--libraries", help="native,torchvision")


def pytest_configure():
    """A time limit ends the session as ctrl-C does, and what was timed by then is written."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def pytest_generate_tests(metafunc):
    """The whole models that bench_inference and bench_train_step time."""
    gpu = torch.device(metafunc.config.getoption("--device")).type == "cuda"
    every = {"model": "ssd300,ssd512", "batch": "1,8,32,128", "library": "native,torchvision"}
    every["mode"] = "eager,compiled,captured,compiled+captured"
    quick = {**every, "model": "ssd300", "batch": "1", "mode": "eager"}
    options = {"model": "models", "batch": "batches", "mode": "modes", "library": "libraries"}
    for name, option in options.items():
        if name in metafunc.fixturenames:
            values = metafunc.config.getoption(option) or (every if gpu else quick)[name]
            metafunc.parametrize(name, [int(v) if v.isdigit() else v for v in values.split(",")])


@pytest.fixture(params=COLUMNS)
def column(request):
    return request.param


@pytest.fixture(scope="session")
def device(request):
    return torch.device(request.config.getoption("--device"))


@pytest.fixture(scope="session", autouse=True)
def memory():
    """As in a training: no column pays for pages that the kernel clears anew."""
    keep_freed_memory()


@pytest.fixture(scope="session")
def bandwidth(device):
    """Bytes a second that a copy larger than the caches moves, reads and writes counted."""
    source = torch.ones(64 << 20, device=device)
    target = torch.empty_like(source)
    times = []
    for _ in range(9):
        begin = time.perf_counter()
        target.copy_(source)
        synchronize(device)
        times.append(time.perf_counter() - begin)
    return 2 * source.nbytes / statistics.median(times)


def synchronize(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def flat(result):
    if isinstance(result, torch.Tensor):
        return [result]
    return [tensor for part in result for tensor in flat(part)]


def same(result, expected):
    """Integers and bools equal, values within 2e-6 of the largest."""
    for got, want in zip(flat(result), flat(expected), strict=True):
        assert got.shape == want.shape
        if got.is_floating_point():
            bound = 2e-6 * max(float(want.abs().max()) if want.numel() else 0, 1.0)
            assert torch.allclose(got.double(), want.double(), rtol=0, atol=bound, equal_nan=True)
        else:
            assert torch.equal(got.long(), want.long())


@dataclass
class Timed:
    benchmark: object
    column: str
    device: torch.device
    bandwidth: float

    def __call__(self, op, mode, shape, ours, nbytes, torchvision=None, agree=same):
        """Times this column: `ours(backend)` or `torchvision()`, after `agree` with the reference.

        `nbytes` is what any implementation must read and write once.
        """
        if self.column == "torchvision":
            if torchvision is None:
                pytest.skip("torchvision has no such op")
            run = torchvision
        elif self.column == "compile":
            torch._dynamo.reset()  # or the limit of recompilations counts all rows together
            if hasattr(torch._dynamo.config, "trace_autograd_ops"):  # gradients inside the graph
                torch._dynamo.config.trace_autograd_ops = True
            run = torch.compile(lambda: ours("torch"), fullgraph=True)
        else:
            if reason := why_not(op, self.column, self.device):
                pytest.skip(reason)
            run = lambda: ours(self.column)  # noqa: E731
        agree(run(), torchvision() if torchvision else ours("torch"))

        def call():
            run()
            synchronize(self.device)

        self.benchmark.group = f"{op}-{mode}-{shape}"
        begin = time.perf_counter()
        call()
        once = max(time.perf_counter() - begin, 1e-6)
        rounds = int(min(max(2.0 / once, 1 if once > 1 else 7), 500))
        self.benchmark.pedantic(call, rounds=rounds, warmup_rounds=int(once < 1))
        self.benchmark.extra_info.update(
            op=op,
            mode=mode,
            shape=shape,
            column=self.column,
            device=device_name(self.device),
            bytes=nbytes,
            floor_seconds=nbytes / self.bandwidth,
            threads=torch.get_num_threads(),
            load=os.getloadavg()[0],
            torch=torch.__version__,
        )


def device_name(device):
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    for line in Path("/proc/cpuinfo").read_text().splitlines() if os.name == "posix" else []:
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return platform.processor() or platform.machine()


@pytest.fixture
def timed(benchmark, column, device, bandwidth):
    return Timed(benchmark, column, device, bandwidth)


def size(*tensors):
    return sum(tensor.nbytes for tensor in tensors)
