"""The report: what a target is, what it costs, how well it does, as plain JSON.

    {"schema": "ovstrans.report/1",
     "target": {name, kind, model, ...},
     "environment": {ovstrans, python, torch, platform, device, threads},
     "params": {total, nonzero, trainable, components},
     "flops": {unit "MAC", image_size, batch, counter, dense, effective, components, layers},
     "training": {unit "MAC", per "image", executed and published: {forward, backward, total}},
     "datasets": {"scenes:val": {what evaluation returns}}}

Several reports in one file are {"schema": "ovstrans.reports/1", "reports": [...]}.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ovstrans.cost.flops import count_flops
from ovstrans.cost.params import count_params
from ovstrans.cost.target import Target
from ovstrans.cost.training import executed_training, published_training
from ovstrans.version import __version__

SCHEMA = "ovstrans.report/1"
SCHEMA_SEVERAL = "ovstrans.reports/1"


def cost_report(
    target: Target,
    image_size: tuple[int, int],
    *,
    counter: str = "torch",
    per_layer: bool = False,
    batch: int = 1,
    device: str = "cpu",
) -> dict[str, Any]:
    """The report of a target without its datasets (an empty table, to be filled).

    Raises as `count_params` and `count_flops` do.
    """
    flops = count_flops(
        target.module,
        image_size,
        components=target.components,
        mask=target.mask,
        counter=counter,
        batch=batch,
    )
    params = count_params(target.module, target.components, mask=target.mask, frozen=target.frozen)
    fixed = [name for name, part in params["components"].items() if part["total"] and not part["trainable"]]
    executed = executed_training(target.module, image_size, frozen=target.frozen)
    published = published_training(flops, frozen=target.frozen, fixed=fixed)
    return {
        "schema": SCHEMA,
        "target": target.as_json(),
        "environment": environment(device),
        "params": params,
        "flops": flops.as_json(per_layer=per_layer),
        "training": {
            "unit": "MAC",
            "per": "image",
            "executed": executed.as_json(),
            "published": published.as_json(),
        },
        "datasets": {},
    }


def together(reports: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """What a report file holds: a single report as it is, several in a wrapper."""
    return reports[0] if len(reports) == 1 else {"schema": SCHEMA_SEVERAL, "reports": list(reports)}


def environment(device: str) -> dict[str, Any]:
    """Versions and machine, as far as figures may depend on them."""
    return {
        "ovstrans": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        "threads": torch.get_num_threads(),
    }


def rows(reports: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """(columns, rows) of the table that sets reports side by side: a column a target."""
    columns = ["", *(str(report["target"]["name"]) for report in reports)]
    table = [
        ["params", *(_millions(report["params"]["total"]) for report in reports)],
        ["nonzero params", *(_millions(report["params"]["nonzero"]) for report in reports)],
        *_by_component(reports, "params", "nonzero", _millions),
        ["trainable params", *(_millions(report["params"]["trainable"]) for report in reports)],
    ]
    for kind in ("dense", "effective"):
        table.append([f"{kind} GMAC", *(_giga(report["flops"][kind]) for report in reports)])
        table += _by_component(reports, "flops", kind, _giga)
    table.append(["effective GFLOP (2 x MAC)", *(_giga(2 * report["flops"]["effective"]) for report in reports)])
    for kind, label in (("executed", "as autograd runs it"), ("published", "by the paper's formula")):
        totals = [_giga(report["training"][kind]["total"]) for report in reports]
        table.append([f"training GMAC, {label}", *totals])
    for name in _union(report["datasets"] for report in reports):
        entries = [report["datasets"].get(name, {}) for report in reports]
        for key, label in METRICS.items():
            values = [entry.get(key) for entry in entries]
            if any(value is not None for value in values):
                table.append([f"{name} {label}", *(_percent(value) for value in values)])
    return columns, table


METRICS = {
    "mIoU": "mIoU %",
    "base": "mIoU base %",
    "novel": "mIoU novel %",
    "hIoU": "hIoU %",
    "fwIoU": "fwIoU %",
    "mACC": "mACC %",
    "pACC": "pACC %",
}
"""Entries of a dataset's report that the table shows, in order."""


def layer_rows(report: Mapping[str, Any]) -> list[list[str]]:
    """The rows of the per-layer table: layer, component, dense and effective MMAC, share kept."""
    return [
        [
            layer["name"],
            layer["component"],
            f"{layer['dense'] / 1e6:,.3f}",
            f"{layer['effective'] / 1e6:,.3f}",
            f"{layer['effective'] / layer['dense']:.1%}" if layer["dense"] else "-",
        ]
        for layer in report["flops"].get("layers", [])
    ]


def _by_component(reports: Sequence[Mapping[str, Any]], section: str, kind: str, form: Any) -> list[list[str]]:
    names = _union(report[section]["components"] for report in reports)
    if len(names) < 2:
        return []
    return [
        [f"  {name}", *(_entry(report[section]["components"].get(name), kind, form) for report in reports)]
        for name in names
    ]


def _entry(part: Mapping[str, Any] | None, kind: str, form: Any) -> str:
    return "-" if part is None else form(part[kind])


def _union(tables: Any) -> list[str]:
    return list(dict.fromkeys(name for table in tables for name in table))


def _millions(value: int) -> str:
    return f"{value / 1e6:,.3f} M"


def _giga(value: int) -> str:
    return f"{value / 1e9:,.4f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
