"""`ovstrans export`: checkpoints, masks and pruned CLIPs in other formats, and those of others in ours."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ovstrans.cli import common

if TYPE_CHECKING:
    from ovstrans.checkpoints.file import Checkpoint
    from ovstrans.interop.plain_clip import PlainClip
    from ovstrans.masks.mask import Mask

_IMPORT = "Files of other programs"
_HEADS = ("sem_seg_head.", "head.")
"""How the entries of a framework's head begin, upstream and here."""

Source = Annotated[
    Path,
    typer.Argument(
        metavar="SOURCE",
        help="A run, a checkpoint, a mask, pruned weights; or a file of other code (.pth, .pkl, .safetensors).",
    ),
]
Kind = Annotated[
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
Words = Annotated[
    Path | None,
    typer.Option("--vocabulary", metavar="FILE", help="The classes it was trained with.", rich_help_panel=_IMPORT),
]
Scope = Annotated[
    str,
    typer.Option(help="Of weight_mask entries: body (layer1-4, as OpenTrans does), or file.", rich_help_panel=_IMPORT),
]
Partial = Annotated[
    bool,
    typer.Option("--partial", help="Take what fits; the rest starts as in training.", rich_help_panel=_IMPORT),
]


def export(
    source: Source,
    out: Out,
    kind: Kind = "dense",
    like: Like = None,
    model: Model = None,
    pretrained: common.Pretrained = None,
    framework: Framework = None,
    mask: MaskFile = None,
    vocabulary: Words = None,
    scope: Scope = "body",
    partial: Partial = False,
    json: common.Json = None,
    seed: common.Seed = 0,
    force: common.Force = False,
    quiet: common.Quiet = False,
    debug: common.Debug = False,
) -> None:
    """Move weights: write a checkpoint, mask or pruned CLIP in another format, or bring one in.

    Masked weights are exactly zero in every format. A mask or pruned weights become a whole CLIP, as dense
    loadable by open_clip. Code in a file is never run.
    """
    common.start(quiet=quiet, debug=debug)
    from ovstrans import files
    from ovstrans.errors import InputError
    from ovstrans.interop.export import check_suffix, write
    from ovstrans.interop.export_input import ImportOptions, open_source
    from ovstrans.masks.file import load_mask
    from ovstrans.training.run_folder import RunFolder
    from ovstrans.vocabulary.files import read_vocabulary

    check_suffix(out, kind)
    if scope not in ("body", "file"):
        raise InputError(f"--scope {scope}: unknown; use body or file")
    if like is not None and kind != "detectron2":
        raise InputError(f"--like {like}: goes with --format detectron2; leave it out")
    files.check_output(out, force=force)
    table = common.check_json(json, force=force)
    source = RunFolder(source).require_checkpoint() if source.is_dir() else files.existing_file(source)
    if out.resolve() in (source.resolve(), table and table.resolve()):
        raise InputError(f"--out {out}: is the source or the --json file; give another name")
    wish = ImportOptions(
        model=model,
        pretrained=pretrained,
        framework=framework,
        mask=load_mask(mask) if mask else None,
        vocabulary=read_vocabulary(vocabulary) if vocabulary else None,
        body=scope == "body",
        partial=partial,
        seed=seed,
    )
    opened = open_source(source, kind, wish)
    result = {
        "schema": "ovstrans.export/1",
        "source": str(source),
        "format": kind,
        "out": str(out),
        **write(out, opened.found, kind, like),
        "bytes": out.stat().st_size,
        "missing": list(opened.imported.missing) if opened.imported else [],
        "unexpected": list(opened.imported.unexpected) if opened.imported else [],
        "ignored": list(opened.ignored),
    }
    if json != "-":
        _show(result)
    common.emit_json(json, result, force=True)
    _advise(opened.found, kind, out, result)


def _show(result: dict[str, Any]) -> None:
    from ovstrans import console
    from ovstrans.clip.weights import list_keys

    of = " ".join(filter(None, (result.get("framework"), result["model"], result["pretrained"])))
    facts = {
        "of": of,
        "mask": "none" if result["sparsity"] is None else f"{result['sparsity']:.2%} zeros",
        "tensors": f"{result['tensors']:,}",
        "nonzero": f"{result['nonzero']:,} of {result['values']:,}",
        "bytes": f"{result['bytes']:,}",
        **{key: list_keys(result[key]) for key in ("missing", "unexpected") if result[key]},
        **({"ignored": ", ".join(result["ignored"])} if result["ignored"] else {}),
    }
    width = max(map(len, facts))
    lines = [f"  {label:<{width}}  {value}" for label, value in facts.items()]
    console.show("\n".join([f"{result['out']}: {result['format']}", *lines]))


def _advise(found: Checkpoint | PlainClip | Mask, kind: str, out: Path, result: dict[str, Any]) -> None:
    """What to know about the file before it is used."""
    from ovstrans import console
    from ovstrans.checkpoints.file import Checkpoint
    from ovstrans.interop.plain_clip import PlainClip

    if isinstance(found, PlainClip):
        _advise_clip(found, kind, out, result)
    elif isinstance(found, Checkpoint):
        if result["missing"]:
            console.warn(f"what is missing was filled in: trunk from {result['model']}, head at random")
        if kind == "detectron2":
            _advise_detectron2(found, out)


def _advise_clip(found: PlainClip, kind: str, out: Path, result: dict[str, Any]) -> None:
    from ovstrans import console
    from ovstrans.interop.plain_clip import is_builtin, open_clip_name

    if found.transferred:
        console.say("the mask was made from other weights than these: transferred")
    if result["missing"]:
        console.say(f"what is missing was taken from {result['model']} {result['pretrained']}")
    if any(key.startswith(_HEADS) for key in result["unexpected"]):
        console.warn("only the CLIP in it was taken; --framework NAME takes the head too")
    if kind == "dense":
        name = open_clip_name(found.clip.name, found.clip.pretrained)
        if is_builtin(name):
            console.say(f"load it with: open_clip.create_model({name!r}, pretrained={str(out)!r})")
        else:
            console.say("open_clip loads it from a folder ('local-dir:...') that has the model's configuration too")


def _advise_detectron2(found: Checkpoint, out: Path) -> None:
    from ovstrans import console
    from ovstrans.interop.export import TORCH_SUFFIXES, upstream_names

    if found.framework not in upstream_names():
        return
    pixels = [[round(255 * value, 3) for value in found.clip[key]] for key in ("mean", "std")]
    console.say(f"its images were normalised by MODEL.PIXEL_MEAN {pixels[0]}, PIXEL_STD {pixels[1]}")
    if found.framework == "fcclip" and found.text_encoder is None:
        console.say("its text encoder is not in it; FC-CLIP's code has its own from open_clip")
    if out.suffix not in TORCH_SUFFIXES:
        trap = ", and from this file Mask2Former's code would misplace the pixel decoder" * (found.framework == "gkc")
        console.warn(f"detectron2's checkpointer reads .pth{trap}")
