"""The analysis of a model: spectrum, power law and metrics of every layer, and the freeze plan."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ovstrans.checkpoints.file import Checkpoint
from ovstrans.checkpoints.sparse import BACKBONE
from ovstrans.clip.layers import find_image_encoder, trunk_convs, weight_matrices
from ovstrans.clip.load import Clip, create_image_encoder
from ovstrans.clip.weights import weights_sha256
from ovstrans.errors import InputError, MismatchError
from ovstrans.masks.mask import Mask
from ovstrans.spectrum import esd, metrics, powerlaw
from ovstrans.spectrum.plan import Plan, check_rule, make_plan

# A cut that drops this share of a layer's eigenvalues is worth a word in its warning.
_MUCH_CUT = 0.1


@dataclass(frozen=True)
class LayerAlpha:
    """One layer's row. None where it has no such number; `warning` then says why.

    name: see DESIGN's layer names.  shape: of the weight.  num_eigenvalues: of all kernel positions,
    before the cut.  alpha, xmin, D, n_tail, sigma: the power law, its start, its KS distance, the
    eigenvalues from xmin on, its standard error.  params: weights.  The others: see `metrics`.
    """

    name: str
    shape: tuple[int, ...]
    num_eigenvalues: int
    alpha: float | None
    xmin: float | None
    D: float | None
    n_tail: int | None
    sigma: float | None
    alpha_weighted: float | None
    log_alpha_norm: float | None
    log_norm: float | None
    log_spectral_norm: float | None
    stable_rank: float | None
    entropy: float | None
    params: int
    warning: str | None


@dataclass
class Analysis:
    """What `analyze` found; `file.save_analysis` writes all of it but the spectra.

    settings: how it was found, plain values.  layers: in the order of the tower, the attention pool's
    last.  spectra: eigenvalues of each layer, ascending (empty for an analysis read from a file).
    """

    model: str
    pretrained: str
    weights_sha256: str
    settings: dict[str, Any]
    layers: list[LayerAlpha]
    plan: Plan
    spectra: dict[str, NDArray[np.float64]] = field(default_factory=dict, repr=False)

    @property
    def alphas(self) -> dict[str, float | None]:
        """Layer name to alpha."""
        return {layer.name: layer.alpha for layer in self.layers}


def analyze(
    model: Clip | Checkpoint | nn.Module,
    *,
    xmin: str = "ks",
    freeze: str = "median",
    mask: Mask | None = None,
    scaling: str = "published",
    cut: float = esd.ABSOLUTE_CUT,
    relative_cut: float | None = None,
    min_tail: int = 2,
    seed: int = 0,
    device: torch.device | str = "cpu",
    workers: int | None = None,
    on_layer: Callable[[], None] | None = None,
) -> Analysis:
    """Fit a power law to the spectrum of every layer and plan which to freeze.

    model: a Clip, a checkpoint, an open_clip CLIP, its image encoder, or a framework (wrapped by DDP or
    not); it is left as it is.  xmin: one of `powerlaw.XMIN_MODES`.  freeze: a rule of `plan.RULES`,
    over the convolutions; layers without an alpha train.  mask: analyse the weights under this mask
    (without: as they are).  scaling: one of `esd.SCALINGS`.  cut, relative_cut: eigenvalues up to
    this (times the largest) do not enter the fit; the relative one replaces the absolute.  min_tail:
    the fewest eigenvalues a fit may use.  seed: of the rule random:K.  workers: threads on the CPU.
    on_layer: called as each layer's eigenvalues are done.

    Raises InputError for an option out of range, a model without layers, or weights that are not
    finite; MismatchError where the mask is of another architecture.
    """
    powerlaw.check_mode(xmin, min_tail)
    check_rule(freeze)
    limit = esd.Cut(cut, relative_cut)
    encoder = _image_encoder(model)
    name, pretrained, sha256 = _origin(model, encoder)
    if mask is not None:
        encoder = copy.deepcopy(encoder)
        mask.apply(encoder)
    weights = layer_weights(encoder)
    if not weights:
        raise InputError(f"model {name or type(model).__name__}: has no convolution or linear layer to analyse")
    spectra = esd.eigenvalues(weights, scaling=scaling, cut=limit, device=device, workers=workers, on_done=on_layer)
    layers = [
        describe_layer(key, tuple(weight.shape), spectra[key], limit, xmin=xmin, min_tail=min_tail)
        for key, weight in weights.items()
    ]
    convs = trunk_convs(encoder)
    plan = make_plan({row.name: row.alpha for row in layers if row.name in convs}, freeze, seed=seed)
    settings = {
        "xmin": xmin,
        "scaling": scaling,
        "cut": None if relative_cut is not None else cut,
        "relative_cut": relative_cut,
        "min_tail": min_tail,
        "seed": seed,
        "mask": None if mask is None else _mask_settings(mask),
    }
    return Analysis(name, pretrained, sha256, settings, layers, plan, spectra)


def layer_weights(model: Clip | Checkpoint | nn.Module) -> dict[str, torch.Tensor]:
    """The weights that `analyze` looks at, by layer name in the order of the tower."""
    weights = weight_matrices(_image_encoder(model))
    return {name: weight for name, weight in weights.items() if not weight.is_meta}


def describe_layer(
    name: str,
    shape: tuple[int, ...],
    spectrum: NDArray[np.float64],
    cut: esd.Cut,
    *,
    xmin: str = "ks",
    min_tail: int = 2,
) -> LayerAlpha:
    """The row of a layer from its eigenvalues [N], ascending."""
    above = esd.kept(spectrum, cut)
    law = powerlaw.fit(above, xmin=xmin, min_tail=min_tail)
    numbers = metrics.measure(spectrum, law.alpha)
    return LayerAlpha(
        name=name,
        shape=shape,
        num_eigenvalues=len(spectrum),
        alpha=law.alpha,
        xmin=law.xmin,
        D=law.distance,
        n_tail=law.tail,
        sigma=law.sigma,
        alpha_weighted=numbers.alpha_weighted,
        log_alpha_norm=numbers.log_alpha_norm,
        log_norm=numbers.log_norm,
        log_spectral_norm=numbers.log_spectral_norm,
        stable_rank=numbers.stable_rank,
        entropy=numbers.entropy,
        params=int(np.prod(shape)),
        warning=_warning(spectrum, above, law, cut),
    )


def _warning(
    spectrum: NDArray[np.float64], above: NDArray[np.float64], law: powerlaw.PowerLaw, cut: esd.Cut
) -> str | None:
    notes = [f"no alpha: {law.reason}"] if law.reason else []
    if len(spectrum) < esd.FEW:
        notes.append(f"few eigenvalues (under {esd.FEW})")
    if len(above):
        if above[-1] <= cut.level(float(above[-1])):
            notes.append("no eigenvalue above the cut, none was cut")
        elif len(spectrum) - len(above) > _MUCH_CUT * len(spectrum):
            notes.append(f"{len(spectrum) - len(above)} eigenvalues at or below the cut")
    return "; ".join(notes) or None


def _image_encoder(model: Clip | Checkpoint | nn.Module) -> nn.Module:
    """The image encoder of whatever was given; a checkpoint's lacks on `meta` what its framework left out."""
    if isinstance(model, Clip):
        return model.visual
    if isinstance(model, nn.Module):
        return find_image_encoder(model)
    if not isinstance(model, Checkpoint):
        raise InputError(f"analyze: a Clip, a Checkpoint or a torch module is needed, not {type(model).__name__}")
    name = model.clip["model"]
    with torch.device("meta"):
        encoder = create_image_encoder(name)
    known = encoder.state_dict()
    found = {key[len(BACKBONE) :]: value for key, value in model.state.items() if key.startswith(BACKBONE)}
    found = {key: value for key, value in found.items() if key in known}
    for key, value in found.items():
        if value.shape != known[key].shape:
            expected, has = list(known[key].shape), list(value.shape)
            raise MismatchError(f"checkpoint: {BACKBONE}{key} has shape {has}, {name} needs {expected}")
    encoder.load_state_dict(found, strict=False, assign=True)
    return encoder


def _origin(model: Clip | Checkpoint | nn.Module, encoder: nn.Module) -> tuple[str, str, str]:
    """(model name, pretrained, hash of the weights), as far as they are known."""
    if isinstance(model, Clip) and model.weights_sha256:
        return model.name, model.pretrained, model.weights_sha256
    sha256 = weights_sha256({key: value for key, value in encoder.state_dict().items() if not value.is_meta})
    if isinstance(model, Clip):
        return model.name, model.pretrained, sha256
    if isinstance(model, Checkpoint):
        return model.clip["model"], model.clip.get("pretrained", ""), sha256
    return "", "", sha256


def _mask_settings(mask: Mask) -> dict[str, Any]:
    return {"method": mask.method, "sparsity": mask.sparsity, "weights_sha256": mask.weights_sha256}
