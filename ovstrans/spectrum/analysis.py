"""Analysis of a model: spectrum, power law and metrics of every layer, and the freeze plan."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ovstrans import files
from ovstrans.checkpoints.file import BACKBONE, Checkpoint, find_checkpoint, load_checkpoint
from ovstrans.clip.backbone import find_image_encoder
from ovstrans.clip.layers import plan_layers, weight_matrices
from ovstrans.clip.load import Clip, create_image_encoder, load_clip
from ovstrans.clip.models import model_names
from ovstrans.clip.weights import fit_state, weights_sha256
from ovstrans.environment import bake_pruning, pick_device
from ovstrans.errors import InputError, did_you_mean
from ovstrans.masks.file import load_mask
from ovstrans.masks.mask import Mask
from ovstrans.masks.origin import choose_clip
from ovstrans.progress import ProgressCallback, ProgressReporter
from ovstrans.spectrum import esd, metrics, powerlaw
from ovstrans.spectrum.plan import FreezePlan, check_rule, make_plan

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Model = Clip | Checkpoint | nn.Module
"""Types that `analyze` accepts."""

logger = logging.getLogger(__name__)

# A cut that drops more than this fraction of a layer's eigenvalues is mentioned in its warning.
_MUCH_CUT = 0.1


@dataclass(frozen=True)
class LayerAlpha:
    """Results of one layer. A missing number is None, and `warning` says why.

    Attributes:
        name: Name of the layer in the image encoder, such as `layer1.0.conv1`; `...attn.q` for a part of fused weights.
        shape: Shape of the weight.
        num_eigenvalues: Number of eigenvalues over all kernel positions, before the cut.
        alpha: Exponent of the fitted power law.
        xmin: Eigenvalue from which on the power law is fitted.
        D: Kolmogorov-Smirnov distance of the fit.
        n_tail: Number of eigenvalues from `xmin` on.
        sigma: Standard error of `alpha`.
        alpha_weighted: See `metrics.Metrics`, as for the five that follow.
        log_alpha_norm: See `metrics.Metrics`.
        log_norm: See `metrics.Metrics`.
        log_spectral_norm: See `metrics.Metrics`.
        stable_rank: See `metrics.Metrics`.
        entropy: See `metrics.Metrics`.
        params: Number of weights.
        warning: What to keep in mind about these numbers, or None.
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


