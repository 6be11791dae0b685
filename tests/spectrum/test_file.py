"""The alpha file, read with json alone, read back, and damaged."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ovstrans.clip.load import Clip
from ovstrans.errors import InputError
from ovstrans.spectrum.analysis import Analysis, analyze
from ovstrans.spectrum.file import load_analysis, load_plan, save_analysis
from tests.spectrum.conftest import FLAT, ZERO

FIELDS = [
    *("name", "shape", "num_eigenvalues", "alpha", "xmin", "D", "n_tail", "sigma", "alpha_weighted", "log_alpha_norm"),
    *("log_norm", "log_spectral_norm", "stable_rank", "entropy", "params", "warning"),
]


@pytest.fixture(scope="module")
def analysis(clip: Clip) -> Analysis:
    return analyze(clip)


@pytest.fixture
def path(tmp_path: Path, analysis: Analysis) -> Path:
    save_analysis(tmp_path / "alpha.json", analysis)
    return tmp_path / "alpha.json"


def _strict(text: str) -> Any:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_json_alone_reads_it(path: Path, analysis: Analysis, clip: Clip) -> None:
    value = _strict(path.read_text())
    assert list(value) == [
        "schema", "model", "pretrained", "weights_sha256", "settings", "created_by", "layers", "plan",
    ]  # fmt: skip
    assert value["schema"] == "ovstrans.alpha/1"
    assert value["weights_sha256"] == clip.weights_sha256 and value["model"] == "RN-mini"
    assert value["settings"]["xmin"] == "ks" and value["settings"]["cut"] == 1e-5
    assert all(list(layer) == FIELDS for layer in value["layers"])
    first = value["layers"][0]
    assert (first["name"], first["shape"], first["num_eigenvalues"]) == ("conv1", [12, 3, 3, 3], 27)
    assert first["alpha"] == analysis.alphas["conv1"]
    assert value["plan"]["rule"] == "median"
    alphas = {layer["name"]: layer["alpha"] for layer in value["layers"]}
    assert value["plan"]["frozen"] == list(analysis.default_plan.frozen)
    assert all(alphas[name] < value["plan"]["threshold"] for name in value["plan"]["frozen"])


def test_missing_values_are_null_with_a_reason(path: Path) -> None:
    layers = {layer["name"]: layer for layer in _strict(path.read_text())["layers"]}
    for name in (ZERO, FLAT):
        assert all(layers[name][key] is None for key in ("alpha", "xmin", "D", "n_tail", "sigma", "alpha_weighted"))
        assert layers[name]["warning"].startswith("no alpha: ")


def test_numbers_that_are_not_finite_become_null(tmp_path: Path, analysis: Analysis) -> None:
    layers = [replace(analysis.layers[0], alpha=float("inf"), D=float("nan")), *analysis.layers[1:]]
    save_analysis(tmp_path / "a.json", replace(analysis, layers=layers))
    first = _strict((tmp_path / "a.json").read_text())["layers"][0]
    assert first["alpha"] is None and first["D"] is None


def test_it_reads_back_what_it_wrote(path: Path, analysis: Analysis) -> None:
    found = load_analysis(path)
    assert (
        found.layers == analysis.layers
        and found.default_plan == analysis.default_plan
        and found.settings == analysis.settings
    )
    assert load_plan(path).frozen == analysis.default_plan.frozen


def test_the_same_analysis_gives_the_same_bytes(path: Path, clip: Clip, tmp_path: Path) -> None:
    save_analysis(tmp_path / "again.json", analyze(clip, workers=2))
    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda value: value.update(schema="ovstrans.alpha/9"), "'ovstrans.alpha/1' is needed"),
        (lambda value: value.pop("plan"), "'plan' is missing"),
        (lambda value: value.pop("layers"), "'layers' is missing"),
        (lambda value: value["plan"].pop("frozen"), "'frozen' is missing"),
        (lambda value: value["plan"].update(frozen="conv1"), "no list of layer names"),
        (
            lambda value: value["plan"].update(frozen=["layer9.0.conv1"]),
            "'layer9.0.conv1', which is none of its layers",
        ),
        (lambda value: value["plan"].update(frozen=[3]), "a text is needed"),
        (lambda value: value["plan"].update(threshold="3"), "threshold is '3'"),
        (lambda value: value["layers"][0].pop("alpha"), "'alpha' is missing"),
        (lambda value: value["layers"][0].update(alpha=float("nan")), "NaN is no number of JSON"),
        (lambda value: value["layers"][0].update(alpha="nan"), "alpha is 'nan'"),
        (lambda value: value["layers"][0].update(params=None), "params is None"),
        (lambda value: value["layers"][0].update(n_tail=2.5), "n_tail is 2.5"),
        (lambda value: value["layers"][0].update(shape=7), "not iterable"),
        (lambda value: value.update(layers=[1]), "not subscriptable"),
        (lambda value: value.update(settings=[]), "settings"),
    ],
)
def test_damaged_files_end_in_one_line_naming_the_file(path: Path, change: Any, match: str) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))
    with pytest.raises(InputError, match=match) as error:
        load_analysis(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_truncated_and_missing_files_are_refused(path: Path) -> None:
    path.write_text(path.read_text()[:200])
    with pytest.raises(InputError, match="not valid JSON"):
        load_plan(path)
    path.unlink()
    with pytest.raises(InputError, match="no such file"):
        load_plan(path)


def test_the_convolutions_of_a_convnext_are_known_without_a_mark(tmp_path: Path, analysis: Analysis) -> None:
    """Its pointwise convolutions are linear layers, and its depthwise ones are matrices."""
    names = ["trunk.stem.0", "trunk.stages.0.blocks.0.conv_dw", "trunk.stages.0.blocks.0.mlp.fc1", "head.proj"]
    shapes = [(8, 3, 4, 4), (8, 49), (32, 8), (16, 32)]
    layers = [replace(analysis.layers[0], name=name, shape=shape) for name, shape in zip(names, shapes, strict=True)]
    plan = replace(analysis.default_plan, frozen=(names[2],))
    save_analysis(tmp_path / "a.json", replace(analysis, layers=layers, default_plan=plan))
    assert load_analysis(tmp_path / "a.json").candidates == tuple(names[:3])
