from __future__ import annotations

import csv
import io
from dataclasses import replace

import pytest

from ovstrans.costs.flops import Flops, Macs
from ovstrans.costs.latency import ArmLatency, Latency
from ovstrans.costs.params import ParamCounts, Params
from ovstrans.costs.target import Costs, TargetInfo, count_costs, load_target
from ovstrans.costs.training_run import TrainingCosts
from ovstrans.costs.training_step import TrainingStep
from ovstrans.evaluation.evaluate import DatasetResult
from ovstrans.evaluation.inference import Inference
from ovstrans.evaluation.metrics import ClassMetrics
from ovstrans.evaluation.panoptic import PanopticResult, Quality
from ovstrans.evaluation.video import VideoResult, WindowConsistency
from ovstrans.reports.report import Report
from ovstrans.reports.tables import (
    Row,
    compare_reports,
    format_csv,
    format_markdown,
    format_values,
    make_class_table,
    make_csv_table,
    make_layer_table,
    make_table,
)


def report(name: str, dense: int, miou: float | None = None, **components: int) -> Report:
    parts = {part: Macs(macs, macs // 2) for part, macs in components.items()}
    params = Params(10, 8, 8, {"trunk": ParamCounts(10, 8, 8)})
    flops = Flops((8, 16), 1, "torch", dense, dense // 2, parts)
    step = TrainingStep(1, 1, 1)
    costs = Costs(params, flops, TrainingCosts(step, step, step))
    datasets = {} if miou is None else {"scenes:val": result(miou)}
    return Report(TargetInfo(name, "model", "RN50"), {}, costs, datasets)


def result(miou: float | None, *classes: ClassMetrics) -> DatasetResult:
    return DatasetResult(
        dataset="scenes",
        split="val",
        images=1,
        inference=Inference(),
        miou=miou,
        denominator="present",
        miou_present=miou,
        miou_union=None,
        num_classes=len(classes),
        per_class=classes,
        fwiou=None,
        macc=None,
        pacc=None,
        miou_base=None,
        miou_novel=None,
        hiou=None,
    )


REPORTS = [
    report("a|b", 2_000_000_000, trunk=1_500_000_000, head=500_000_000, miou=50.0),
    report("c", 1_000_000_000, trunk=1_000_000_000, miou=47.5),
]


def cells(reports: list[Report]) -> dict[str, list[str]]:
    return {line[0]: line[1:] for line in make_table(reports, details=True)[1]}


def test_values_and_changes_side_by_side() -> None:
    found = cells(REPORTS)
    assert found["dense MACs"] == ["2 G", "1 G (-50.0 %)"]
    assert found["dense FLOPs (2 x MAC)"] == ["4 G", "2 G (-50.0 %)"]
    assert found["effective FLOPs (2 x MAC)"] == ["2 G", "1 G (-50.0 %)"]
    assert found["scenes:val mIoU"] == ["50.00 %", "47.50 % (-2.50)"]
    assert found["  head"] == ["250 M", "-"]  # the last of dense and effective
    assert found["training MACs as autograd runs it"] == ["3", "3"]


def test_settings_show_where_they_differ() -> None:
    other = report("d", 1)
    other.costs.flops = replace(other.flops, image_size=(9, 9))
    assert cells([REPORTS[0], other])["image size"] == ["8x16", "9x9"]
    assert "image size" not in cells(REPORTS)


@pytest.mark.parametrize("difference", [{"image_size": (9, 9)}, {"batch": 2}, {"counter": "fvcore"}])
def test_figures_of_different_settings_get_no_percentage(difference: dict[str, object]) -> None:
    """Neither in the table, nor as Markdown, nor as CSV; params and mIoU do not depend on them."""
    other = report("d", 1_000_000_000, miou=47.5)
    other.costs = replace(other.costs, params=Params(5, 5, 5, {"trunk": ParamCounts(5, 5, 5)}))
    other.costs.flops = replace(other.flops, **difference)  # type: ignore[arg-type]
    found = cells([REPORTS[0], other])
    assert found["dense MACs"] == ["2 G", "1 G"] and found["effective FLOPs (2 x MAC)"] == ["2 G", "1 G"]
    assert found["total params"] == ["10", "5 (-50.0 %)"] and found["scenes:val mIoU"] == ["50.00 %", "47.50 % (-2.50)"]
    text = format_markdown(*make_table([REPORTS[0], other], details=True))
    assert text.count(" %)") == 3 and not any(" %)" in line for line in text.splitlines() if "MACs" in line)  # params
    (name,) = difference
    assert name.replace("_", " ") in found
    table = {tuple(line[:2]): line for line in make_csv_table([REPORTS[0], other])}
    assert table["dense MACs", ""][3:] == ["2000000000", "1000000000", ""] and table["total params", ""][-1] == "-50"


@pytest.mark.parametrize(
    "difference", [{"images": 2}, {"inference": Inference(short_side=64)}, {"denominator": "union"}], ids=str
)
def test_scores_of_different_images_get_no_difference(difference: dict[str, object]) -> None:
    other = report("d", 1)
    other.datasets["scenes:val"] = replace(result(47.5), **difference)  # type: ignore[arg-type]
    found = cells([REPORTS[0], other])
    assert found["scenes:val mIoU"] == ["50.00 %", "47.50 %"]
    (name,) = difference
    row = {"images": "images", "inference": "scored at", "denominator": "mIoU over"}[name]
    assert len(set(found[f"scenes:val {row}"])) == 2


def test_the_short_table_has_about_ten_rows() -> None:
    costs = count_costs(load_target("fcclip-mini"), (32, 32))
    full = replace(REPORTS[0], costs=costs)
    full.latency = replace(latency(0.25), speedup=2.5)
    short, details = make_table([full])[1], make_table([full], details=True)[1]
    assert 5 <= len(short) <= 12 < 40 < len(details)
    assert {line[0] for line in short} >= {"total params", "dense MACs", "scenes:val mIoU"}
    assert [line for line in details if line in short] == short


@pytest.mark.parametrize(
    ("values", "unit", "shown"),
    [
        ((0, 12, None), "MAC", ["0", "12", "-"]),
        ((999_949, 1_000), "params", ["999.9 K", "1 K"]),
        ((999_950,), "params", ["1.000 M"]),
        ((46_784_512, 262_400_000_000), "MAC", ["0.04678 G", "262.4 G"]),
        ((6.7e18,), "MAC", ["6,700 P"]),
        ((3 * 2**20, 2**30), "bytes", ["0.002930 GiB", "1 GiB"]),
        ((500,), "bytes", ["500 B"]),
        ((0.25, 0.0125), "s", ["250 ms", "12.50 ms"]),
        ((2.5,), "s", ["2.500 s"]),
        ((1e-9,), "s", ["0.001000 µs"]),
        ((0.0, 33.333), "%", ["0.00 %", "33.33 %"]),
    ],
)
def test_values_have_readable_units(values: tuple[float | None, ...], unit: str, shown: list[str]) -> None:
    assert format_values(values, unit) == shown


def test_large_changes_are_multiples() -> None:
    lines = cells([report("a", 1_000_000), report("b", 97_740_000), report("c", 1_999_000), report("d", 2_000_000)])
    assert lines["dense MACs"] == ["1 M", "97.74 M (97.7 x)", "1.999 M (+99.9 %)", "2 M (2 x)"]


def test_nothing_to_compare_with() -> None:
    assert Row("x", "", "MAC", (0, 5)).changes() == [None]
    assert Row("x", "", "MAC", (None, 5)).changes() == [None]
    assert Row("x", "", "MAC", (4, 5, 4)).changes() == [25.0, 0.0]
    assert Row("x", "", "%", (40.0, 41.5)).changes() == [1.5]


def test_csv_has_plain_values() -> None:
    table = list(csv.DictReader(io.StringIO(format_csv(make_csv_table(REPORTS)))))
    found = {(line["quantity"], line["part"]): line for line in table}
    dense = found["dense MACs", ""]
    assert (dense["unit"], dense["a|b"], dense["c"]) == ("MAC", "2000000000", "1000000000")
    assert dense["c: change from the first, %"] == "-50"
    assert found["dense MACs", "head"]["c"] == "" and found["image size", ""]["c"] == "8x16"
    assert len({tuple(line) for line in table}) == 1


def test_markdown() -> None:
    text = format_markdown(*make_table(REPORTS, details=True)).splitlines()
    assert text[0].count("|") == 5 and "a\\|b" in text[0]  # four borders, and the escaped one
    assert text[1].startswith("| :--") and text[1].endswith("-: |")
    assert any(line.startswith("| &nbsp;&nbsp;trunk ") for line in text)
    assert len({len(line) for line in text}) == 1


def test_the_cost_of_a_recipes_run_is_in_the_table() -> None:
    costs = count_costs(load_target("deeplabv3-mini"), (32, 32))
    run = costs.training.run
    assert run is not None and run.steps * run.batch > 0
    assert run.total("executed") > run.steps_macs["executed"] > 0
    shown = cells([replace(REPORTS[0], costs=costs)])["whole run as autograd runs it"]
    assert shown == format_values([run.total("executed")], "MAC")
    assert count_costs(load_target("deeplabv3"), (32, 32)).training.run is None


def latency(median: float | None) -> Latency:
    arm = ArmLatency("", median, 1, 2, 1, 1, 2, 10.0, None, None)  # type: ignore[arg-type]
    return Latency("cpu", 1, None, "float32", (8, 8), 1, 1, 0, 4, None, {"dense": arm}, None)


@pytest.mark.parametrize("value", [None, 0])
def test_a_figure_that_no_report_has_is_no_row(value: int | None) -> None:
    reports = [report("a", 1), report("b", 1)]
    reports[0].latency = latency(value)
    found = [row.quantity for row in compare_reports(reports)]
    assert ("dense kernels: time a batch, median" in found) == (value is not None)
    assert "dense kernels: throughput" in found and not any("times as fast" in name for name in found)


def test_latency_is_shown_in_readable_units() -> None:
    timed = report("a", 1)
    timed.latency = replace(latency(0.25), speedup=2.5)
    assert cells([timed])["dense kernels: time a batch, median"] == ["250 ms"]
    assert cells([timed])["sparse kernels: times as fast as dense ones"] == ["2.50 x"]


@pytest.mark.parametrize(("layers", "name"), [(0, "masked, on dense kernels"), (3, "sparse kernels")])
def test_masked_weights_on_dense_kernels_are_not_called_sparse(layers: int, name: str) -> None:
    timed = report("a", 1)
    timed.latency = replace(latency(0.25), speedup=1.02)
    arm = replace(timed.latency.arms["dense"], sparse_layers=layers)
    timed.latency = replace(timed.latency, arms={**timed.latency.arms, "sparse": arm})
    found = cells([timed])
    assert found[f"{name}: time a batch, median"] == ["250 ms"]
    assert found["layers on sparse kernels"] == [str(layers)]
    assert ("sparse kernels: times as fast as dense ones" in found) == bool(layers)  # else it is noise


def test_times_on_different_devices_get_no_percentage() -> None:
    one, other = report("a", 1), report("b", 1)
    one.latency, other.latency = latency(0.25), replace(latency(0.5), device="H200")
    found = cells([one, other])
    assert found["dense kernels: time a batch, median"] == ["250 ms", "500 ms"]
    assert found["timed on"] == ["cpu", "H200"]


def test_panoptic_quality_and_video_consistency() -> None:
    nothing = Quality(None, None, None)
    panoptic = PanopticResult(Quality(12.34, 50.0, 20.0), nothing, nothing, 1, 0, 1, ())
    video = VideoResult({8: WindowConsistency(56.78, 1.0, 3), 16: WindowConsistency(None, None, 0)}, 1)
    found = report("a", 1)
    found.datasets["scenes:val"] = replace(result(1.0), panoptic=panoptic, video=video)
    shown = cells([found, report("b", 1, miou=2.0)])
    assert shown["scenes:val PQ"] == ["12.34 %", "-"] and shown["scenes:val RQ"] == ["20.00 %", "-"]
    assert shown["scenes:val mVC8"] == ["56.78 %", "-"] and "scenes:val mVC16" not in shown


def test_the_table_of_classes() -> None:
    sky = ClassMetrics("sky", 50.0, 75.0, 30, 30, False)
    car = ClassMetrics("car", None, None, 0, 10, True)
    road = ClassMetrics("road", 20.0, 25.0, 10, 0, False)
    first, second, model = report("a", 1), report("b", 1), report("RN50", 1)
    first.datasets["d"] = result(35.0, sky, car, road)
    second.datasets["d"] = result(40.0, replace(sky, iou=60.0), car, road)
    columns, lines = make_class_table([first, model], "d")
    assert columns == ["class", "IoU %", "accuracy %", "pixels %"]
    assert lines == [
        ["sky", "50.00", "75.00", "75.00"],
        ["car*", "-", "-", "0.00"],
        ["road", "20.00", "25.00", "25.00"],
    ]
    columns, lines = make_class_table([first, second, model], "d")
    assert columns == ["class", "a IoU %", "b IoU %", "pixels %"] and lines[0] == ["sky", "50.00", "60.00", "75.00"]


def test_the_table_of_layers() -> None:
    target = load_target("RN-mini")
    costs = count_costs(target, (32, 32))
    lines = make_layer_table(replace(REPORTS[0], costs=costs))
    assert len(lines) == len(costs.flops.layers or ()) > 20 and lines[0][4] == "100.0%"
    assert lines[0][:2] == ["conv1", "trunk"] and float(lines[0][2]) == round(costs.flops.layers[0].dense / 1e6, 3)  # type: ignore[index]
    assert make_layer_table(replace(REPORTS[0], costs=costs.without_layers())) == []