@dataclass(repr=False)
class Analysis:
    """Result of `analyze`. A notebook shows it as the picture of `plot`.

    Attributes:
        model: open_clip model name; "" where unknown.
        pretrained: Tag or file of the weights; "" where unknown.
        weights_sha256: Hash of the image encoder's weights.
        settings: The options it was made with, as plain values.
        layers: Results of each layer in the order of the image encoder, those of the attention pool last.
        default_plan: The freeze plan of the rule that `analyze` was called with.
        candidates: Names of the layers that a plan chooses from: the convolutions, or the matrices of a ViT's blocks.
        spectra: Layer name to its eigenvalues, ascending; empty for an analysis that was read from a file.
    """

    model: str
    pretrained: str
    weights_sha256: str
    settings: dict[str, Any]
    layers: list[LayerAlpha]
    default_plan: FreezePlan
    candidates: tuple[str, ...]
    spectra: dict[str, NDArray[np.float64]] = field(default_factory=dict)

    @property
    def alphas(self) -> dict[str, float | None]:
        """Layer name to alpha."""
        return {layer.name: layer.alpha for layer in self.layers}

    def plan(self, rule: str | None = None) -> FreezePlan:
        """Choose the layers to freeze.

        Args:
            rule: One of `plan.RULES`; None for the rule that the model was analysed with.

        Raises:
            InputError: The rule does not parse, or asks for more layers than there are.
        """
        if rule is None or rule == self.default_plan.rule:
            return self.default_plan
        return make_plan(plan_alphas(self.layers), rule, seed=int(self.settings.get("seed") or 0))

    def rows_of(self, layers: Collection[str]) -> set[str]:
        """Return the names of the rows that describe layers of a plan: three for fused queries, keys and values."""
        rows = plan_layers({layer.name: layer.shape for layer in self.layers})
        return {row for layer in layers for row in rows.get(layer, (layer,))}

    def to_json(self) -> dict[str, Any]:
        """Return the analysis as plain values, as its file holds them; see `spectrum.file`."""
        from ovstrans.spectrum.file import analysis_json

        return analysis_json(self)

    def save(self, path: Path | str) -> None:
        """Write the alpha file (JSON); the spectra are not in it."""
        from ovstrans.spectrum.file import save_analysis

        save_analysis(path, self)

    def plot(self) -> Figure:
        """Draw alpha of every layer, and which layers the plan freezes."""
        from ovstrans.spectrum.plots import draw_alphas

        return draw_alphas(self)

    def plot_spectra(self, layers: str | Sequence[str]) -> Figure:
        """Draw the density of the eigenvalues of some layers, with the fitted power laws.

        Args:
            layers: Names or patterns, in a list or separated by commas; see `match_layers`.

        Raises:
            InputError: No layer matches, or the spectra are missing because the analysis was read from a file.
        """
        from ovstrans.spectrum.plots import draw_spectra

        return draw_spectra(self, match_layers(list(self.alphas), layers))

    def _repr_png_(self) -> bytes:
        from ovstrans.figures import png_bytes

        return png_bytes(self.plot())

    def __repr__(self) -> str:
        known = [layer.alpha for layer in self.layers if layer.alpha is not None]
        spread = f", alpha {min(known):.2f} to {max(known):.2f}, median {np.median(known):.2f}" if known else ""
        missing = f", {len(self.layers) - len(known)} without alpha" if len(known) < len(self.layers) else ""
        plan = self.default_plan
        threshold = "" if plan.threshold is None else f", alpha {plan.threshold:.4g}"
        return (
            f"Analysis of {f'{self.model} {self.pretrained}'.strip() or 'a model'}: "
            f"{len(self.layers)} layers{spread}{missing}\n"
            f"plan {plan.rule}{threshold}: {len(plan.frozen)} of {len(self.candidates)} layers frozen"
        )


def analyze(
    target: Model | os.PathLike[str] | str | None = None,
    *,
    pretrained: str | os.PathLike[str] | None = None,
    mask: Mask | os.PathLike[str] | str | None = None,
    xmin: str = "ks",
    freeze: str = "median",
    scaling: str = "published",
    cut: float = esd.ABSOLUTE_CUT,
    relative_cut: float | None = None,
    min_tail: int = 2,
    device: torch.device | str = "auto",
    seed: int = 0,
    heads: bool = False,
    workers: int | None = None,
    progress: ProgressCallback | None = None,
) -> Analysis:
    """Fit a power law to the spectrum of every layer and plan which layers to freeze.

    Args:
        target: What to analyse: a Clip, any torch module (an image encoder, a CLIP, a framework; wrapped by DDP or
            not), a checkpoint or its file, a run or its folder, or the name of an open_clip model. It is not changed.
            Default the model of the mask, or RN-mini.
        pretrained: Weights of a model given by name: an open_clip tag or a file. Default those that the mask was made
            from if it is of this model, else the bundled weights of RN-mini or open_clip's first tag.
        mask: Mask, or mask file, under which to analyse the weights. Default as they are.
        xmin: How the start of the tail is chosen, one of `powerlaw.XMIN_MODES`.
        freeze: Rule of the freeze plan, one of `plan.RULES`. It chooses from the convolutions, or from the matrices of
            a ViT's blocks; layers without an alpha train.
        scaling: Scaling of the eigenvalues, one of `esd.SCALINGS`.
        cut: Eigenvalues up to this value do not enter the fit.
        relative_cut: The same as a fraction of the layer's largest eigenvalue; replaces `cut` if given.
        min_tail: Fewest eigenvalues that a fit may use.
        device: Where eigenvalues are computed.
        seed: Seed of the rule `random:K`.
        heads: Fit queries, keys and values of every attention head apart, where they are fused.
        workers: Threads on the CPU; default the cores of this process.
        progress: Receives the progress, by layer.

    Raises:
        InputError: An option is out of range, the target is unknown or has no layers, or weights are not finite.
        MismatchError: The mask, or the checkpoint, is of another architecture.
    """
    powerlaw.check_mode(xmin, min_tail)
    check_rule(freeze)
    limit = esd.Cut(cut, relative_cut)
    place = pick_device(device)
    model = load_model(target, pretrained, mask)
    encoder = bake_pruning(_image_encoder(model))
    name, pretrained_name, sha256 = _origin(model, encoder)
    if mask is not None:
        mask = mask if isinstance(mask, Mask) else load_mask(Path(mask))
        encoder = copy.deepcopy(encoder)
        mask.apply(encoder)
    weights = layer_weights(encoder, heads=heads)
    if not weights:
        raise InputError(f"model {name or type(model).__name__}: has no convolution or linear layer to analyse")
    reporter = ProgressReporter(progress, "spectra", len(weights), unit="layers")
    spectra = esd.eigenvalues(
        weights, scaling=scaling, cut=limit, device=place, workers=workers, on_layer=reporter.advance
    )
    layers = [
        describe_layer(key, tuple(weight.shape), spectra[key], limit, xmin=xmin, min_tail=min_tail)
        for key, weight in weights.items()
    ]
    candidates = plan_alphas(layers)
    settings = {
        "xmin": xmin,
        "scaling": scaling,
        "cut": None if relative_cut is not None else cut,
        "relative_cut": relative_cut,
        "min_tail": min_tail,
        "seed": seed,
        "mask": None if mask is None else _mask_settings(mask),
        **({"heads": True} if heads else {}),
    }
    plan = make_plan(candidates, freeze, seed=seed)
    if not plan.frozen:
        logger.warning(
            "plan %s freezes nothing: of %d layers that it chooses from, %d have an alpha",
            freeze,
            len(candidates),
            sum(alpha is not None for alpha in candidates.values()),
        )
    return Analysis(
        model=name,
        pretrained=pretrained_name,
        weights_sha256=sha256,
        settings=settings,
        layers=layers,
        default_plan=plan,
        candidates=tuple(candidates),
        spectra=spectra,
    )


