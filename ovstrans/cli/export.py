"""`ovstrans export`: writing checkpoints, masks and CLIPs in other formats, importing those of other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ovstrans.cli import common

_IMPORT = "Files of other programs"

Source = Annotated[
    Path,
    typer.Argument(
        metavar="SOURCE",
        help="A run, a checkpoint, a mask, pruned weights; or a file of another program (.pth, .pkl, .safetensors).",
    ),
]
Format = Annotated[
    str,
    typer.Option(
        "--format",
        metavar="FORMAT",
        help="dense: all weights, zeros too; sparse: a checkpoint of ours; "
        "detectron2: names of the published code; mask: the mask alone.",
    ),
]
Out = Annotated[Path, typer.Option("--out", metavar="FILE", help=".safetensors, or .pth for dense and detectron2.")]
Like = Annotated[
    str | None,
    typer.Option("--like", metavar="NAME", help="With detectron2: whose names a CLIP gets, fcclip (default) or gkc."),
]
Model = Annotated[
    str | None, typer.Option("--model", help="open_clip model; default the one recorded, or RN50 of openai.")
]
Framework = Annotated[
    str | None,
    typer.Option("--framework", metavar="NAME", help="What the file is of: fcclip, gkc.", rich_help_panel=_IMPORT),
]
MaskFile = Annotated[
    Path | None,
    typer.Option("--mask", help="The mask that its weights are under.", rich_help_panel=_IMPORT),
]
Vocabulary = Annotated[
    str | None,
    typer.Option("--vocabulary", metavar="NAME|FILE", help="The classes it was trained with.", rich_help_panel=_IMPORT),
]
Scope = Annotated[
    str,
    typer.Option(help="Of weight_mask entries: body (layer1-4, as OpenTrans does), or file.", rich_help_panel=_IMPORT),
]
Partial = Annotated[
    bool,
    typer.Option("--partial", help="Take what fits; the rest starts as in training.", rich_help_panel=_IMPORT),
]

Values = Annotated[
    str | None,
    typer.Option(
        "--values",
        metavar="fp32|fp16|bf16|int8",
        help="With sparse: the type that weights are stored in; default theirs.",
    ),
]
Compress = Annotated[bool, typer.Option("--compress", help="With sparse: compress the tensors, without loss.")]

Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="DATA",
        help="Of a mask on weights not trained under it: images for BatchNorm statistics; scenes for RN-mini.",
    ),
]
Recalibrate = Annotated[
    int, typer.Option("--bn-recalibrate", metavar="N", min=0, help="Batches of 32 images for that; 0 for none.")
]


def export(
    source: Source,
    out: Out,
    format: Format = "dense",
    like: Like = None,
    model: Model = None,
    pretrained: common.Pretrained = None,
    framework: Framework = None,
    mask: MaskFile = None,
    vocabulary: Vocabulary = None,
    scope: Scope = "body",
    partial: Partial = False,
    values: Values = None,
    compress: Compress = False,
    data: Data = None,
    data_root: common.DataRoot = None,
    bn_recalibrate: Recalibrate = 8,
    json: common.Json = None,
    seed: common.Seed = 0,
    force: common.Force = False,
    quiet: common.Quiet = False,
    debug: common.Debug = False,
) -> None:
    """Move weights: write a checkpoint, mask or pruned CLIP in another format, or import a foreign one.

    Masked weights are exactly zero in every format. A mask or pruned weights become a whole CLIP, which open_clip
    loads if the format is dense. Code in a file is never run.
    """
    common.start(quiet=quiet, debug=debug)
    import ovstrans
    from ovstrans import console

    common.check_json(json, force=force, outputs=(out,))
    result = ovstrans.export(
        source,
        out,
        format=format,
        like=like,
        model=model,
        pretrained=pretrained,
        framework=framework,
        mask=mask,
        vocabulary=vocabulary,
        scope=scope,
        partial=partial,
        values=values,
        data=data,
        data_root=data_root,
        bn_recalibrate=bn_recalibrate,
        compress=compress,
        seed=seed,
        force=force,
    )
    if json != "-":
        console.show(repr(result))
    common.emit_json(json, result.to_json(), force=True)
