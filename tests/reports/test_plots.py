from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ovstrans.costs.target import load_target
from ovstrans.figures import new_figure, save_figure
from ovstrans.masks.mask import Mask
from ovstrans.reports.plot_labels import Box, Label, aligned, place_labels
from ovstrans.reports.plots import page, pictures
from ovstrans.reports.report import cost_report


@pytest.fixture(scope="module")
def reports() -> list[dict[str, Any]]:
    target = load_target("RN-mini")
    shapes = {name.removeprefix("backbone."): p.shape for name, p in target.module.named_parameters() if p.dim() == 4}
    found = []
    for mask in (None, Mask({name: torch.rand(shape) < 0.5 for name, shape in shapes.items()}, "RN-mini")):
        target.mask = mask
        found.append(cost_report(target, (32, 32), per_layer=True))
    for report, name, miou in zip(found, ("dense", "sparse"), (50.0, 45.0), strict=True):
        report["target"]["name"] = name
        report["datasets"]["scenes:val"] = {"mIoU": miou}
    return found


def test_three_pictures_and_a_page(reports: list[dict[str, Any]], tmp_path: Path) -> None:
    parts = pictures(reports)
    assert [part.name for part in parts] == ["miou", "layers", "training"]
    for part in parts:
        assert save_figure(part.figure(), tmp_path / f"{part.name}.png").stat().st_size > 5000
    assert save_figure(page(parts), tmp_path / "page.pdf").stat().st_size > 5000


def test_only_what_the_reports_have(reports: list[dict[str, Any]]) -> None:
    bare = [{**report, "datasets": {}, "flops": {**report["flops"], "layers": []}} for report in reports]
    assert [part.name for part in pictures(bare)] == ["training"]
    assert pictures([{**report, "training": {}} for report in bare]) == []


def test_points_are_where_the_reports_say(reports: list[dict[str, Any]]) -> None:
    figure = pictures(reports)[0].figure()
    (axes,) = figure.axes
    points = {(line.get_xdata()[0], line.get_ydata()[0]) for line in axes.lines if len(line.get_xdata()) == 1}
    assert points == {
        (report["flops"]["effective"] / 1e9, report["datasets"]["scenes:val"]["mIoU"]) for report in reports
    }
    assert {text.get_text() for text in axes.texts} == {"dense", "sparse"}


def test_bars_add_up(reports: list[dict[str, Any]]) -> None:
    layers, training = (part.figure() for part in pictures(reports)[1:])
    dense = reports[1]["flops"]["dense"] / 1e9
    assert 0.01 < dense < 0.1 and f" {dense:.3g} GMAC dense" in layers.axes[1].get_title(loc="left")
    heights = sum(bar.get_height() for bar in layers.axes[1].patches)
    assert heights == pytest.approx((reports[1]["flops"]["dense"] + reports[1]["flops"]["effective"]) / 1e9)
    widths = sum(bar.get_width() for bar in training.axes[0].patches)
    kinds = ("executed", "sparse", "published")
    assert widths == pytest.approx(
        sum(one["training"][kind]["total"] for one in reports for kind in kinds) / 1e9, rel=1e-6
    )


def test_small_layers_share_a_bar_and_names_lose_their_common_beginning(reports: list[dict[str, Any]]) -> None:
    layers = [("head.a.big", 1000), ("head.a.b.small", 1), ("head.a.c.small", 1), ("one.alone", 1)]
    flops = {
        **reports[0]["flops"],
        "dense": sum(macs for _, macs in layers),
        "layers": [
            {"name": name, "component": name.split(".")[0], "dense": macs, "effective": macs} for name, macs in layers
        ],
    }
    figure = pictures([{**reports[0], "flops": flops, "datasets": {}}])[0].figure()
    shown = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert shown == ["big", "2 small ones", "one.alone"]
    assert sum(bar.get_height() for bar in figure.axes[0].patches) == pytest.approx(2 * flops["dense"] / 1e9)


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