def load_model(
    target: Model | os.PathLike[str] | str | None = None,
    pretrained: str | os.PathLike[str] | None = None,
    mask: Mask | os.PathLike[str] | str | None = None,
) -> Model:
    """Load what a target names; see `analyze`.

    A string is a path if a file or folder is there, or if it has a suffix or a slash and is no model's name.

    Raises:
        InputError: The target is unknown, or `pretrained` is given for one that has its weights.
    """
    if target is None or (isinstance(target, str) and _is_model_name(target)):
        chosen = choose_clip(mask, target, pretrained)
        return load_clip(chosen.model, chosen.pretrained)
    if pretrained is not None:
        what = os.fspath(target) if isinstance(target, (str, os.PathLike)) else f"a {type(target).__name__}"
        raise InputError(f"{what}: has its weights; leave out `pretrained`, or name a model instead")
    if isinstance(target, (str, os.PathLike)):
        return _load_checkpoint(Path(target))
    if not isinstance(target, Model):
        raise InputError(f"analyze: a {type(target).__name__} is no model, checkpoint, run or torch module")
    return target


def _is_model_name(target: str) -> bool:
    path = Path(target)
    is_path = path.exists() or path.suffix or len(path.parts) > 1
    return target in model_names() or not is_path


def plan_alphas(layers: Sequence[LayerAlpha]) -> dict[str, float | None]:
    """Return the layers that a freeze plan chooses from with their alpha, in the order of the image encoder.

    Fused queries, keys and values are frozen together, see `clip.layers.plan_layers`; their alpha is the mean of the
    parts', or None if one has none.
    """
    alphas = {layer.name: layer.alpha for layer in layers}
    found: dict[str, float | None] = {}
    for name, rows in plan_layers({layer.name: layer.shape for layer in layers}).items():
        parts = [alphas[row] for row in rows]
        known = [alpha for alpha in parts if alpha is not None]
        found[name] = sum(known) / len(known) if len(known) == len(parts) else None
    return found


def layer_weights(model: Model, *, heads: bool = False) -> dict[str, torch.Tensor]:
    """Return the weights that `analyze` looks at: layer name to weight, in the order of the image encoder.

    Args:
        model: The model.
        heads: Split fused attention weights by head.
    """
    weights = weight_matrices(_image_encoder(model), heads=heads)
    return {name: weight for name, weight in weights.items() if not weight.is_meta}


