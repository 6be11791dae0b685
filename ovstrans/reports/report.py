"""The report: what a target is, what it costs, how well it does, as plain JSON.

    {"schema": "ovstrans.report/1",
     "target": {name, kind, model, ...},
     "environment": {ovstrans, python, torch, platform, device, threads},
     "params": {total, nonzero, trainable, components},
     "flops": {unit "MAC", image_size, batch, counter, dense, effective, components, other, layers,
               flops: {unit "FLOP", dense, effective, other},
               text_encoder: {per "vocabulary", macs, ...}, released: {dense, effective, components}},
     "training": {unit "MAC", per "image", executed, sparse and published:
                  {forward, input_gradient, weight_gradient, backward, total, components, layers},
                  matching: {per "segment", macs}, which is in none of them, or null where nothing is matched,
                  run: {see `costs.training_run`}, or null without a recipe},
     "datasets": {"scenes:val": {what evaluation returns}},
     "failed": {"camvid:val": what is wrong with it}, only where one of several datasets could not be evaluated,
     "latency": {see `costs.latency`; only where it was asked for}}

Several reports in one file are {"schema": "ovstrans.reports/1", "reports": [...]}.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ovstrans.costs.target import Target, count_costs
from ovstrans.environment import environment
from ovstrans.errors import InputError
from ovstrans.files import read_json

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
    costs = count_costs(target, image_size, counter=counter, batch=batch)
    if not per_layer:
        costs = costs.without_layers()
    return {
        "schema": SCHEMA,
        "target": target.describe().to_json(),
        "environment": environment(device),
        "params": costs.params.to_json(),
        "flops": costs.flops.to_json(),
        "training": costs.training.to_json(),
        "datasets": {},
    }


def together(reports: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """What a report file holds: a single report as it is, several in a wrapper."""
    return reports[0] if len(reports) == 1 else {"schema": SCHEMA_SEVERAL, "reports": list(reports)}


def load_reports(path: Path | str) -> list[dict[str, Any]]:
    """The reports in a file that `bench --json` wrote, one or several; InputError where it is another file."""
    value = read_json(path)
    schema = value.get("schema") if isinstance(value, dict) else None
    found = {SCHEMA: [value], SCHEMA_SEVERAL: value.get("reports") if schema else None}.get(str(schema))
    if not isinstance(found, list) or not found:
        raise InputError(f"{path}: is no report (its schema is {schema!r}); give what `bench --json` wrote")
    for report in found:
        for section in ("target", "params", "flops"):
            if not isinstance(report, dict) or not isinstance(report.get(section), dict):
                raise InputError(f"{path}: a report in it has no {section!r}; write it again with `bench --json`")
    return found
