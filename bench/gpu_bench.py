"""Times every op on a GPU, beside torchvision and the time that its bytes take to move.

python -m bench.gpu_bench                   writes bench/results/<device>.json and prints a table
python -m bench.gpu_bench --seconds 150     begins no case later than that
python -m bench.gpu_bench --small           runs each native op once on little data, for sanitizers

Times are of the GPU: CUDA events about the replay of a CUDA graph, or about the call where it waits
for the GPU and so cannot be captured (nms, batched_nms, torchvision). The second-level cache is
overwritten before each. Medians.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import time
from datetime import date
from pathlib import Path

import torch
import torchvision

from bench import kernels
from bench.gpu_cases import cases
from ssdkern import why_not

RESULTS = Path(__file__).with_name("results")
BACKENDS = ("native", "triton", "torch")


class Clock:
    """Times calls on the GPU, each after its second-level cache was overwritten."""

    def __init__(self, device):
        self.flush = torch.empty(512 << 20, dtype=torch.uint8, device=device)

    def microseconds(self, call, budget=0.4):
        begin, end = self.event(), self.event()
        begin.record()
        call()
        end.record()
        end.synchronize()
        rounds = int(min(max(budget * 1e3 / max(begin.elapsed_time(end), 0.1), 3), 60))
        pairs = [(self.event(), self.event()) for _ in range(rounds)]
        for begin, end in pairs:
            self.flush.zero_()
            begin.record()
            call()
            end.record()
        torch.cuda.synchronize()
        return 1e3 * statistics.median(begin.elapsed_time(end) for begin, end in pairs)

    @staticmethod
    def event():
        return torch.cuda.Event(enable_timing=True)

    def bytes_a_second(self):
        source = torch.ones(1 << 30, dtype=torch.uint8, device=self.flush.device)
        target = torch.empty_like(source)
        return 2 * source.nbytes / (self.microseconds(lambda: target.copy_(source)) * 1e-6)


def captured(call):
    """Replays `call` as a CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def measure(case, clock, speed):
    """One row: microseconds by column, or why there are none."""
    row = {"op": case.op, "shape": case.shape, "bytes": case.nbytes}
    row["floor"] = case.nbytes / speed * 1e6
    expected = case.theirs() if case.op == "nms" else case.ours("torch")
    for backend in BACKENDS:
        if reason := why_not(case.op, backend, "cuda"):
            row[f"{backend}_error"] = reason
            continue
        if backend == "torch" and case.op == "nms" and case.shape.endswith("0000"):
            continue  # an iteration for each kept box
        call = lambda backend=backend: case.ours(backend)  # noqa: E731
        try:
            case.agree(call(), expected)
            waits = case.op in ("nms", "batched_nms") or backend == "torch"
            row[backend] = clock.microseconds(call if waits else captured(call))
            if not waits:
                row[f"{backend}_eager"] = clock.microseconds(call)
            if backend == "native":
                row["kernels"] = kernels.microseconds(call)
        except (AssertionError, RuntimeError) as error:
            row[f"{backend}_error"] = str(error)[:500]
            torch.cuda.synchronize()
    if case.theirs:
        row["torchvision"] = clock.microseconds(case.theirs)
    return row


HEADER = "op, microseconds | native | triton | torch | torchvision | floor | native/floor"


def line(row):
    def cell(column):
        if f"{column}_error" in row:
            return "ERROR"
        return f"{row[column]:.1f}" if column in row else ""

    of_floor = f"{row['native'] / row['floor']:.1f}x" if "native" in row else ""
    cells = [cell(column) for column in (*BACKENDS, "torchvision")]
    return " | ".join([f"{row['op']} {row['shape']}", *cells, f"{row['floor']:.2f}", of_floor])


def about(device):
    """What every report of a device begins with; `device` is its name."""
    command = ["git", "rev-parse", "HEAD"]
    git = shutil.which("git") and subprocess.run(command, capture_output=True, text=True)
    return {
        "device": device,
        "date": date.today().isoformat(),
        "commit": git.stdout.strip() if git else "",
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "cuda": torch.version.cuda,
    }


def report_file(device, suffix=""):
    """Where the report of a device lies: h200.json for "NVIDIA H200"."""
    RESULTS.mkdir(exist_ok=True)
    name = device.lower().removeprefix("nvidia ").replace(" ", "-")
    return RESULTS / f"{name}{suffix}.json"


def main():
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--seconds", type=float, default=float("inf"))
    options = parser.parse_args()
    begin, device = time.monotonic(), torch.device("cuda")
    if options.small:
        for case in cases(device, small=True):
            case.ours("native")
        torch.cuda.synchronize()
        return
    clock = Clock(device)
    report = about(torch.cuda.get_device_name(device))
    report |= {"copy_bytes_a_second": clock.bytes_a_second(), "rows": []}
    path = report_file(report["device"])
    for case in cases(device, small=False):
        if time.monotonic() - begin > options.seconds:
            print(f"{case.op} {case.shape} and what follows: no time left")
            break
        row = measure(case, clock, report["copy_bytes_a_second"])
        report["rows"].append(row)
        path.write_text(json.dumps(report, indent=1) + "\n")  # now: a time limit may end the run
        errors = [f"{key}: {value}" for key, value in row.items() if key.endswith("_error")]
        print(line(row), *errors, sep="\n  ", flush=True)
    speed = f"copy {report['copy_bytes_a_second'] / 1e12:.2f} TB/s"
    print(HEADER, *map(line, report["rows"]), sep="\n")
    print(f"{report['device']}, {speed}, torch {report['torch']}; {path.name}")


if __name__ == "__main__":
    main()
