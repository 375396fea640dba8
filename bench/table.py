"""Writes the speed table of the README from the JSON of pytest-benchmark.

pytest bench --benchmark-only --benchmark-json=bench.json
python -m bench.table bench.json [more.json ...]    # of a row that is in two, the last
"""

import json
import sys
from collections import defaultdict
from pathlib import Path

from ssdkern.verify import OPS

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
COLUMNS = ("torchvision", "torch", "compile", "native", "triton")


def replace_section(name, text):
    """Puts `text` between the README's markers of `name`."""
    readme = README.read_text()
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    if begin not in readme or end not in readme:
        raise ValueError(f"want markers {begin.strip()} and {end} in {README.name}, got none")
    head, rest = readme.split(begin, 1)
    README.write_text(head + begin + text + end + rest.split(end, 1)[1])


def milliseconds(seconds):
    return f"{seconds * 1e3:.3g}"


def read_entries(files):
    """Those of reports of pytest-benchmark, but for one that a time limit has cut off."""
    reports = [json.loads(Path(file).read_text()) for file in files]
    return [each for report in reports for each in report["benchmarks"] if each["extra_info"]]


def by_device(entries):
    """The entries of each device."""
    devices = defaultdict(list)
    for entry in entries:
        devices[entry["extra_info"]["device"]].append(entry)
    return devices


def rows(entries):
    """One group at a time: its name, medians of the columns, our best, the floor."""
    groups = defaultdict(dict)
    for entry in entries:
        groups[entry["group"]][entry["extra_info"]["column"]] = entry
    for group, columns in groups.items():
        medians = {name: entry["stats"]["median"] for name, entry in columns.items()}
        best = min((medians[c] for c in ("native", "triton") if c in medians), default=None)
        floor = next(iter(columns.values()))["extra_info"]["floor_seconds"]
        yield group, medians, best, floor


def device_table(device, entries):
    names = [n for n in COLUMNS if any(e["extra_info"]["column"] == n for e in entries)]
    header = ["op, mode, shape", *(f"{name} ms" for name in names)]
    header += ["against torchvision", "floor ms", "of the floor"]
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    for group, medians, best, floor in rows(entries):
        cells = [milliseconds(medians[name]) if name in medians else "" for name in names]
        theirs = medians.get("torchvision")
        ratio = f"{theirs / best:.1f}x" if theirs and best else ""
        distance = f"{best / floor:.1f}x" if best else ""
        cells = [group, *cells, ratio, milliseconds(floor), distance]
        lines.append("| " + " | ".join(cells) + " |")
    info = max((e["extra_info"] for e in entries), key=lambda i: i["threads"])
    loads = [entry["extra_info"]["load"] for entry in entries]
    lines.append("")
    lines.append(
        f"{device}, {info['threads']} threads, torch {info['torch']}, load "
        f"{min(loads):.1f} to {max(loads):.1f}; medians; each column gave the same answer before "
        "it was timed."
    )
    return "\n".join(lines)


def table(entries):
    """A table for each device, and what the floor is."""
    tables = [device_table(*item) for item in by_device(entries).items()]
    return (
        "\n\n".join(tables) + " The floor is the bytes that must move, at the speed of a large "
        "copy (less than 1x: they were in a cache); of a whole model, its multiplications and "
        "additions at the speed of a large matrix product.\n"
    )


def ops_table():
    """Which op has which kernels, as the sources have it."""
    folders = {"C++": "csrc/cpu/{}.cpp", "CUDA C++": "csrc/cuda/{}.cu", "Triton": "kernels/{}.py"}
    lines = ["| op | PyTorch | " + " | ".join(folders) + " |", "|---" * (len(folders) + 2) + "|"]
    for op in OPS:
        have = ["yes" if (ROOT / path.format(op)).exists() else "" for path in folders.values()]
        lines.append("| " + " | ".join([f"`{op}`", "yes", *have]) + " |")
    return "\n".join(lines) + "\n"


def main(argv):
    replace_section("ops", ops_table())
    if argv:
        replace_section("speed", table(read_entries(argv)))


if __name__ == "__main__":
    main(sys.argv[1:])
