"""Curves of a run and of an evaluation. They need matplotlib: ``pip install 'ssdkern[plots]'``."""

import csv
import importlib.util

import numpy as np

_MOST_LINES = 12  # in colour; more classes are grey
_MOST_CELLS = 25  # classes whose counts are written out


def available():
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def _figure(**options):
    if not available():
        raise RuntimeError("want matplotlib for plots, got none; pip install 'ssdkern[plots]'")
    from matplotlib.figure import Figure

    return Figure(layout="constrained", **options)  # of its own: no window, no global state


def plot_precision_recall(report, path):
    """Best precision at each recall, of every class with truth: the area below is VOC's AP.

    Args:
        report: of `ssdkern.evaluate.evaluate`.
        path: picture to write; its ending names the format.
    """
    figure = _figure(figsize=(7, 5))
    axes = figure.subplots()
    rows = [row for row in report.classes if row.num_truth]
    rows.sort(key=lambda row: -row.ap50)
    for index, row in enumerate(rows):
        few = index < _MOST_LINES
        envelope = np.maximum.accumulate(row.precision[::-1])[::-1]
        axes.step(
            np.append(0, row.recall),
            np.append(envelope[:1] if len(envelope) else 0, envelope),
            color=f"C{index % 10}" if few else "0.8",
            linestyle="--" if few and index >= 10 else "-",
            linewidth=1.5 if few else 0.7,
            label=f"{row.name} {row.ap50:.3f}" if few else None,
            zorder=2 if few else 1,
        )
    axes.set(
        xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision",
        title=f"mAP@{report.iou_threshold:g} = {report.map50:.3f}",
    )  # fmt: skip
    if len(rows) > _MOST_LINES:
        axes.plot([], [], color="0.8", label=f"{len(rows) - _MOST_LINES} more classes")
    if rows:
        axes.legend(loc="lower left", fontsize="small")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)


def plot_confusion_matrix(report, path):
    """What the detector takes each class for, in shares of the truth (the rows).

    Args:
        report: of `ssdkern.evaluate.evaluate`.
        path: picture to write; its ending names the format.
    """
    names = [*(row.name for row in report.classes), "nothing"]
    counts = np.roll(report.confusion, -1, (0, 1))  # the background last
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = 2.5 + 0.35 * len(names)
    figure = _figure(figsize=(side + 0.8, side))
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="found", ylabel="truth", title="score >= 0.5")
    if len(names) <= _MOST_CELLS:
        for (row, column), count in np.ndenumerate(counts):
            ink = "white" if shares[row, column] > 0.6 else "black"
            axes.text(column, row, count or "", ha="center", va="center", color=ink, fontsize=8)
    figure.colorbar(image, label="share of the truth")
    figure.savefig(path, dpi=120)


def plot_results(csv_path, path):
    """Every numeric column of a ``results.csv`` over its first one, a panel each.

    Args:
        csv_path: table with a heading line; empty cells are left out.
        path: picture to write.

    Raises:
        ValueError: the table holds no row.
    """
    with open(csv_path, newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        raise ValueError(f"want rows in {csv_path}, got none")
    first, *names = rows[0]
    columns = {name: [_number(row[name]) for row in rows] for name in rows[0]}
    names = [name for name in names if not np.isnan(columns[name]).all()]
    across = min(4, max(len(names), 1))
    down = max(-(-len(names) // across), 1)
    figure = _figure(figsize=(3.2 * across, 2.6 * down))
    panels = figure.subplots(down, across, squeeze=False).ravel()
    steps = np.array(columns[first])
    for axes, name in zip(panels, names, strict=False):
        values = np.array(columns[name])
        known = ~np.isnan(values)
        axes.plot(steps[known], values[known], marker="." if known.sum() < 60 else "")
        axes.set_title(name, fontsize="medium")
        axes.set_xlabel(first, fontsize="small")
        axes.grid(alpha=0.3)
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    figure.savefig(path, dpi=120)


def _number(text):
    try:
        return float(text)
    except (TypeError, ValueError):
        return float("nan")
