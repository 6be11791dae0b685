"""The report: what a target is, what it costs, how well it does.

A report file is plain JSON:

    {"schema": "ovstrans.report/1",
     "target": {name, kind, model, ...},
     "environment": {ovstrans, python, torch, platform, device, threads},
     "params": {total, nonzero, trainable, components, with_clip},
     "flops": {unit "MAC", image_size, batch, counter, dense, effective, components, other, layers,
               flops: {unit "FLOP", dense, effective, other},
               text_encoder: {per "vocabulary", macs, ...}, released: {dense, effective, components}},
     "training": {unit "MAC", per "image", executed, sparse and published:
                  {forward, input_gradient, weight_gradient, backward, total, components, layers},
                  matching: {per "segment", macs}, which is in none of them, or null if nothing is matched,
                  run: the whole run (see `costs.training_run`), or null without a recipe},
     "datasets": {"scenes:val": the metrics (see `evaluation.evaluate`)},
     "failed": {"camvid:val": why it could not be evaluated}, only if one of several datasets failed,
     "incomplete": {"scenes:val" or "latency": why it is missing}, only if the work ended early,
     "latency": time, memory and energy (see `costs.latency`), only if it was asked for}

Several reports in one file are {"schema": "ovstrans.reports/1", "reports": [...]}.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ovstrans.costs.flops import Flops
from ovstrans.costs.latency import Latency
from ovstrans.costs.params import Params
from ovstrans.costs.target import Costs, TargetInfo
from ovstrans.costs.training_run import TrainingCosts
from ovstrans.errors import InputError
from ovstrans.evaluation.evaluate import DatasetResult
from ovstrans.files import check_output, read_json, write_json

SCHEMA = "ovstrans.report/1"
SCHEMA_SEVERAL = "ovstrans.reports/1"


@dataclass
class Report:
    """Report of a target: its origin, its costs and its results on datasets.

    Attributes:
        target: Description of the target.
        environment: Versions and machine, as far as the figures may depend on them.
        costs: Parameters, and MACs of inference and training.
        datasets: Name of a dataset, such as "scenes:val", to the metrics on it.
        failed: Name of a dataset that could not be evaluated to the reason.
        incomplete: Name of a dataset that was not evaluated since the work ended early, or "latency", to the reason.
        latency: Measured time, memory and energy; None if they were not asked for.
        undrawn: Why pictures that were asked for are missing; not in the JSON.
    """

    target: TargetInfo
    environment: Mapping[str, Any]
    costs: Costs
    datasets: dict[str, DatasetResult] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    latency: Latency | None = None
    incomplete: dict[str, str] = field(default_factory=dict)
    undrawn: str = field(default="", compare=False)

    @property
    def name(self) -> str:
        """Name of the target."""
        return self.target.name

    @property
    def params(self) -> Params:
        """Parameters of the target, `costs.params`."""
        return self.costs.params

    @property
    def flops(self) -> Flops:
        """Cost of inference in MACs, `costs.flops`."""
        return self.costs.flops

    @property
    def training(self) -> TrainingCosts:
        """Cost of training in MACs, `self.costs.training`."""
        return self.costs.training

    def to_json(self) -> dict[str, Any]:
        """Return the content of a report file: plain values."""
        report: dict[str, Any] = {
            "schema": SCHEMA,
            "target": self.target.to_json(),
            "environment": dict(self.environment),
            "params": self.params.to_json(),
            "flops": self.flops.to_json(),
            "training": self.training.to_json(),
            "datasets": {name: result.to_json() for name, result in self.datasets.items()},
        }
        if self.failed:
            report["failed"] = dict(self.failed)
        if self.incomplete:
            report["incomplete"] = dict(self.incomplete)
        if self.latency is not None:
            report["latency"] = self.latency.to_json()
        return report

    @classmethod
    def from_json(cls, value: Any) -> Report:
        """Return the report that `to_json` described.

        Raises:
            InputError: If it is something else.
        """
        try:
            costs = Costs(
                Params.from_json(value["params"]),
                Flops.from_json(value["flops"]),
                TrainingCosts.from_json(value["training"]),
            )
            latency = value.get("latency")
            return cls(
                TargetInfo.from_json(value["target"]),
                value["environment"],
                costs,
                {name: DatasetResult.from_json(entry) for name, entry in value["datasets"].items()},
                dict(value.get("failed", {})),
                None if latency is None else Latency.from_json(latency),
                dict(value.get("incomplete", {})),
            )
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise InputError(f"not an intact report ({type(error).__name__}: {error})") from error

    def save(self, path: Path | str, *, force: bool = False) -> Path:
        """Write the report as a JSON file, which `bench` and `load_reports` read again.

        Args:
            path: File to write.
            force: Replace it if it exists.

        Returns:
            The path.

        Raises:
            InputError: If the file exists (without `force`) or cannot be written.
        """
        checked = check_output(path, force=force, option="path")
        write_json(checked, self.to_json())
        return checked

    def __repr__(self) -> str:
        lines = [f"Report of {self.name}", f"  {self.params}", f"  {self.flops}"]
        lines += [f"  {name}: {result}" for name, result in self.datasets.items()]
        lines += [f"  {name}: failed, {reason}" for name, reason in self.failed.items()]
        lines += [f"  {name}: incomplete, {reason}" for name, reason in self.incomplete.items()]
        lines += [] if self.latency is None else [f"  {self.latency}"]
        return "\n".join(lines)

    def _repr_markdown_(self) -> str:
        from ovstrans.reports.tables import format_markdown, make_table

        return format_markdown(*make_table([self]))


def reports_to_json(reports: Sequence[Report]) -> dict[str, Any]:
    """Return the content of a file of reports: a single one as it is, several in a wrapper."""
    if len(reports) == 1:
        return reports[0].to_json()
    return {"schema": SCHEMA_SEVERAL, "reports": [report.to_json() for report in reports]}


def load_reports(path: Path | str) -> list[Report]:
    """Read the reports in a file that `Report.save` or `bench --json` wrote, one or several.

    Raises:
        InputError: If it is another file.
    """
    value = read_json(path)
    schema = value.get("schema") if isinstance(value, dict) else None
    found = {SCHEMA: [value], SCHEMA_SEVERAL: value.get("reports") if schema else None}.get(str(schema))
    if not isinstance(found, list) or not found:
        raise InputError(f"{path}: is no report (its schema is {schema!r}); give what `ovstrans bench` wrote as JSON")
    try:
        return [Report.from_json(report) for report in found]
    except InputError as error:
        raise InputError(f"{path}: {error}; make it again with `ovstrans bench`") from error


def shorten_names(names: Sequence[str]) -> list[str]:
    """Shorten the names of targets to the last part of each path, if that tells them apart."""
    paths = [Path(name) for name in names]
    short = [path.parent.name or path.name if path.name == "checkpoint.safetensors" else path.name for path in paths]
    return short if len(set(short)) == len(short) else list(names)