def match_layers(names: Sequence[str], patterns: str | Sequence[str]) -> list[str]:
    """Select layers by name or pattern.

    Args:
        names: Names of all layers.
        patterns: Names or shell patterns (`layer4.*`), in a list or separated by commas.

    Returns:
        The names that match any pattern, in the order of `names`.

    Raises:
        InputError: A pattern matches no layer.
    """
    found: set[str] = set()
    for pattern in patterns.split(",") if isinstance(patterns, str) else patterns:
        pattern = pattern.strip()
        matching = [name for name in names if fnmatchcase(name, pattern)]
        if not matching:
            hint = did_you_mean(pattern, names) or f"the first is {names[0]!r}. "
            raise InputError(f"`plot_esd={pattern}`: no such layer; {hint}Patterns work: 'layer4.*'")
        found.update(matching)
    return [name for name in names if name in found]


def describe_layer(
    name: str,
    shape: tuple[int, ...],
    spectrum: NDArray[np.float64],
    cut: esd.Cut,
    *,
    xmin: str = "ks",
    min_tail: int = 2,
) -> LayerAlpha:
    """Fit the power law and compute the metrics of one layer.

    Args:
        name: Name of the layer.
        shape: Shape of its weight.
        spectrum: Its eigenvalues [N], ascending.
        cut: Lower limit of the eigenvalues that enter the fit.
        xmin: See `powerlaw.fit`.
        min_tail: See `powerlaw.fit`.
    """
    fitted = esd.above_cut(spectrum, cut)
    law = powerlaw.fit(fitted, xmin=xmin, min_tail=min_tail)
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
        warning=_warning(spectrum, fitted, law, cut),
    )


def _warning(
    spectrum: NDArray[np.float64], fitted: NDArray[np.float64], law: powerlaw.PowerLaw, cut: esd.Cut
) -> str | None:
    """Say what to keep in mind about a layer's numbers: no fit, few eigenvalues, many that were cut."""
    notes = [f"no alpha: {law.reason}"] if law.reason else []
    if len(spectrum) < esd.FEW:
        notes.append(f"few eigenvalues (under {esd.FEW})")
    if len(fitted):
        if fitted[-1] <= cut.level(float(fitted[-1])):
            notes.append("no eigenvalue above the cut, none was cut")
        elif len(spectrum) - len(fitted) > _MUCH_CUT * len(spectrum):
            notes.append(f"{len(spectrum) - len(fitted)} eigenvalues at or below the cut")
    return "; ".join(notes) or None


def _load_checkpoint(path: Path) -> Checkpoint:
    """Load a checkpoint from its file or from a run folder."""
    path = find_checkpoint(path)
    if path.suffix != ".safetensors" or "format" not in files.read_metadata(path):
        raise InputError(
            f"{path}: not a sparse checkpoint; give CLIP weights with a model's name, as `pretrained={path}`"
        )
    return load_checkpoint(path)


def _image_encoder(model: Model) -> nn.Module:
    """Return the image encoder of a model. What a checkpoint has not of it stays on the `meta` device."""
    if isinstance(model, Clip):
        encoder: nn.Module = model.visual
        return encoder
    if isinstance(model, nn.Module):
        return find_image_encoder(model)
    name = model.clip["model"]
    with torch.device("meta"):
        encoder = create_image_encoder(name)
    state = {key.removeprefix(BACKBONE): value for key, value in model.state.items() if key.startswith(BACKBONE)}
    fit = fit_state(state, encoder.state_dict(), f"checkpoint on {name}")
    encoder.load_state_dict(fit.state, strict=False, assign=True)
    return encoder


def _origin(model: Model, encoder: nn.Module) -> tuple[str, str, str]:
    """Return (model name, pretrained, hash of the weights); "" for a name that is not known."""
    sha256 = weights_sha256({key: value for key, value in encoder.state_dict().items() if not value.is_meta})
    if isinstance(model, Clip):
        return model.name, model.pretrained, sha256
    if isinstance(model, Checkpoint):
        return model.clip["model"], model.clip.get("pretrained", ""), sha256
    return "", "", sha256


def _mask_settings(mask: Mask) -> dict[str, Any]:
    return {"method": mask.method, "sparsity": mask.sparsity, "weights_sha256": mask.weights_sha256}
