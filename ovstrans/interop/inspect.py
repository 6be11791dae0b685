"""Inspecting any file of ours: masks, checkpoints, weights, alpha files, reports, and the folders of runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from ovstrans import files
from ovstrans.checkpoints.file import NAME as CHECKPOINT_NAME
from ovstrans.checkpoints.file import load_checkpoint
from ovstrans.errors import CheckFailed, InputError
from ovstrans.frameworks import registry
from ovstrans.interop.describe import FileDescription, describe_tensors, local_weights_sha256
from ovstrans.parsing import LARGEST_LOG, parse_json, read_text
from ovstrans.recipes.load import flatten, load_recipe
from ovstrans.spectrum.analysis import plan_alphas
from ovstrans.spectrum.file import load_analysis
from ovstrans.spectrum.plan import make_plan

_RUN_FILES = ("recipe.toml", "environment.json", "log.jsonl")
_FIGURES: Sequence[tuple[str, str, tuple[str, ...]]] = (
    ("params", "parameters", ("params", "total")),
    ("nonzero params", "parameters", ("params", "nonzero")),
    ("trainable params", "parameters", ("params", "trainable")),
    ("dense MACs", "MAC", ("flops", "dense")),
    ("effective MACs", "MAC", ("flops", "effective")),
    ("training MACs an image", "MAC", ("training", "executed", "total")),
    ("training MACs an image, sparse", "MAC", ("training", "sparse", "total")),
)
"""Figures of a report: name, unit, and where they are in its JSON."""
_METRICS = ("mIoU", "base", "novel", "hIoU", "fwIoU", "mACC", "pACC")
"""Figures of a dataset in a report, in per cent."""


def inspect(path: str | PathLike[str], *, verify: bool = False) -> FileDescription:
    """Say what a file is, from what it was made, and whether it is intact.

    The structure is always checked in full, and that no value is NaN or infinite.

    Args:
        path: A mask, a checkpoint, weights, an alpha file, a report, or the folder of a run.
        verify: Recompute what the file claims: hashes, zeros, shapes, the plan. Nothing is downloaded.

    Returns:
        The description. That of a run has those of its checkpoint and plan as `parts`.

    Raises:
        MissingFileError: If there is no such file.
        InputError: If the file is broken or unknown.
        CheckFailed: If a claim of the file does not hold.
    """
    path = Path(path)
    if path.is_dir():
        return _describe_run(path, verify)
    files.existing_file(path)
    with path.open("rb") as handle:
        start = handle.read(64)
    if path.suffix == ".json" or start.lstrip()[:1] == b"{":
        return _describe_json(path, verify)
    if path.suffix == ".safetensors" or start[:2] in (b"PK", b"\x80\x02"):
        description = describe_tensors(path, verify=verify)
        if verify and description.kind == "sparse checkpoint":
            description.checks.append(_restore(path))
        return description
    raise InputError(
        f"{path}: not a file that ovstrans knows; give a mask, checkpoint or weights (.safetensors), "
        "an alpha file or report (.json), or a run folder"
    )


def _restore(path: Path) -> str:
    """Verify that the framework that a checkpoint names takes its tensors."""
    checkpoint = load_checkpoint(path)
    try:
        registry.restore(checkpoint)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return f"{checkpoint.framework} can be built from it"


def _describe_json(path: Path, verify: bool) -> FileDescription:
    value = files.read_json(path)
    schema = value.get("schema") if isinstance(value, dict) else None
    if schema == "ovstrans.alpha/1":
        return _describe_alphas(path, verify)
    if schema in ("ovstrans.report/1", "ovstrans.reports/1"):
        return _describe_report(path, value)
    if not isinstance(schema, str) or not schema.startswith("ovstrans."):
        raise InputError(f"{path}: JSON, but not of ovstrans (schema {schema!r}); give an alpha file or a report")
    facts = {key: entry for key, entry in value.items() if not isinstance(entry, (dict, list))}
    return FileDescription(str(path), schema.removeprefix("ovstrans."), facts, checks=["structure"])


def _describe_alphas(path: Path, verify: bool) -> FileDescription:
    """Describe an alpha file. Verifying makes its plan again from its alphas."""
    analysis = load_analysis(path)
    plan, frozen = analysis.default_plan, set(analysis.default_plan.frozen)
    facts = {
        "model": analysis.model,
        "pretrained": analysis.pretrained,
        "weights_sha256": analysis.weights_sha256,
        "settings": analysis.settings,
        "freeze_rule": plan.rule,
        "threshold": plan.threshold,
        "frozen": f"{len(plan.frozen)} of {len(analysis.candidates)} layers",
    }
    columns = ["layer", "shape", "eigenvalues", "alpha", "D", "frozen", "warning"]
    frozen_rows = analysis.rows_of(frozen)
    rows = [
        [row.name, list(row.shape), row.num_eigenvalues, row.alpha, row.D, row.name in frozen_rows, row.warning]
        for row in analysis.layers
    ]
    checks = ["structure", "no NaN or infinity"]
    if verify:
        alphas = plan_alphas(analysis.layers)
        again = make_plan(alphas, plan.rule, seed=int(analysis.settings.get("seed") or 0))
        if set(again.frozen) != frozen:
            name = min(set(again.frozen) ^ frozen)
            raise CheckFailed(f"{path}: rule {plan.rule} and its alphas do not give its plan (first: {name})")
        checks.append("plan follows from the alphas")
        same = local_weights_sha256(analysis.model, analysis.pretrained) == analysis.weights_sha256
        origin = f"{analysis.model} {analysis.pretrained}".strip() or "an unnamed model"
        checks.append(f"hash is that of {origin} here" if same else f"other weights than those of {origin} here")
    return FileDescription(str(path), "alpha file", facts, columns, rows, checks)


def _describe_report(path: Path, value: Mapping[str, Any]) -> FileDescription:
    """Describe one report or several, from their JSON."""
    try:
        reports = value.get("reports", [value])
        first = reports[0]
        facts = {
            "targets": [report["target"]["name"] for report in reports],
            "image_size": first["flops"]["image_size"],
            "counter": first["flops"]["counter"],
            "datasets": sorted({name for report in reports for name in report["datasets"]}),
            "environment": first["environment"],
        }
        rows = _report_rows(reports)
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise InputError(f"{path}: not an intact report ({reason}); make it again with 'ovstrans bench'") from error
    columns = ["figure", "unit", *(f"{number} {name}" for number, name in enumerate(facts["targets"], 1))]
    return FileDescription(str(path), "report", facts, columns, rows, ["structure"])


def _report_rows(reports: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
    """Return (figure, unit, value of every report) for each figure that one of the reports has."""
    figures = list(_FIGURES)
    for name in dict.fromkeys(name for report in reports for name in report["datasets"]):
        figures += [(f"{name} {metric}", "%", ("datasets", name, metric)) for metric in _METRICS]
    rows = [[label, unit, *(_entry(report, keys) for report in reports)] for label, unit, keys in figures]
    return [row for row in rows if any(value is not None for value in row[2:])]


def _entry(value: Any, keys: Sequence[str]) -> Any:
    """Return the entry of nested objects that `keys` lead to; None if there is none."""
    for key in keys:
        value = None if value is None else value.get(key)
    return value


def _describe_run(path: Path, verify: bool) -> FileDescription:
    recipe, checkpoint, alpha = (path / name for name in ("recipe.toml", CHECKPOINT_NAME, "alpha.json"))
    if not recipe.is_file():
        raise InputError(f"{path}: a folder, but not a run (no recipe.toml in it); give a file or a run folder")
    finished = checkpoint.is_file() and not (path / "state" / "state.pt").exists()
    entries = _read_log(path / "log.jsonl", finished)
    facts: dict[str, Any] = {
        "finished": finished,
        "steps_logged": len(entries),
        **({"last_step": entries[-1]} if entries else {}),
        "recipe": flatten(load_recipe(str(recipe))),
    }
    checks = [f"{name} is readable" for name in _RUN_FILES if (path / name).is_file()]
    if (path / "environment.json").is_file():
        facts["environment"] = files.read_json(path / "environment.json")
    parts = [inspect(file, verify=verify) for file in (checkpoint, alpha) if file.is_file()]
    return FileDescription(str(path), "run folder", facts, checks=checks, parts=parts)


def _read_log(path: Path, finished: bool) -> list[dict[str, Any]]:
    """Read the entries of a log. The last line may be cut short if the run is not finished."""
    if not path.is_file():
        return []
    lines = read_text(files.existing_file(path), LARGEST_LOG, errors="replace").splitlines()
    entries = []
    for number, line in enumerate(lines, 1):
        try:
            entries.append(parse_json(line))
        except ValueError as error:
            if number == len(lines) and not finished:
                break
            raise InputError(f"{path}: line {number} is not JSON ({error}); the log is damaged") from error
    return entries
