from __future__ import annotations

import csv
import io
from typing import Any

import pytest

from ovstrans.costs.target import load_target
from ovstrans.reports.report import cost_report
from ovstrans.reports.tables import Row, comparison, csv_lines, csv_text, markdown, rows


def report(name: str, dense: int, miou: float | None = None, **components: int) -> dict[str, Any]:
    parts = {part: {"dense": macs, "effective": macs // 2} for part, macs in components.items()}
    params = {"total": 10, "nonzero": 8, "trainable": 8}
    found: dict[str, Any] = {
        "target": {"name": name},
        "params": {**params, "components": {"trunk": params}},
        "flops": {
            "image_size": [8, 16],
            "batch": 1,
            "counter": "torch",
            "dense": dense,
            "effective": dense // 2,
            "components": parts,
        },
        "training": {"unit": "MAC", "executed": {"forward": 1, "backward": 2, "total": 3}},
        "datasets": {},
    }
    if miou is not None:
        found["datasets"]["scenes:val"] = {"mIoU": miou}
    return found


REPORTS = [
    report("a|b", 2_000_000_000, trunk=1_500_000_000, head=500_000_000, miou=50.0),
    report("c", 1_000_000_000, trunk=1_000_000_000, miou=47.5),
]


def cells(reports: list[dict[str, Any]]) -> dict[str, list[str]]:
    return {line[0]: line[1:] for line in rows(reports)[1]}


def test_values_and_changes_side_by_side() -> None:
    found = cells(REPORTS)
    assert found["dense MACs, GMAC"] == ["2.0000", "1.0000 (-50.0 %)"]
    assert found["dense FLOPs (2 x MAC), GFLOP"] == ["4.0000", "2.0000 (-50.0 %)"]
    assert found["effective FLOPs (2 x MAC), GFLOP"] == ["2.0000", "1.0000 (-50.0 %)"]
    assert found["scenes:val mIoU, %"] == ["50.00", "47.50 (-2.50)"]
    assert found["  head"] == ["0.2500", "-"]  # the last of dense and effective
    assert found["training MACs as autograd runs it, GMAC"] == ["0.0000", "0.0000"]


def test_settings_show_where_they_differ() -> None:
    other = report("d", 1)
    other["flops"]["image_size"] = [9, 9]
    assert cells([REPORTS[0], other])["image size"] == ["8x16", "9x9"]
    assert "image size" not in cells(REPORTS)


def test_nothing_to_compare_with() -> None:
    assert Row("x", "", "MAC", (0, 5)).changes() == [None]
    assert Row("x", "", "MAC", (None, 5)).changes() == [None]
    assert Row("x", "", "MAC", (4, 5, 4)).changes() == [25.0, 0.0]
    assert Row("x", "", "%", (40.0, 41.5)).changes() == [1.5]


def test_csv_has_plain_values() -> None:
    table = list(csv.DictReader(io.StringIO(csv_text(csv_lines(REPORTS)))))
    found = {(line["quantity"], line["part"]): line for line in table}
    dense = found["dense MACs", ""]
    assert (dense["unit"], dense["a|b"], dense["c"]) == ("MAC", "2000000000", "1000000000")
    assert dense["c: change from the first, %"] == "-50"
    assert found["dense MACs", "head"]["c"] == "" and found["image size", ""]["c"] == "8x16"
    assert len({tuple(line) for line in table}) == 1


def test_markdown() -> None:
    columns, lines = rows(REPORTS)
    text = markdown(columns, lines).splitlines()
    assert text[0].count("|") == 5 and "a\\|b" in text[0]  # four borders, and the escaped one
    assert text[1].startswith("| :--") and text[1].endswith("-: |")
    assert any(line.startswith("| &nbsp;&nbsp;trunk ") for line in text)
    assert len({len(line) for line in text}) == 1


def test_a_recipe_has_the_cost_of_its_run() -> None:
    found = cost_report(load_target("deeplabv3-mini"), (32, 32))
    run = found["training"]["run"]
    assert run["steps"] * run["batch"] > 0 and run["executed"]["total"] > run["executed"]["framework"] > 0
    shown = cells([found])["whole run as autograd runs it, PMAC"]
    assert shown == [f"{run['executed']['total'] / 1e15:,.4f}"]
    assert cost_report(load_target("deeplabv3"), (32, 32))["training"]["run"] is None


@pytest.mark.parametrize("value", [None, 0])
def test_what_no_report_has_is_no_row(value: int | None) -> None:
    reports = [report("a", 1), report("b", 1)]
    reports[0]["latency"] = {"arms": {"dense": {"median_s": value}}}
    found = [row.quantity for row in comparison(reports)]
    assert ("dense: time a batch, median" in found) == (value is not None)
