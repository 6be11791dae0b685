"""The analysis of a model: what it takes, what it lists, plans and leaves alone."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

import ovstrans
from ovstrans.clip.load import Clip
from ovstrans.errors import InputError, MismatchError
from ovstrans.masks.mask import Mask
from ovstrans.spectrum.analysis import Analysis, analyze, describe_layer, layer_weights
from ovstrans.spectrum.esd import Cut
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
    assert analysis.plan.threshold == pytest.approx(median)
    assert set(analysis.plan.frozen) == {name for name, alpha in usable.items() if alpha < median}
    everything = analyze(clip, freeze="threshold:1e9").plan.frozen
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
    assert found.plan == analysis.plan
    assert found.model == "RN-mini"
    assert list(layer_weights(checkpoint)) == [row.name for row in found.layers]


def test_a_checkpoint_of_another_architecture_is_refused(clip: Clip) -> None:
    state = {"backbone.layer1.0.conv1.weight": torch.ones(5, 5, 1, 1)}
    checkpoint = make_checkpoint(masked=False, state=state)
    checkpoint.clip = {**checkpoint.clip, "model": "RN-mini"}
    with pytest.raises(MismatchError, match=r"backbone\.layer1\.0\.conv1\.weight has shape \[5, 5, 1, 1\]"):
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
    assert len(found.plan.frozen) == 3
    assert analyze(clip, freeze="random:3", seed=8).plan.frozen != found.plan.frozen


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
        ({"xmin": "best"}, "xmin 'best'"),
        ({"freeze": "mean"}, "--freeze mean"),
        ({"freeze": "count:99"}, "only 35 layers"),
        ({"cut": -1.0}, "cut -1.0"),
        ({"min_tail": 1}, "minimum tail 1"),
        ({"scaling": "half"}, "scaling 'half'"),
    ],
)
def test_options_out_of_range_are_refused(clip: Clip, options: dict[str, object], match: str) -> None:
    with pytest.raises(InputError, match=match):
        analyze(clip, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("model", [nn.ReLU(), "RN50"])
def test_models_without_layers_are_refused(model: object) -> None:
    with pytest.raises(InputError):
        analyze(model)  # type: ignore[arg-type]


def test_a_layer_under_the_cut_is_said_to_be() -> None:
    row = describe_layer("tiny", (4, 4), np.array([1e-9, 2e-9, 5e-9, 6e-8]), Cut())
    assert row.alpha is not None and "no eigenvalue above the cut" in (row.warning or "")
