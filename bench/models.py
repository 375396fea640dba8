"""Gathers what pytest-benchmark and a run of training say of whole models on one device.

python -m bench.models [--training results.csv] report.json...

writes bench/results/<device>-models.json and prints a table.
"""

import argparse
import csv
import json
from pathlib import Path

import torch

from bench.conftest import device_name
from bench.gpu_bench import about, report_file
from bench.table import read_entries

KEPT = ("images_per_second", "of_matrix_rate", "shares", "busy", "share_of_kernels", "phases")
KEPT += ("kernel_microseconds",)
HEADER = "whole model | column | ms | images/s | matrix rate | convolutions | ours | torchvision"


def rows(entries):
    """What is kept of each benchmark; `against`: images a second over torchvision's, eager."""
    found = []
    for entry in entries:
        info = entry["extra_info"]
        row = {"group": entry["group"], "column": info["column"]}
        row["milliseconds"] = 1e3 * entry["stats"]["median"]
        found.append(row | {name: info[name] for name in KEPT if name in info})
    theirs = {r["group"]: r["images_per_second"] for r in found if r["column"] == "torchvision"}
    for row in found:
        job, _, *rest = row["group"].split("-")
        if row["column"] == "native" and (base := theirs.get("-".join([job, "eager", *rest]))):
            row["against"] = row["images_per_second"] / base
    return found


def line(row):
    shares = row.get("shares") or {}
    cells = [row["group"], row["column"], f"{row['milliseconds']:.2f}"]
    cells += [f"{row['images_per_second']:.1f}", f"{row['of_matrix_rate']:.0%}"]
    cells += [f"{shares[kind]:.1%}" if kind in shares else "" for kind in ("convolutions", "ours")]
    return " | ".join([*cells, f"{row['against']:.1f}x" if "against" in row else ""])


def main(argv=None):
    parser = argparse.ArgumentParser(prog="bench.models", description=__doc__.split("\n")[0])
    parser.add_argument("reports", nargs="*", type=Path, help="of pytest-benchmark")
    parser.add_argument("--training", type=Path, help="results.csv of ssdkern train")
    options = parser.parse_args(argv)
    files = [file for file in options.reports if file.exists() and file.stat().st_size]
    device = device_name(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    report = about(device) | {"rows": rows(read_entries(files))}
    if options.training and options.training.exists():
        with open(options.training) as file:
            report["training"] = list(csv.DictReader(file))
    path = report_file(device, "-models")
    path.write_text(json.dumps(report, indent=1) + "\n")
    print(HEADER, *map(line, report["rows"]), sep="\n")
    for last in report.get("training", [])[-1:]:
        print(
            f"ssdkern train: {last['images_per_second']} images/s at step {last['step']}, "
            f"{last['data_wait']} of the time waiting for data"
        )
    print(f"{device}, torch {report['torch']}; {path.name}")


if __name__ == "__main__":
    main()
