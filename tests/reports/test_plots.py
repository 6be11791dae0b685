from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ovstrans.costs.flops import LayerMacs
from ovstrans.costs.target import count_costs, load_target
from ovstrans.costs.training_step import WAYS
from ovstrans.figures import new_figure
from ovstrans.masks.mask import Mask
from ovstrans.reports.plot_labels import Box, Label, aligned, place_labels
from ovstrans.reports.plots import make_plots, plot_reports
from ovstrans.reports.report import Report
from tests.reports.test_tables import result


@pytest.fixture(scope="module")
def reports() -> list[Report]:
    target = load_target("RN-mini")
    shapes = {name.removeprefix("backbone."): p.shape for name, p in target.module.named_parameters() if p.dim() == 4}
    masks = (None, Mask({name: torch.rand(shape) < 0.5 for name, shape in shapes.items()}, "RN-mini"))
    found = []
    for mask, name, miou in zip(masks, ("dense", "sparse"), (50.0, 45.0), strict=True):
        target.mask, target.name = mask, name
        found.append(Report(target.describe(), {}, count_costs(target, (32, 32)), {"scenes:val": result(miou)}))
    return found


def test_three_plots_and_a_page(reports: list[Report], tmp_path: Path) -> None:
    parts = make_plots(reports)
    assert [part.name for part in parts] == ["miou", "layers", "training"]
    written = plot_reports(reports, folder=tmp_path / "deep")
    assert written == [tmp_path / "deep" / f"{part.name}.png" for part in parts]
    assert all(path.stat().st_size > 5000 for path in written)
    assert plot_reports(reports, page=tmp_path / "page.pdf") == [tmp_path / "page.pdf"]
    assert (tmp_path / "page.pdf").stat().st_size > 5000


def test_only_figures_that_reports_have_are_plotted(reports: list[Report]) -> None:
    bare = [replace(report, datasets={}, costs=report.costs.without_layers()) for report in reports]
    assert [part.name for part in make_plots(bare)] == ["training"]
    unmeasured = [replace(report, datasets={"scenes:val": result(None)}) for report in reports]
    assert [part.name for part in make_plots(unmeasured)] == ["layers", "training"]


def test_points_are_where_the_reports_say(reports: list[Report]) -> None:
    figure = make_plots(reports)[0].figure()
    (axes,) = figure.axes
    points = {(line.get_xdata()[0], line.get_ydata()[0]) for line in axes.lines if len(line.get_xdata()) == 1}  # type: ignore[arg-type, index]
    assert points == {(report.flops.effective / 1e9, report.datasets["scenes:val"].miou) for report in reports}
    assert {text.get_text() for text in axes.texts} == {"dense", "sparse"}


def test_bars_add_up(reports: list[Report]) -> None:
    layers, training = (part.figure() for part in make_plots(reports)[1:])
    flops = reports[1].flops
    dense = flops.dense / 1e9
    assert 0.01 < dense < 0.1 and f" {dense:.3g} GMAC dense" in layers.axes[1].get_title(loc="left")
    heights = sum(bar.get_height() for bar in layers.axes[1].patches)  # type: ignore[attr-defined]
    assert heights == pytest.approx((flops.dense + flops.effective) / 1e9)
    widths = sum(bar.get_width() for bar in training.axes[0].patches)  # type: ignore[attr-defined]
    totals = [getattr(report.training, way).total for report in reports for way in WAYS]
    assert widths == pytest.approx(sum(totals) / 1e9, rel=1e-6)


def test_small_layers_share_a_bar_and_names_lose_their_common_prefix(reports: list[Report]) -> None:
    layers = [("head.a.big", 1000), ("head.a.b.small", 1), ("head.a.c.small", 1), ("one.alone", 1)]
    flops = replace(
        reports[0].flops,
        dense=sum(macs for _, macs in layers),
        layers=tuple(LayerMacs(name, name.split(".")[0], macs, macs) for name, macs in layers),
    )
    report = replace(reports[0], costs=replace(reports[0].costs, flops=flops), datasets={})
    figure = make_plots([report])[0].figure()
    shown = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert shown == ["big", "2 small ones", "one.alone"]
    assert sum(bar.get_height() for bar in figure.axes[0].patches) == pytest.approx(2 * flops.dense / 1e9)  # type: ignore[attr-defined]


def test_labels_keep_clear_of_each_other() -> None:
    figure = new_figure(4, 3)
    axes = figure.subplots()
    axes.set_xlim(0, 10)
    axes.set_ylim(0, 10)
    place_labels(axes, [Label(5, 5, "one name", "k"), Label(5, 5, "another", "k"), Label(9.9, 5, "at the edge", "k")])
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) == 3 and not boxes[0].overlaps(boxes[1])
    assert axes.texts[2].get_ha() == "right"


def test_boxes() -> None:
    assert aligned(0, 0, (2, 4), "center", "bottom") == Box(-1, 0, 1, 4)
    assert Box(0, 0, 2, 2).overlap(Box(1, 1, 3, 3)) == 1 and Box(0, 0, 1, 1).overlap(Box(2, 0, 3, 1)) == 0


def test_targets_of_different_sizes_are_told_apart(reports: list[Report]) -> None:
    """Their names have the sizes, and no line joins them."""
    other = replace(reports[1], costs=count_costs(load_target("RN-mini"), (64, 32)))
    other.costs.flops = replace(other.flops, effective=other.flops.effective // 2)
    tradeoff, layers, training = (part.figure() for part in make_plots([reports[0], other]))
    (axes,) = tradeoff.axes
    assert {text.get_text() for text in axes.texts} == {"dense, 32x32", "sparse, 64x32"}
    assert not [line for line in axes.lines if len(line.get_xdata()) == 2]  # type: ignore[arg-type]
    assert "64x32" in training.axes[0].get_yticklabels()[-1].get_text()
    assert layers.axes[1].get_title(loc="left").count("64x32") == 1
    (alike,) = make_plots(reports)[0].figure().axes
    assert [line for line in alike.lines if len(line.get_xdata()) == 2] == []  # two families
