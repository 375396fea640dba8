"""Trains on the real sets by the commands a user would type, and writes the README's table.

    SSDKERN_TEST_DATA=FOLDER python -m bench.training [NAME ...]

Each run's row goes to bench/results/training.json as it ends; the table is written from that file.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import torch

from bench.table import replace_section
from ssdkern.checkpoint import read_info

RESULTS = Path(__file__).with_name("results") / "training.json"
MOBILENET = "--backbone-weights {root}/weights/mobilenet_v2-b0353104.pth"
# name: the set, the arguments of `ssdkern train` beside --data and --output
RUNS = {
    "bccd": ("bccd", f"--model ssd300_mobilenet_v2 {MOBILENET} --max-minutes 4"),
    "bccd-scratch": ("bccd", "--model ssd_tiny --max-minutes 4"),
    "cards": (
        "cards",
        f"--model ssd300_mobilenet_v2 {MOBILENET} --image-size 320 --max-minutes 15",
    ),
}


def run(name, root, output):
    """Trains and evaluates one run; returns its row."""
    dataset, arguments = RUNS[name]
    folder = Path(output, name)
    train = f"ssdkern train --data {root}/{dataset} {arguments.format(root=root)} --output {folder}"
    weights = folder / "weights/best.safetensors"
    test = f"ssdkern evaluate --weights {weights} --data {root}/{dataset} --split test"
    for command in (train, test):
        print(f"$ {command}", flush=True)
        words = [sys.executable, "-m", "ssdkern.cli", *command.split()[1:]]
        done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
        print(done.stdout, flush=True)
    found = re.search(r"mAP@0\.5 = ([0-9.]+)", done.stdout)
    if not found:
        raise ValueError(f"want a line 'mAP@0.5 = ...' from ssdkern evaluate, got {done.stdout!r}")
    info = read_info(weights)
    return {
        "data": dataset,
        "model": info["config"]["model"],
        "image_size": info["config"]["image_size"],
        "minutes": float(re.search(r"--max-minutes (\S+)", arguments)[1]),
        "map50": float(found[1]),
        "command": train.replace(f"{root}/", "").replace(f"{output}/", "runs/"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
    }


def table(rows):
    lines = [
        "| data | model | side | minutes | mAP@0.5, test | command |",
        "|---|---|--:|--:|--:|---|",
    ]
    for row in rows.values():
        cells = (row["data"], row["model"], row["image_size"], f"{row['minutes']:g}")
        cells += (f"{row['map50']:.3f}", f"`{row['command']}`")
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    machines = sorted({row["machine"] for row in rows.values()})
    return "\n".join(lines) + f"\n\nMeasured on {'; '.join(machines)}.\n"


def main(argv=None):
    parser = argparse.ArgumentParser(prog="bench.training", description=__doc__.split("\n")[0])
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"of {', '.join(RUNS)}; default: all"
    )
    parser.add_argument("--output", default="runs", help="folder of the runs (runs)")
    options = parser.parse_args(argv)
    if unknown := set(options.names) - set(RUNS):
        parser.error(f"want names of {', '.join(RUNS)}, got {', '.join(sorted(unknown))}")
    root = os.environ.get("SSDKERN_TEST_DATA")
    if root is None:
        parser.error("want SSDKERN_TEST_DATA to name the folder of the real sets, got nothing")
    rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in options.names or RUNS:
        rows[name] = run(name, root, options.output)
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(rows, indent=1) + "\n")
    replace_section("training", table(rows))


if __name__ == "__main__":
    main()
