"""The alpha file: an analysis with its freeze plan as JSON ("ovstrans.alpha/1").

    {"schema", "model", "pretrained", "weights_sha256", "settings", "created_by",
     "layers": [{"name", "shape", "num_eigenvalues", "alpha", ...}],
     "plan": {"rule", "threshold", "frozen": [layer names]}}

A missing value is null, never NaN. A plan without the analysis that it came from is a file of its own
("ovstrans.plan/1"): {"schema", "rule", "threshold", "frozen"}.
"""

from __future__ import annotations

import math
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from ovstrans import files
from ovstrans.clip.layers import plan_layers
from ovstrans.errors import InputError
from ovstrans.file_kinds import recognize, refusal
from ovstrans.spectrum.analysis import Analysis, LayerAlpha
from ovstrans.spectrum.plan import FreezePlan
from ovstrans.version import __version__

SCHEMA = "ovstrans.alpha/1"
"""Schema name of the alpha file."""

PLAN_SCHEMA = "ovstrans.plan/1"
"""Schema name of the file of a plan alone."""

_COUNTS = ("num_eigenvalues", "params", "n_tail")
_REQUIRED = ("name", "shape", "num_eigenvalues", "params")
_AGAIN = "make the file again with `ovstrans analyze`"


def analysis_json(analysis: Analysis) -> dict[str, Any]:
    """Return an analysis as plain values, as the file holds them."""
    return {
        "schema": SCHEMA,
        "model": analysis.model,
        "pretrained": analysis.pretrained,
        "weights_sha256": analysis.weights_sha256,
        "settings": analysis.settings,
        "created_by": f"ovstrans {__version__}",
        "layers": [{key: _plain(value) for key, value in asdict(layer).items()} for layer in analysis.layers],
        "plan": _plan_json(analysis.default_plan),
    }


def save_analysis(path: Path | str, analysis: Analysis) -> None:
    """Write the alpha file atomically."""
    files.write_json(path, analysis_json(analysis))


def load_analysis(path: Path | str) -> Analysis:
    """Read an alpha file. The spectra are not in it.

    Raises:
        InputError: The file is missing or damaged; the entry is named.
    """
    value = files.read_json(path, SCHEMA)
    try:
        layers = [_layer(entry) for entry in value["layers"]]
        plan = _plan(value["plan"])
        model, pretrained, sha256 = (_text(value[key], key) for key in ("model", "pretrained", "weights_sha256"))
        settings = value["settings"]
        if not isinstance(settings, dict):
            raise ValueError("settings is no object")
    except KeyError as error:
        raise InputError(f"{path}: entry {error} is missing; {_AGAIN}") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: {error}; {_AGAIN}") from error
    choices = plan_layers({layer.name: layer.shape for layer in layers})
    unknown = set(plan.frozen) - {layer.name for layer in layers} - set(choices)
    if unknown:
        raise InputError(f"{path}: the plan freezes {min(unknown)!r}, which is none of its layers")
    return Analysis(model, pretrained, sha256, settings, layers, plan, tuple(choices))


def save_plan(path: Path | str, plan: FreezePlan) -> None:
    """Write the file of a plan alone."""
    files.write_json(path, {"schema": PLAN_SCHEMA, **_plan_json(plan)})


def load_plan(path: Path | str) -> FreezePlan:
    """Read the freeze plan of an alpha file, or the file of a plan alone.

    Raises:
        InputError: The file is missing or damaged; the entry is named.
    """
    kind = recognize(files.existing_file(path))
    if kind is not None and kind.remedy and kind.format not in (SCHEMA, PLAN_SCHEMA) and "damaged" not in kind.name:
        raise InputError(refusal(path, "a freeze plan"))
    value = files.read_json(path)
    if not isinstance(value, dict) or value.get("schema") != PLAN_SCHEMA:
        return load_analysis(path).default_plan
    try:
        return _plan(value)
    except KeyError as error:
        raise InputError(f"{path}: entry {error} is missing") from error
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: {error}") from error


def _plan_json(plan: FreezePlan) -> dict[str, Any]:
    return {"rule": plan.rule, "threshold": _plain(plan.threshold), "frozen": list(plan.frozen)}


def _plain(value: Any) -> Any:
    """Return a value as JSON can hold it: a tuple as a list, a number that is not finite as null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return list(value) if isinstance(value, tuple) else value


def _layer(entry: dict[str, Any]) -> LayerAlpha:
    values: dict[str, Any] = {}
    for key in (item.name for item in fields(LayerAlpha)):
        found = entry[key]
        if found is None and key not in _REQUIRED:
            values[key] = None
        elif key in ("name", "warning"):
            values[key] = _text(found, key)
        elif key == "shape":
            values[key] = tuple(_number(side, key, whole=True) for side in found)
        else:
            values[key] = _number(found, key, whole=key in _COUNTS)
    return LayerAlpha(**values)


def _plan(entry: dict[str, Any]) -> FreezePlan:
    threshold = entry["threshold"]
    if not isinstance(entry["frozen"], list):
        raise ValueError("plan.frozen is no list of layer names")
    return FreezePlan(
        rule=_text(entry["rule"], "rule"),
        threshold=None if threshold is None else _number(threshold, "threshold"),
        frozen=tuple(_text(name, "frozen") for name in entry["frozen"]),
    )


def _text(value: Any, key: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{key} is {value!r}, a text is needed")
    return value


def _number(value: Any, key: str, *, whole: bool = False) -> Any:
    kinds = int if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not math.isfinite(value):
        raise ValueError(f"{key} is {value!r}, a number is needed")
    return value
