"""`inspect` as a function of the library."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import ovstrans
from ovstrans.checkpoints.file import save_checkpoint
from ovstrans.errors import MissingFileError
from ovstrans.interop.describe import format_value
from ovstrans.masks.file import save_mask
from tests.checkpoints.dummies import make_checkpoint
from tests.masks.dummies import make_mask


def test_description_is_readable(tmp_path: Path) -> None:
    save_mask(tmp_path / "m.safetensors", make_mask(recipe={f"key{number}": number for number in range(99)}))
    found = ovstrans.inspect(str(tmp_path / "m.safetensors"))
    assert all(len(line) <= 120 for line in repr(found).splitlines()[1:]) and len(repr(found).splitlines()) < 15
    assert "a table of 4 rows: layer, shape" in repr(found)
    assert "key98 98" in str(found) and "key98" not in repr(found)


def test_run_has_parts(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text("[training]\nsteps = 2\n")
    save_checkpoint(tmp_path / "checkpoint.safetensors", make_checkpoint())
    found = ovstrans.inspect(tmp_path)
    assert found.kind == "run folder" and found.facts["finished"] and found.facts["recipe"] == {"training.steps": 2}
    assert [part.kind for part in found.parts] == ["sparse checkpoint"]
    assert [part.kind for part in found.flatten()] == ["run folder", "sparse checkpoint"]
    assert "sparse checkpoint" in repr(found) and "parts" not in found.to_json()
    json.dumps(found.to_json(), allow_nan=False)
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "state.pt").write_text("")
    assert not ovstrans.inspect(tmp_path).facts["finished"]


def test_report_with_a_figure_that_one_target_lacks(tmp_path: Path) -> None:
    def report(name: str, **datasets: object) -> dict[str, object]:
        counts = {"image_size": [64, 64], "counter": "torch", "dense": 5, "effective": 4}
        params = {"total": 9, "nonzero": 8, "trainable": 7}
        about = {"target": {"name": name}, "environment": {}, "params": params, "flops": counts, "training": None}
        return {**about, "datasets": datasets}

    reports = [report("a", d={"mIoU": 25.0}), report("b")]
    (tmp_path / "r.json").write_text(json.dumps({"schema": "ovstrans.reports/1", "reports": reports}))
    found = ovstrans.inspect(tmp_path / "r.json")
    assert found.columns == ["figure", "unit", "1 a", "2 b"] and found.rows[-1] == ["d mIoU", "%", 25.0, None]
    assert ["effective MACs", "MAC", 4, 4] in found.rows and len(found.rows) == 6


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError):
        ovstrans.inspect(tmp_path / "none.safetensors")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1234567, "1,234,567"),
        (0.123456789, "0.123457"),
        (True, "yes"),
        (False, "no"),
        (None, "-"),
        ("", "-"),
        ([], "-"),
        ({}, "-"),
        ({"a": [1, 2.5], "b": {"c": True}}, "a 1, 2.5, b c yes"),
        (0, "0"),
        (1, "1"),
    ],
)
def test_plain_values_as_text(value: object, text: str) -> None:
    assert format_value(value) == text
