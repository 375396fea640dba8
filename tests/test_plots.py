"""Plots by what they hold: the lines, not the pixels."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from ssdkern import plots

needs_matplotlib = pytest.mark.skipif(not plots.available(), reason="matplotlib is not installed")


@pytest.fixture
def figures(monkeypatch):
    made, real = [], plots._figure
    monkeypatch.setattr(plots, "_figure", lambda **kw: made.append(real(**kw)) or made[-1])
    return made


def report(num_classes):
    rows = [
        SimpleNamespace(
            name=f"class {i}",
            num_truth=4 * (i != 1),
            ap50=0.625 if i != 1 else float("nan"),
            recall=np.array([1, 1, 2, 3, 3]) / 4,
            precision=np.array([1, 1 / 2, 2 / 3, 3 / 4, 3 / 5]),
        )
        for i in range(num_classes)
    ]
    confusion = np.zeros((num_classes + 1,) * 2, np.int64)
    confusion[1, 1], confusion[1, 0], confusion[0, 2] = 3, 1, 7
    return SimpleNamespace(classes=rows, map50=0.625, iou_threshold=0.5, confusion=confusion)


@needs_matplotlib
def test_area_under_the_curve_is_the_average_precision(tmp_path, figures):
    plots.plot_precision_recall(report(3), tmp_path / "pr.png")
    lines = figures[0].axes[0].get_lines()
    assert [line.get_label() for line in lines] == ["class 0 0.625", "class 2 0.625"]
    recall, precision = lines[0].get_data()
    assert (np.diff(recall) * precision[1:]).sum() == pytest.approx(0.625)
    assert figures[0].axes[0].get_title() == "mAP@0.5 = 0.625"
    assert Image.open(tmp_path / "pr.png").size[0] > 500


@needs_matplotlib
@pytest.mark.parametrize("num_classes", [2, 80])
def test_confusion_matrix_shows_shares_of_the_truth(tmp_path, figures, num_classes):
    plots.plot_confusion_matrix(report(num_classes), tmp_path / "confusion.png")
    axes = figures[0].axes[0]
    shares = axes.images[0].get_array()
    assert (shares[0, 0], shares[0, -1], shares[-1, 1]) == (0.75, 0.25, 1)
    assert [label.get_text() for label in axes.get_xticklabels()][-1] == "nothing"
    written = {text.get_text() for text in axes.texts} - {""}
    assert written == ({"3", "1", "7"} if num_classes == 2 else set())


@needs_matplotlib
def test_results_table(tmp_path, figures):
    table = tmp_path / "results.csv"
    table.write_text("step,loss,mAP,note,lr\n10,3.5,,a,1e-3\n20,2.5,.25,b,1e-3\n30,nan,.5,c,1e-4\n")
    plots.plot_results(table, tmp_path / "results.png")
    panels = [axes for axes in figures[0].axes if axes.get_visible()]
    assert [axes.get_title() for axes in panels] == ["loss", "mAP", "lr"]
    for axes, want in zip(panels, ([10, 20], [20, 30], [10, 20, 30]), strict=True):
        assert axes.get_lines()[0].get_xdata().tolist() == want
    assert (tmp_path / "results.png").stat().st_size > 1000
    table.write_text("step,loss\n")
    with pytest.raises(ValueError, match=r"want rows in .*results\.csv, got none"):
        plots.plot_results(table, tmp_path / "none.png")


def test_without_matplotlib_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "available", lambda: False)
    with pytest.raises(RuntimeError, match="want matplotlib for plots"):
        plots.plot_precision_recall(report(2), tmp_path / "pr.png")
