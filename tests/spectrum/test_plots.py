"""Pictures: what is drawn, and that degenerate analyses can be drawn too."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ovstrans.clip.load import Clip
from ovstrans.errors import InputError
from ovstrans.figures import save_figure
from ovstrans.spectrum.analysis import Analysis, analyze
from ovstrans.spectrum.plan import FreezePlan
from ovstrans.spectrum.plots import draw_alphas, draw_spectra
from tests.spectrum.conftest import FLAT, ZERO


@pytest.fixture(scope="module")
def analysis(clip: Clip) -> Analysis:
    return analyze(clip)


def _labels(analysis: Analysis) -> list[str]:
    legend = draw_alphas(analysis).axes[0].get_legend()
    assert legend is not None
    return [text.get_text() for text in legend.get_texts()]


def test_frozen_layers_are_marked_and_counted(analysis: Analysis) -> None:
    labels = _labels(analysis)
    planned = [row for row in analysis.layers if len(row.shape) == 4 and row.alpha is not None]
    frozen = len(analysis.default_plan.frozen)
    assert f"frozen ({frozen})" in labels and f"trains ({len(planned) - frozen})" in labels
    assert "no alpha, trains (2)" in labels and "not in the plan (4)" in labels
    assert f"median: {analysis.default_plan.threshold:.3g}" in labels


def test_every_layer_has_its_name_below(analysis: Analysis) -> None:
    ticks = [tick.get_text() for tick in draw_alphas(analysis).axes[0].get_xticklabels()]
    assert ticks == [row.name for row in analysis.layers]


def test_an_outlier_does_not_flatten_the_rest(analysis: Analysis) -> None:
    layers = [replace(analysis.layers[0], alpha=500.0), *analysis.layers[1:]]
    axes = draw_alphas(replace(analysis, layers=layers)).axes[0]
    assert axes.get_ylim()[1] < 50
    assert any("500" in text.get_text() for text in axes.texts)


def test_nothing_to_plot_still_draws(analysis: Analysis) -> None:
    layers = [replace(row, alpha=None) for row in analysis.layers]
    empty = replace(analysis, layers=layers, default_plan=FreezePlan("median", None, ()))
    assert f"no alpha, trains ({len(layers)})" in _labels(empty)


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_spectra_of_any_layer_can_be_saved(analysis: Analysis, tmp_path: Path, suffix: str) -> None:
    names = ["conv1", ZERO, FLAT, "layer4.0.conv2", "attnpool.q_proj"]
    figure = draw_spectra(analysis, names)
    titles = [axes.get_title(loc="left") for axes in figure.axes if axes.get_visible()]
    assert [title.removesuffix(" (frozen)") for title in titles] == names
    save_figure(figure, tmp_path / f"esd{suffix}")
    assert (tmp_path / f"esd{suffix}").stat().st_size > 5000


def test_the_fitted_line_is_the_fitted_law(analysis: Analysis) -> None:
    row = next(row for row in analysis.layers if row.name == "layer4.0.conv2")
    assert row.alpha is not None and row.xmin is not None and row.n_tail is not None
    line = draw_spectra(analysis, [row.name]).axes[0].lines[0]
    x, y = line.get_xdata(), line.get_ydata()
    assert x[0] == pytest.approx(row.xmin)
    kept = int((analysis.spectra[row.name] > 1e-5).sum())
    # the density integrates to the tail's share of the spectrum (to infinity)
    assert y[0] * row.xmin / (row.alpha - 1) == pytest.approx(row.n_tail / kept)
    assert y[-1] / y[0] == pytest.approx((x[-1] / x[0]) ** -row.alpha)


def test_a_layer_without_a_spectrum_is_refused(analysis: Analysis) -> None:
    with pytest.raises(InputError, match="layer 'conv9'"):
        draw_spectra(analysis, ["conv9"])
