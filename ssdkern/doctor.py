"""`ssdkern doctor`: which backend runs each op here, why others do not, and if they are right."""

import argparse
import importlib.metadata
import os
import platform
import subprocess

import torch

from ssdkern import _backend
from ssdkern.host import why_no_host
from ssdkern.verify import GOLDEN, OPS, VALUE_TOLERANCE, verify, verify_golden


def installed(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def driver():
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
            capture_output=True,
            text=True,
        )
    except FileNotFoundError:
        return "no driver"
    return done.stdout.strip().split("\n")[0] or "no driver"


def environment():
    lines = [f"{name} {installed(name)}" for name in ("ssdkern", "torch", "triton", "torchvision")]
    lines.append(
        f"python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores"
    )
    lines.append(f"torch threads {torch.get_num_threads()}")
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        name = torch.cuda.get_device_name()
        lines.append(f"GPU {name}, sm_{major}{minor}, driver {driver()}")
    else:
        lines.append(f"no GPU that torch can use (torch CUDA build: {torch.version.cuda})")
    reason = why_no_host()
    lines.append(f"augmentation and evaluation: {'NumPy; C++ is ' + reason if reason else 'C++'}")
    return lines


def devices():
    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def table(rows):
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def overview():
    """The table op x device x backend, and the reason for each backend that does not run."""
    columns = [(device, name) for device in ("cpu", "cuda") for name in _backend.BACKENDS]
    rows, reasons = [["op", *(f"{device}:{name}" for device, name in columns)]], {}
    for op in OPS:
        row = [op]
        for device, name in columns:
            reason = _backend.why_not(op, name, device)
            if device == "cuda" and not torch.cuda.is_available():
                reason = "there is no GPU that torch can use"
            if reason:
                reasons.setdefault((f"{name} on {device}", reason), []).append(op)
            row.append("-" if reason else "runs")
        for device in devices():
            running = [
                n for n in _backend.preference(device) if not _backend.why_not(op, n, device)
            ]
            row[1 + columns.index((device, running[0]))] = "runs, chosen"
        rows.append(row)
    said = [
        f"{what}: {why}" + ("" if len(hit) == len(OPS) else f" ({', '.join(hit)})")
        for (what, why), hit in reasons.items()
    ]
    return table(rows), said


def verification():
    """Rows of the largest error per op, device and backend; and whether all are within bounds."""
    rows, right = [["op", "device", "backend", "largest error", "integers wrong", "verdict"]], True
    for device in devices():
        for op in OPS:
            for name in _backend.BACKENDS:
                if _backend.why_not(op, name, device):
                    continue
                error, wrong = verify(op, name, device)
                good = error <= VALUE_TOLERANCE and wrong == 0
                right &= good
                verdict = "ok" if good else f"want <= {VALUE_TOLERANCE:g} and 0"
                rows.append([op, device, name, f"{error:.1e}", str(wrong), verdict])
    for device in devices():
        for op in GOLDEN:
            for name in _backend.BACKENDS:
                if _backend.why_not(op, name, device):
                    continue
                wrong = verify_golden(op, name, device)
                right &= wrong == 0
                verdict = "ok" if wrong == 0 else "differs from the Caffe original"
                rows.append([f"{op}, golden", device, name, "", str(wrong), verdict])
    return rows, right


def main(argv=None):
    parser = argparse.ArgumentParser(prog="ssdkern doctor", description=__doc__)
    parser.add_argument("--verify", action="store_true", help="check every op that can run here")
    options = parser.parse_args(argv)
    print("\n".join(environment()), end="\n\n")
    text, reasons = overview()
    print(text, end="\n\n")
    print("\n".join(reasons) or "every backend runs")
    if not options.verify:
        return 0
    rows, right = verification()
    print("\n" + table(rows))
    print("every op is right" if right else "an op is wrong: please report the table above")
    return 0 if right else 1


if __name__ == "__main__":
    raise SystemExit(main())
