"""`ovstrans analyze`: power laws of a CLIP's layers, and the plan of which to freeze."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ovstrans.cli import common, completion

if TYPE_CHECKING:
    from ovstrans.spectrum.analysis import Analysis, LayerAlpha


def analyze(
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL|CHECKPOINT]",
            autocompletion=completion.MODELS,
            help="An open_clip model name, a sparse checkpoint, or a run folder. "
            "Default the model of --mask, or RN-mini.",
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
            autocompletion=completion.complete_words(("ks", "peak", "mid", "opentrans")),
            help="How the start of the tail is chosen: ks (the best fit), peak (the best fit near "
            "the histogram's peak), mid (the median eigenvalue), opentrans (peak as published).",
        ),
    ] = "ks",
    freeze: Annotated[
        str,
        typer.Option(
            "--freeze",
            metavar="RULE",
            autocompletion=completion.FREEZE_RULES,
            help="Which layers of the backbone to freeze: median (alpha strictly below it), quantile:Q, count:K, "
            "threshold:A, random:K, or largest (strictly above the median).",
        ),
    ] = "median",
    scaling: Annotated[
        str,
        typer.Option(
            "--scaling",
            metavar="MODE",
            autocompletion=completion.complete_words(("published", "none", "fan")),
            help="Scaling of the eigenvalues: published (convolutions x 0.5), none, fan (divided by the longer side).",
        ),
    ] = "published",
    cut: Annotated[float, typer.Option("--cut", metavar="X", help="Eigenvalues up to X do not enter the fit.")] = 1e-5,
    relative_cut: Annotated[
        float | None,
        typer.Option(
            "--relative-cut", metavar="X", help="The same as a fraction of the layer's largest; replaces --cut."
        ),
    ] = None,
    min_tail: Annotated[
        int, typer.Option("--min-tail", metavar="N", help="Fewest eigenvalues that a fit may use.")
    ] = 2,
    heads: Annotated[
        bool, typer.Option("--heads", help="Fit the queries, keys and values of every attention head of a ViT apart.")
    ] = False,
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
    from ovstrans.figures import save_figure
    from ovstrans.spectrum.analysis import analyze as run
    from ovstrans.spectrum.analysis import layer_weights, load_model, match_layers

    out = files.check_output(out or files.OUTPUT_DIR / "alpha.json", force=force)
    if out.suffix == ".png":
        raise InputError(f"{out}: `out` is the JSON file, pictures go beside it; give a name in .json")
    alphas = files.check_output(out.with_suffix(".png"), force=force) if plot else None
    spectra = files.check_output(out.with_name(f"{out.stem}-esd.png"), force=force) if plot_esd else None
    common.check_json(json, force=force, outputs=(out, alphas, spectra))

    model = load_model(target, pretrained, mask)
    layers = match_layers(list(layer_weights(model, heads=heads)), plot_esd) if plot_esd else []
    with console.progress_bar() as progress:
        analysis = run(
            model,
            mask=mask,
            xmin=xmin,
            freeze=freeze,
            scaling=scaling,
            cut=cut,
            relative_cut=relative_cut,
            min_tail=min_tail,
            device=device,
            seed=seed,
            heads=heads,
            progress=progress,
        )

    def write(save: Callable[[], object], path: Path | None) -> None:
        if path is not None:
            save()
            console.say(f"wrote {path}")

    common.finish(  # results first, pictures last
        *([] if json == "-" else [lambda: _show(analysis)]),
        lambda: write(lambda: analysis.save(out), out),
        lambda: common.emit_json(json, analysis.to_json(), force=force),
        lambda: write(lambda: save_figure(analysis.plot(), alphas or out), alphas),
        lambda: write(lambda: save_figure(analysis.plot_spectra(layers), spectra or out), spectra),
    )


def _show(analysis: Analysis) -> None:
    """Show the analysis as a table."""
    from ovstrans import console

    plan = analysis.plan()
    frozen = analysis.rows_of(plan.frozen)
    rows = [_row(layer, layer.name in frozen) for layer in analysis.layers]
    columns = ["layer", "shape", "eigenvalues", "alpha", "xmin", "D", "tail", "frozen", "note"]
    if not any(row[-1] for row in rows):
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    threshold = "" if plan.threshold is None else f", alpha {plan.threshold:.4g}"
    caption = f"plan {plan.rule}{threshold}: {len(plan.frozen)} of {len(analysis.candidates)} layers frozen"
    title = f"{analysis.model} {analysis.pretrained}, xmin {analysis.settings['xmin']}"
    optional = ("eigenvalues", "D", "xmin", "tail", "shape")
    console.table(title, columns, rows, caption=caption, words=("note",), optional=optional)


def _row(layer: LayerAlpha, frozen: bool) -> list[Any]:
    """Return the cells of one layer."""

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
        "yes" if frozen else "",
        layer.warning or "",
    ]
