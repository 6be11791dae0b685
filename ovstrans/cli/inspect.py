"""`ovstrans inspect`: what a file of ours is, from what it was made, and whether it is intact."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ovstrans.cli import common

if TYPE_CHECKING:
    from ovstrans.interop.describe import Description

_RUN_FILES = ("recipe.toml", "environment.json", "log.jsonl")


def inspect(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="FILE", help="Masks, checkpoints, weights, alpha files, reports, run folders."),
    ],
    verify: Annotated[
        bool, typer.Option("--verify", help="Recompute what the file claims: hashes, zeros, shapes, the plan.")
    ] = False,
    json: common.Json = None,
    force: common.Force = False,
    quiet: common.Quiet = False,
    debug: common.Debug = False,
) -> None:
    """Say what files are, from what they were made, and whether they are intact.

    The structure is always checked in full, and that no value is NaN or infinite. Exit status: 2 where a
    file is broken or unknown, 3 where --verify finds that one does not hold what it claims.
    """
    common.start(quiet=quiet, debug=debug)
    from ovstrans import console
    from ovstrans.errors import OvstransError

    common.check_json(json, force=force)
    described: list[dict[str, Any]] = []
    failure: OvstransError | None = None
    for path in paths:
        try:
            found = describe(path, verify=verify)
        except OvstransError as error:
            if failure is not None:
                console.error(str(failure))
            failure = error
            described.append({"path": str(path), "intact": False, "error": str(error)})
            continue
        for description in found:
            described.append(description.as_json())
            if json != "-":
                _show(description)
    common.emit_json(json, {"schema": "ovstrans.inspect/1", "files": described}, force=force)
    if failure is not None:
        raise failure


def describe(path: Path, *, verify: bool = False) -> list[Description]:
    """What is at `path`: one description, or those of a run folder and of the artefacts in it.

    Raises InputError where it is broken or unknown, CheckFailed where `verify` finds a false claim.
    """
    from ovstrans import files
    from ovstrans.interop.describe import describe_tensors

    if path.is_dir():
        return _run_folder(path, verify)
    files.existing_file(path)
    with path.open("rb") as handle:
        start = handle.read(64)
    if path.suffix == ".json" or start.lstrip()[:1] == b"{":
        return _json_file(path, verify)
    if path.suffix == ".safetensors" or start[:2] in (b"PK", b"\x80\x02"):
        description = describe_tensors(path, verify=verify)
        if verify and description.kind == "sparse checkpoint":
            _restore(path, description)
        return [description]
    from ovstrans.errors import InputError

    raise InputError(
        f"{path}: not a file that ovstrans knows; give a mask, checkpoint or weights (.safetensors), "
        "an alpha file or report (.json), or a run folder"
    )


def _restore(path: Path, description: Description) -> None:
    """Verify that the framework a checkpoint names takes its tensors."""
    from ovstrans.checkpoints.file import load_checkpoint
    from ovstrans.errors import InputError
    from ovstrans.frameworks.registry import restore

    checkpoint = load_checkpoint(path)
    try:
        restore(checkpoint)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    description.checks.append(f"{checkpoint.framework} can be built from it")


def _json_file(path: Path, verify: bool) -> list[Description]:
    from ovstrans import files
    from ovstrans.errors import InputError
    from ovstrans.interop.describe import Description

    value = files.read_json(path)
    schema = value.get("schema") if isinstance(value, dict) else None
    if schema == "ovstrans.alpha/1":
        return [_alpha(path, verify)]
    if schema in ("ovstrans.report/1", "ovstrans.reports/1"):
        return [_report(path, value)]
    if not isinstance(schema, str) or not schema.startswith("ovstrans."):
        raise InputError(f"{path}: JSON, but not of ovstrans (schema {schema!r}); give an alpha file or a report")
    facts = {key: entry for key, entry in value.items() if not isinstance(entry, (dict, list))}
    return [Description(str(path), schema.removeprefix("ovstrans."), facts, checks=["structure"])]


def _alpha(path: Path, verify: bool) -> Description:
    """An alpha file; verified, its plan is made again from its alphas."""
    from ovstrans.errors import CheckFailed
    from ovstrans.interop.describe import Description, at_hand
    from ovstrans.spectrum.file import load_analysis
    from ovstrans.spectrum.plan import make_plan

    analysis = load_analysis(path)
    plan, frozen = analysis.default_plan, set(analysis.default_plan.frozen)
    facts = {
        "model": analysis.model,
        "pretrained": analysis.pretrained,
        "weights_sha256": analysis.weights_sha256,
        "settings": analysis.settings,
        "freeze_rule": plan.rule,
        "threshold": plan.threshold,
        "frozen": f"{len(plan.frozen)} of {len(analysis.layers)} layers",
    }
    columns = ["layer", "shape", "eigenvalues", "alpha", "D", "frozen", "warning"]
    rows = [
        [row.name, list(row.shape), row.num_eigenvalues, row.alpha, row.D, row.name in frozen, row.warning]
        for row in analysis.layers
    ]
    checks = ["structure", "no NaN or infinity"]
    if verify:
        alphas = {name: analysis.alphas[name] for name in analysis.candidates}
        again = make_plan(alphas, plan.rule, seed=int(analysis.settings.get("seed") or 0))
        if set(again.frozen) != frozen:
            name = min(set(again.frozen) ^ frozen)
            raise CheckFailed(f"{path}: rule {plan.rule} and its alphas do not give its plan (first: {name})")
        checks.append("plan follows from the alphas")
        same = at_hand(analysis.model, analysis.pretrained) == analysis.weights_sha256
        origin = f"{analysis.model} {analysis.pretrained}".strip() or "an unnamed model"
        checks.append(f"hash is that of {origin} here" if same else f"other weights than those of {origin} here")
    return Description(str(path), "alpha file", facts, columns, rows, checks)


def _report(path: Path, value: dict[str, Any]) -> Description:
    """One report or several, as `bench` shows them."""
    from ovstrans.errors import InputError
    from ovstrans.interop.describe import Description
    from ovstrans.reports.tables import rows as report_rows

    try:
        reports = value.get("reports", [value])
        columns, rows = report_rows(reports)
        first = reports[0]
        facts = {
            "targets": [report["target"]["name"] for report in reports],
            "image_size": first["flops"]["image_size"],
            "counter": first["flops"]["counter"],
            "datasets": sorted({name for report in reports for name in report["datasets"]}),
            "environment": first["environment"],
        }
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise InputError(f"{path}: not an intact report ({reason}); make it again with 'ovstrans bench'") from error
    columns = ["figure", *(f"{number} {name}".strip() for number, name in enumerate(columns[1:], 1))]
    return Description(str(path), "report", facts, columns, list(rows), ["structure"])


def _run_folder(path: Path, verify: bool) -> list[Description]:
    """A run folder, then its checkpoint and its plan."""
    from ovstrans import files
    from ovstrans.errors import InputError
    from ovstrans.interop.describe import Description
    from ovstrans.recipes.load import flatten, load_recipe

    recipe, checkpoint, alpha = (path / name for name in ("recipe.toml", "checkpoint.safetensors", "alpha.json"))
    if not recipe.is_file():
        raise InputError(f"{path}: a folder, but not a run (no recipe.toml in it); give a file or a run folder")
    settings = load_recipe(str(recipe))
    finished = checkpoint.is_file() and not (path / "state" / "state.pt").exists()
    entries = _log_entries(path / "log.jsonl", finished)
    facts: dict[str, Any] = {
        "finished": finished,
        "steps_logged": len(entries),
        **({"last_step": entries[-1]} if entries else {}),
        "recipe": flatten(settings),
    }
    checks = [f"{name} is readable" for name in _RUN_FILES if (path / name).is_file()]
    if (path / "environment.json").is_file():
        facts["environment"] = files.read_json(path / "environment.json")
    found = [Description(str(path), "run folder", facts, checks=checks)]
    for artefact in (checkpoint, alpha):
        if artefact.is_file():
            found += describe(artefact, verify=verify)
    return found


def _log_entries(path: Path, finished: bool) -> list[dict[str, Any]]:
    """The log's lines; the last one may be cut short while a run is not finished."""
    from ovstrans.errors import InputError

    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    entries = []
    for number, line in enumerate(lines, 1):
        try:
            entries.append(json_module.loads(line))
        except json_module.JSONDecodeError as error:
            if number == len(lines) and not finished:
                break
            raise InputError(f"{path}: line {number} is not JSON ({error}); the log is damaged") from error
    return entries


def _show(description: Description) -> None:
    from ovstrans import console

    lines = [f"{description.path}: {description.kind}"]
    facts = {label.replace("_", " "): value for label, value in description.facts.items()}
    facts["intact"] = "; ".join(description.checks)
    width = max(len(label) for label in facts)
    lines += [f"  {label:<{width}}  {_text(value)}" for label, value in facts.items()]
    console.show("\n".join(lines))
    if description.rows:
        rows = [
            [_cell(label, value) for label, value in zip(description.columns, row, strict=True)]
            for row in description.rows
        ]
        console.table("", description.columns, rows)


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(entry)}" for key, entry in value.items()) or "-"
    if isinstance(value, list):
        return ", ".join(map(_text, value)) or "-"
    if isinstance(value, bool) or value is None or value == "":
        return {True: "yes", False: "no"}.get(value, "-")
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _cell(label: str, value: Any) -> str:
    if label == "shape":
        return "x".join(map(str, value))
    if label == "density":
        return f"{value:.2%}"
    return _text(value)
