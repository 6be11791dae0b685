"""`ovstrans analyze`: power laws of a CLIP's layers, and the plan of which to freeze."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ovstrans.cli import common

if TYPE_CHECKING:
    from ovstrans.checkpoints.file import Checkpoint
    from ovstrans.clip.load import Clip
    from ovstrans.masks.mask import Mask
    from ovstrans.spectrum.analysis import Analysis, LayerAlpha


def analyze(
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL|CHECKPOINT]",
            help="An open_clip model name, a sparse checkpoint, or a run folder. Default: the bundled RN-mini.",
        ),
    ] = None,
    pretrained: common.Pretrained = None,
    mask: Annotated[
        Path | None, typer.Option("--mask", metavar="FILE", help="Analyse the weights under this mask.")
    ] = None,
    xmin: Annotated[
        str,
        typer.Option(
            "--xmin",
            metavar="MODE",
            help="Where the tail starts: ks (best fit of all), peak (best around the histogram's peak), "
            "mid (the median eigenvalue), opentrans (peak as published).",
        ),
    ] = "ks",
    freeze: Annotated[
        str,
        typer.Option(
            "--freeze",
            metavar="RULE",
            help="median (alpha strictly below), quantile:Q, count:K, threshold:A, random:K, or largest "
            "(strictly above the median). Ranges over the convolutions.",
        ),
    ] = "median",
    scaling: Annotated[
        str,
        typer.Option(
            "--scaling",
            metavar="MODE",
            help="Of eigenvalues: published (convolutions x 0.5), none, or fan (divided by the longer side).",
        ),
    ] = "published",
    cut: Annotated[float, typer.Option("--cut", metavar="X", help="Eigenvalues up to X do not enter the fit.")] = 1e-5,
    relative_cut: Annotated[
        float | None,
        typer.Option("--relative-cut", metavar="X", help="Instead: those up to X times the layer's largest."),
    ] = None,
    min_tail: Annotated[
        int, typer.Option("--min-tail", metavar="N", help="Fewest eigenvalues that a fit may use.")
    ] = 2,
    plot: Annotated[
        bool, typer.Option("--plot", help="Draw alpha per layer, beside --out with the suffix .png.")
    ] = False,
    plot_esd: Annotated[
        str | None,
        typer.Option(
            "--plot-esd",
            metavar="LAYERS",
            help="Draw the spectrum and fit of these layers (names or patterns, comma-separated), "
            "beside --out with the suffix -esd.png.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Default: ovstrans-out/alpha.json.")] = None,
    json: common.Json = None,
    force: common.Force = False,
    device: common.Device = "auto",
    seed: common.Seed = 0,
    quiet: common.Quiet = False,
    debug: common.Debug = False,
) -> None:
    """Fit a power law to the spectrum of every layer and plan which layers to freeze.

    A small alpha (heavy tail) means well trained: freeze. A large one means under-trained: fine-tune.
    Without arguments the bundled RN-mini is analysed into ovstrans-out/alpha.json.
    """
    common.start(quiet=quiet, debug=debug)
    from ovstrans import console, files
    from ovstrans.errors import InputError
    from ovstrans.spectrum.plan import check_rule
    from ovstrans.spectrum.powerlaw import check_mode

    check_mode(xmin, min_tail)
    check_rule(freeze)
    out = files.check_output(out or files.OUTPUT_DIR / "alpha.json", force=force)
    if out.suffix == ".png":
        raise InputError(f"{out}: --out is the JSON file, pictures go beside it; give a name in .json")
    picture = files.check_output(out.with_suffix(".png"), force=force) if plot else None
    spectra = files.check_output(out.with_name(f"{out.stem}-esd.png"), force=force) if plot_esd else None
    if common.check_json(json, force=force) == out:
        raise InputError(f"{out}: --json and --out are the same file; leave out --json")
    chosen_device = common.pick_device(device)

    from ovstrans.spectrum.analysis import analyze as analyze_model
    from ovstrans.spectrum.analysis import layer_weights
    from ovstrans.spectrum.file import analysis_json, save_analysis

    model = _load(target, pretrained)
    sparse = _load_mask(mask)
    layers = list(layer_weights(model))
    chosen = _matching(layers, plot_esd) if plot_esd else []
    with console.progress("spectra", len(layers), unit="layers") as bar:
        analysis = analyze_model(
            model,
            xmin=xmin,
            freeze=freeze,
            mask=sparse,
            scaling=scaling,
            cut=cut,
            relative_cut=relative_cut,
            min_tail=min_tail,
            seed=seed,
            device=chosen_device,
            on_layer=bar.advance,
        )
    _save_pictures(analysis, picture, spectra, chosen)
    save_analysis(out, analysis)
    if json != "-":
        _show(analysis)
    common.emit_json(json, analysis_json(analysis), force=force)
    for written in (out, picture, spectra):
        if written is not None:
            console.say(f"wrote {written}")


def _load(target: str | None, pretrained: str | None) -> Clip | Checkpoint:
    """The checkpoint at `target` where it is a file or a run folder; otherwise the model of that name."""
    from ovstrans.clip.load import DEFAULT_MODEL, load_clip, model_names
    from ovstrans.errors import InputError

    path = Path(target or DEFAULT_MODEL)
    is_path = path.exists() or path.suffix or len(path.parts) > 1
    if str(path) in model_names() or not is_path:
        return load_clip(target or DEFAULT_MODEL, pretrained)
    if pretrained is not None:
        raise InputError(f"{path}: a checkpoint holds its weights; leave out --pretrained, or name a model instead")
    return _load_checkpoint(path)


def _load_checkpoint(path: Path) -> Checkpoint:
    from ovstrans import files
    from ovstrans.checkpoints.file import load_checkpoint
    from ovstrans.errors import InputError
    from ovstrans.training.run_folder import RunFolder

    if path.is_dir():
        path = RunFolder(path).require_checkpoint()
    files.existing_file(path)
    if path.suffix != ".safetensors" or "format" not in files.read_metadata(path):
        raise InputError(
            f"{path}: not a sparse checkpoint; for CLIP weights: ovstrans analyze MODEL --pretrained {path}"
        )
    return load_checkpoint(path)


def _load_mask(path: Path | None) -> Mask | None:
    from ovstrans.masks.file import load_mask

    return None if path is None else load_mask(path)


def _matching(layers: list[str], patterns: str) -> list[str]:
    """The layers that comma-separated names or patterns stand for, in order; InputError for none."""
    import difflib
    from fnmatch import fnmatchcase

    from ovstrans.errors import InputError

    found: set[str] = set()
    for pattern in (part.strip() for part in patterns.split(",")):
        names = [name for name in layers if fnmatchcase(name, pattern)]
        if not names:
            close = difflib.get_close_matches(pattern, layers, n=1) or layers[:1]
            raise InputError(
                f"--plot-esd {pattern}: no such layer; did you mean {close[0]!r}? Patterns work: 'layer4.*'"
            )
        found.update(names)
    return [name for name in layers if name in found]


def _save_pictures(analysis: Analysis, picture: Path | None, spectra: Path | None, chosen: list[str]) -> None:
    if picture is None and spectra is None:
        return
    from ovstrans.figures import save_figure
    from ovstrans.spectrum.plots import draw_alphas, draw_spectra

    if picture is not None:
        save_figure(draw_alphas(analysis), picture)
    if spectra is not None:
        save_figure(draw_spectra(analysis, chosen), spectra)


def _show(analysis: Analysis) -> None:
    from ovstrans import console

    plan = analysis.plan
    frozen = set(plan.frozen)
    planned = [layer for layer in analysis.layers if len(layer.shape) > 2]
    rows = [_row(layer, frozen) for layer in analysis.layers]
    columns = ("layer", "shape", "eigenvalues", "alpha", "xmin", "D", "tail", "frozen", "note")
    threshold = "" if plan.threshold is None else f", alpha {plan.threshold:.4g}"
    caption = f"plan {plan.rule}{threshold}: {len(frozen)} of {len(planned)} convolutions frozen"
    title = f"{analysis.model} {analysis.pretrained}, xmin {analysis.settings['xmin']}"
    console.table(title, columns, rows, caption=caption)


def _row(layer: LayerAlpha, frozen: set[str]) -> list[Any]:
    def number(value: float | None, digits: str) -> str:
        return "-" if value is None else format(value, digits)

    alpha = number(layer.alpha, ".3f" if layer.alpha is None or layer.alpha < 1000 else ".3g")
    error = "" if layer.sigma is None or layer.sigma >= 1000 else f" ± {layer.sigma:.2f}"
    return [
        layer.name,
        "x".join(map(str, layer.shape)),
        layer.num_eigenvalues,
        alpha + error,
        number(layer.xmin, ".3g"),
        number(layer.D, ".3f"),
        number(layer.n_tail, "d"),
        "yes" if layer.name in frozen else "",
        layer.warning or "",
    ]
