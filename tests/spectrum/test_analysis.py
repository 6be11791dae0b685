"""The analysis of a model: what it takes, what it lists, plans and leaves alone."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import ovstrans
from ovstrans import files
from ovstrans.checkpoints.file import save_checkpoint
from ovstrans.clip.load import Clip
from ovstrans.errors import InputError, MismatchError
from ovstrans.masks.file import save_mask
from ovstrans.masks.mask import Mask
from ovstrans.progress import Progress
from ovstrans.spectrum.analysis import Analysis, analyze, describe_layer, layer_weights
from ovstrans.spectrum.esd import Cut
from ovstrans.spectrum.file import load_analysis
from tests.checkpoints.dummies import make_checkpoint
from tests.spectrum.conftest import FLAT, ZERO, convs
from tests.spectrum.reference import brute_force, svd_spectrum


@pytest.fixture(scope="module")
def analysis(clip: Clip) -> Analysis:
    return analyze(clip)


def test_every_convolution_and_linear_layer_is_listed_in_order(clip: Clip, analysis: Analysis) -> None:
    names = [row.name for row in analysis.layers]
    expected = [name for name, module in clip.visual.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    assert names == expected == list(layer_weights(clip))
    assert names[0] == "conv1" and "layer2.0.downsample.0" in names and "attnpool.c_proj" in names


def test_rows_agree_with_a_brute_force_reference(clip: Clip, analysis: Analysis) -> None:
    weights = {
        name: module.weight.detach() for name, module in clip.visual.named_modules() if hasattr(module, "weight")
    }
    for row in analysis.layers:
        if row.name in (ZERO, FLAT):
            continue
        weight = weights[row.name]
        exact = svd_spectrum(weight, 0.5 if weight.ndim == 4 else 1.0)
        start, alpha, distance = brute_force(exact[exact > 1e-5]) or (0, 0.0, 0.0)
        values = exact[exact > 1e-5]
        assert row.alpha == pytest.approx(alpha, rel=1e-6), row.name
        assert row.xmin == pytest.approx(values[start], rel=1e-9)
        assert pytest.approx(distance, rel=1e-6) == row.D
        assert row.n_tail == len(values) - start
        assert row.sigma == pytest.approx((alpha - 1) / row.n_tail**0.5)
        assert row.num_eigenvalues == len(exact)
        assert row.params == weight.numel() and row.shape == tuple(weight.shape)


def test_the_plan_ranges_over_convolutions_with_an_alpha(clip: Clip, analysis: Analysis) -> None:
    trunk = {name for name, _ in convs(clip.visual)}
    usable = {row.name: row.alpha for row in analysis.layers if row.name in trunk and row.alpha is not None}
    assert set(usable) == trunk - {ZERO, FLAT}
    median = float(np.median(list(usable.values())))
    assert analysis.default_plan.threshold == pytest.approx(median)
    assert set(analysis.default_plan.frozen) == {name for name, alpha in usable.items() if alpha < median}
    everything = analyze(clip, freeze="threshold:1e9").plan().frozen
    assert set(everything) == set(usable)


def test_degenerate_layers_say_why(analysis: Analysis) -> None:
    rows = {row.name: row for row in analysis.layers}
    assert rows[ZERO].alpha is None and "all eigenvalues are zero" in (rows[ZERO].warning or "")
    assert rows[ZERO].log_norm is None
    assert rows[FLAT].alpha is None and "equal" in (rows[FLAT].warning or "")
    assert rows[FLAT].stable_rank == pytest.approx(rows[FLAT].num_eigenvalues, rel=1e-5)


def test_few_eigenvalues_are_flagged(analysis: Analysis) -> None:
    for row in analysis.layers:
        assert ("few eigenvalues" in (row.warning or "")) == (row.num_eigenvalues < 50), row.name
    assert {row.num_eigenvalues < 50 for row in analysis.layers} == {True, False}


def test_it_takes_a_clip_its_model_its_tower_a_framework_and_wrappers(clip: Clip, analysis: Analysis) -> None:
    framework = nn.Module()
    framework.backbone = clip.visual
    framework.head = nn.Conv2d(3, 3, 1)
    wrapped = nn.Module()
    wrapped.module = framework
    for model in (clip.model, clip.visual, framework, wrapped):
        found = ovstrans.analyze(model)
        assert found.layers == analysis.layers
        assert found.weights_sha256 == clip.weights_sha256
    assert (analysis.model, analysis.weights_sha256) == ("RN-mini", clip.weights_sha256)


def test_it_takes_a_checkpoint_even_without_an_attention_pool(clip: Clip, analysis: Analysis) -> None:
    state = {
        f"backbone.{key}": value for key, value in clip.visual.state_dict().items() if not key.startswith("attnpool")
    }
    checkpoint = make_checkpoint(masked=False, state={**state, "head.weight": torch.ones(2, 2)})
    checkpoint.clip = {**checkpoint.clip, "model": "RN-mini"}
    found = analyze(checkpoint)
    assert found.layers == [row for row in analysis.layers if not row.name.startswith("attnpool")]
    assert found.default_plan == analysis.default_plan
    assert found.model == "RN-mini"
    assert list(layer_weights(checkpoint)) == [row.name for row in found.layers]


def test_a_checkpoint_of_another_architecture_is_refused(clip: Clip) -> None:
    state = {"backbone.layer1.0.conv1.weight": torch.ones(5, 5, 1, 1)}
    checkpoint = make_checkpoint(masked=False, state=state)
    checkpoint.clip = {**checkpoint.clip, "model": "RN-mini"}
    with pytest.raises(MismatchError, match=r"layer1\.0\.conv1\.weight has shape \[5, 5, 1, 1\]"):
        analyze(checkpoint)


def test_a_mask_is_analysed_and_the_model_left_alone(clip: Clip, analysis: Analysis, mask: Mask) -> None:
    before = copy.deepcopy(clip.visual.state_dict())
    found = analyze(clip, mask=mask)
    after = clip.visual.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert found.weights_sha256 == analysis.weights_sha256
    assert found.settings["mask"] == {"method": "random", "sparsity": 0.5, "weights_sha256": "f" * 64}
    name = "layer4.0.conv2"
    weight = clip.visual.get_submodule(name).weight.detach().clone()
    weight[1::2] = 0
    assert found.spectra[name] == pytest.approx(svd_spectrum(weight, 0.5), rel=1e-8, abs=1e-12)
    row = next(row for row in found.layers if row.name == name)
    assert "864 eigenvalues at or below the cut" in (row.warning or "")


def test_a_mask_of_another_architecture_is_refused(clip: Clip) -> None:
    with pytest.raises(MismatchError, match=r"layer9"):
        analyze(clip, mask=Mask({"layer9.0.conv1.weight": torch.ones(2, 2, 1, 1, dtype=torch.bool)}, model="other"))


def test_settings_record_how_it_was_found(clip: Clip) -> None:
    found = analyze(clip, xmin="mid", relative_cut=1e-3, min_tail=5, scaling="fan", seed=7, freeze="random:3")
    assert found.settings == {
        "xmin": "mid",
        "scaling": "fan",
        "cut": None,
        "relative_cut": 1e-3,
        "min_tail": 5,
        "seed": 7,
        "mask": None,
    }
    assert len(found.default_plan.frozen) == 3
    assert analyze(clip, freeze="random:3", seed=8).plan().frozen != found.default_plan.frozen


def test_scaling_changes_the_cut_but_not_alpha_where_nothing_is_cut(clip: Clip, analysis: Analysis) -> None:
    doubled = {row.name: row for row in analyze(clip, scaling="none").layers}
    for row in analysis.layers:
        factor = 2.0 if len(row.shape) == 4 else 1.0
        if row.alpha is not None and row.xmin is not None and row.num_eigenvalues < 200:
            assert doubled[row.name].xmin == pytest.approx(factor * row.xmin)
            assert doubled[row.name].alpha == pytest.approx(row.alpha)


def test_alphas_of_a_layer_made_from_a_power_law() -> None:
    generator = np.random.default_rng(0)
    values = np.sort((1 - generator.random(800)) ** (-1 / (3.0 - 1)))
    basis = [np.linalg.qr(generator.normal(size=(800, 800)))[0] for _ in range(2)]
    layer = nn.Linear(800, 800, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(basis[0] * np.sqrt(values) @ basis[1]))
    row = analyze(nn.Sequential(layer)).layers[0]
    assert row.name == "0" and row.sigma is not None
    assert row.alpha == pytest.approx(3.0, abs=4 * row.sigma)


def test_weights_that_are_not_finite_name_their_layer(clip: Clip) -> None:
    encoder = copy.deepcopy(clip.visual)
    with torch.no_grad():
        encoder.layer3[0].conv2.weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(InputError, match=r"layer3\.0\.conv2: 1 weights are NaN"):
        analyze(encoder)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"xmin": "best"}, "`xmin=best`"),
        ({"freeze": "mean"}, "`freeze=mean`"),
        ({"freeze": "count:99"}, "only 35 layers"),
        ({"cut": -1.0}, "`cut=-1.0`"),
        ({"min_tail": 1}, "`min_tail=1`"),
        ({"scaling": "half"}, "`scaling=half`"),
    ],
)
def test_options_out_of_range_are_refused(clip: Clip, options: dict[str, object], match: str) -> None:
    with pytest.raises(InputError, match=match):
        analyze(clip, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("model", "match"), [(nn.ReLU(), "ReLU: has no convolution"), (3, "int is no model"), ("RN51", "RN51")]
)
def test_what_has_no_layers_is_refused(model: object, match: str) -> None:
    with pytest.raises(InputError, match=match):
        analyze(model)  # type: ignore[arg-type]


def test_a_layer_under_the_cut_is_said_to_be() -> None:
    row = describe_layer("tiny", (4, 4), np.array([1e-9, 2e-9, 5e-9, 6e-8]), Cut())
    assert row.alpha is not None and "no eigenvalue above the cut" in (row.warning or "")


def test_a_plan_of_another_rule_is_made_from_the_same_alphas(clip: Clip, analysis: Analysis) -> None:
    assert analysis.plan() == analysis.plan("median") == analysis.default_plan
    assert analysis.plan("count:5") == analyze(clip, freeze="count:5").plan()
    seeded = analyze(clip, seed=3)
    assert seeded.plan("random:4") == analyze(clip, freeze="random:4", seed=3).plan()
    assert seeded.plan("random:4") != analysis.plan("random:4")
    with pytest.raises(InputError, match="no such rule"):
        analysis.plan("mean")


def test_progress_counts_the_layers(clip: Clip) -> None:
    seen: list[Progress] = []
    analysis = analyze(clip, progress=seen.append)
    assert [each.done for each in seen] == list(range(len(analysis.layers) + 1))
    assert {(each.task, each.total, each.unit) for each in seen} == {("spectra", len(analysis.layers), "layers")}


def test_it_prints_in_two_lines_and_shows_a_picture(analysis: Analysis) -> None:
    frozen = len(analysis.default_plan.frozen)
    first, second = repr(analysis).splitlines()
    assert first.startswith("Analysis of RN-mini: 41 layers, alpha ") and first.endswith("2 without alpha")
    assert second.startswith("plan median, alpha ") and second.endswith(f": {frozen} of 37 layers frozen")
    assert f"{frozen} layers frozen" in repr(analysis.default_plan)
    assert analysis._repr_png_().startswith(b"\x89PNG")


def test_spectra_are_drawn_by_pattern(analysis: Analysis, tmp_path: Path) -> None:
    axes = analysis.plot_spectra("layer1.*.conv2,conv1").axes
    titles = [each.get_title(loc="left").removesuffix(" (frozen)") for each in axes if each.get_visible()]
    assert titles == ["conv1", *(name for name in analysis.alphas if name.startswith("layer1.") and "conv2" in name)]
    with pytest.raises(InputError, match=r"`plot_esd=conv9`: no such layer; did you mean 'conv"):
        analysis.plot_spectra(["conv9"])
    analysis.save(tmp_path / "alpha.json")
    with pytest.raises(InputError, match="read from a file"):
        load_analysis(tmp_path / "alpha.json").plot_spectra("conv1")


def test_a_target_is_given_by_name_file_or_folder(clip: Clip, analysis: Analysis, mask: Mask, tmp_path: Path) -> None:
    weights, run = tmp_path / "clip.safetensors", tmp_path / "run"
    files.write_tensors(weights, clip.model.state_dict(), {})
    assert analyze("RN-mini", pretrained=weights).layers == analysis.layers
    state = {f"backbone.{key}": value for key, value in clip.visual.state_dict().items()}
    checkpoint = make_checkpoint(masked=False, state=state)
    checkpoint.clip = {**checkpoint.clip, "model": "RN-mini"}
    save_checkpoint(run / "checkpoint.safetensors", checkpoint)
    for target in (run, str(run), run / "checkpoint.safetensors", checkpoint):
        assert analyze(target).layers == analysis.layers
    save_mask(tmp_path / "mask.safetensors", mask)
    assert analyze(clip, mask=tmp_path / "mask.safetensors").layers == analyze(clip, mask=mask).layers


@pytest.mark.parametrize("target", ["model", "none.safetensors"])
def test_weights_are_given_with_a_model_by_name_alone(clip: Clip, target: str) -> None:
    with pytest.raises(InputError, match="leave out `pretrained`"):
        analyze(clip if target == "model" else target, pretrained="openai")


def test_missing_files_and_other_files_are_refused(tmp_path: Path, clip: Clip) -> None:
    with pytest.raises(FileNotFoundError, match="no such file"):
        analyze(tmp_path / "none.safetensors")
    with pytest.raises(InputError, match="no checkpoint.safetensors in this folder"):
        analyze(tmp_path)
    files.write_tensors(tmp_path / "clip.safetensors", clip.visual.state_dict(), {})
    with pytest.raises(InputError, match="not a sparse checkpoint; give CLIP weights"):
        analyze(tmp_path / "clip.safetensors")


def test_the_hash_is_that_of_the_weights_analysed(clip: Clip) -> None:
    changed = copy.deepcopy(clip)
    with torch.no_grad():
        changed.visual.conv1.weight.mul_(2)
    assert analyze(changed).weights_sha256 not in ("", clip.weights_sha256)
