"""The report: written and read again, and what it shows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ovstrans.clip.layers import backbone_layers
from ovstrans.costs.target import Target, count_costs, load_target
from ovstrans.costs.training_step import TrainingStep, count_executed_step
from ovstrans.errors import InputError
from ovstrans.masks.mask import Mask
from ovstrans.reports.report import Report, load_reports, reports_to_json, shorten_names

SIZE = (32, 32)


def planned(*settings: str) -> Target:
    """Return a recipe's target whose plan freezes the first half of the backbone."""
    target = load_target("deeplabv3-mini", settings=settings)
    layers = list(backbone_layers(target.module.backbone))  # type: ignore[arg-type]
    target.frozen = tuple(layers[: len(layers) // 2])
    return target


def make_report(target: Target, *, per_layer: bool = True) -> Report:
    costs = count_costs(target, SIZE)
    return Report(target.describe(), {"device": "cpu"}, costs if per_layer else costs.without_layers())


@pytest.mark.parametrize("setting", ["training.norms=frozen", "training.freeze_norms=true"])
def test_frozen_norms_of_the_recipe_end_the_input_gradients_of_a_frozen_prefix(setting: str) -> None:
    def executed(*settings: str) -> TrainingStep:
        target = planned("training.norms=train", "training.freeze_norms=false", *settings)
        return count_costs(target, SIZE).training.executed

    trains, frozen = executed(), executed(setting)
    assert frozen.components["trunk"].input_gradient < trains.components["trunk"].input_gradient
    assert frozen.weight_gradient == trains.weight_gradient and frozen.forward == trains.forward
    target = planned()
    direct = count_executed_step(target.module, SIZE, frozen=target.frozen, norms="frozen")
    assert frozen.total == direct.total


def test_matching_is_counted_with_a_recipe_or_without() -> None:
    """Of 3 + 1 predictions, 5 queries, 7 points: three products each (inside, outside, dice)."""
    options = ("queries=5", "points=7", "decoder_layers=3")
    for name in ("fcclip", "fcclip-mini"):
        target = load_target(name, settings=[f"model.{option}" for option in options])
        training = count_costs(target, SIZE).training
        assert training.matching == 4 * 3 * 5 * 7
        assert training.to_json()["matching"] == {"per": "segment", "macs": 4 * 3 * 5 * 7}
    assert count_costs(load_target("deeplabv3"), SIZE).training.to_json()["matching"] is None


@pytest.mark.parametrize("per_layer", [False, True])
@pytest.mark.parametrize("name", ["deeplabv3-mini", "fcclip-mini", "RN-mini"])
def test_what_is_written_is_read(name: str, per_layer: bool, tmp_path: Path) -> None:
    target = planned() if name == "deeplabv3-mini" else load_target(name)
    if name == "RN-mini":
        shapes = {key.removeprefix("backbone."): p.shape for key, p in target.module.named_parameters() if p.dim() == 4}
        target.mask = Mask({key: torch.rand(shape) < 0.5 for key, shape in shapes.items()}, "RN-mini", method="random")
    report = make_report(target, per_layer=per_layer)
    report.failed["camvid:val"] = "broken"
    path = report.save(tmp_path / "report.json")
    (read,) = load_reports(path)
    assert read.to_json() == report.to_json() == json.loads(path.read_text())
    assert ("layers" in read.to_json()["flops"]) == per_layer == (read.flops.layers is not None)
    assert ("layers" in read.to_json()["training"]["sparse"]) == per_layer
    assert read.target == report.target and read.params == report.params and read.failed == {"camvid:val": "broken"}
    with pytest.raises(InputError, match="exists already"):
        report.save(path)
    report.save(path, force=True)


def test_several_reports_in_one_file(tmp_path: Path) -> None:
    reports = [make_report(load_target(name), per_layer=False) for name in ("RN-mini", "deeplabv3")]
    (tmp_path / "two.json").write_text(json.dumps(reports_to_json(reports)))
    assert [report.name for report in load_reports(tmp_path / "two.json")] == ["RN-mini", "deeplabv3"]
    assert reports_to_json(reports)["schema"] == "ovstrans.reports/1"
    assert reports_to_json(reports[:1]) == reports[0].to_json()


def test_a_report_shows_itself_in_a_few_lines() -> None:
    report = make_report(load_target("RN-mini"))
    text = repr(report)
    assert text.startswith("Report of RN-mini\n") and text.count("\n") <= 4
    assert "GMAC dense" in text and "in all" in text
    assert "| dense MACs " in report._repr_markdown_()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"schema": "other"}, "is no report"),
        ({"schema": "ovstrans.reports/1", "reports": []}, "is no report"),
        ({"schema": "ovstrans.report/1"}, "not an intact report .KeyError: 'params'.; make it again"),
        ({"schema": "ovstrans.reports/1", "reports": [1]}, "not an intact report"),
        ([1], "is no report"),
    ],
)
def test_other_files_are_refused(content: object, message: str, tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=message):
        load_reports(tmp_path / "other.json")


def test_names_are_shortened_as_long_as_they_differ() -> None:
    assert shorten_names(["runs/a", "runs/b/checkpoint.safetensors", "RN50"]) == ["a", "b", "RN50"]
    assert shorten_names(["x/a", "y/a"]) == ["x/a", "y/a"]
