"""Moving weights: writing checkpoints, masks and CLIPs in other formats, and importing those of other programs.

    dense        our names (a CLIP's: open_clip's), every masked weight exactly zero
    sparse       a checkpoint of ours
    detectron2   names of the published code, zeros too; read by detectron2's checkpointer
    mask         the mask alone

Torch files hold the state as "state_dict" (dense) or "model" (detectron2). Every dense or detectron2 file says what it
is, see `interop.origin`.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from os import PathLike, fspath
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from ovstrans import files
from ovstrans.checkpoints.file import BACKBONE, TEXT_ENCODER, Checkpoint, find_checkpoint, save_checkpoint
from ovstrans.checkpoints.precision import VALUES, convert_values
from ovstrans.clip.load import Clip
from ovstrans.clip.weights import ORIGIN, VISUAL, list_keys
from ovstrans.datasets.catalog import find_vocabulary
from ovstrans.datasets.sample import Dataset
from ovstrans.errors import InputError
from ovstrans.interop.export_source import ExportSource, ImportOptions, open_source
from ovstrans.interop.import_clip import MaskedClip, is_builtin, open_clip_name, recalibrate_clip
from ovstrans.interop.origin import OURS, describe_origin
from ovstrans.interop.published_names import published_frameworks, to_published
from ovstrans.masks.file import WEIGHTS_FORMAT, load_mask, save_mask
from ovstrans.masks.mask import CREATED_BY, Mask
from ovstrans.vocabulary.vocabulary import Vocabulary

TORCH_SUFFIXES = (".pth", ".pt")
SUFFIXES: Mapping[str, tuple[str, ...]] = {
    "dense": (".safetensors", *TORCH_SUFFIXES),
    "sparse": (".safetensors",),
    "detectron2": (*TORCH_SUFFIXES, ".safetensors"),
    "mask": (".safetensors",),
}
"""The formats, and the suffixes of their files."""

SCHEMA = "ovstrans.export/1"

_ENCODER_PREFIX = {"fcclip": "backbone.clip_model.visual.", "gkc": "backbone."}
"""Prefix of the image encoder in a published framework."""

_VERSIONS = {"sem_seg_head": {"version": 2}, "sem_seg_head.predictor": {"version": 2}}
"""Versions of names that Mask2Former's head looks for; without them it moves the entries of a state."""

_HEADS = ("sem_seg_head.", "head.")
"""Prefixes of a framework's head, in published code and here."""

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class ExportResult:
    """Result of an export.

    Attributes:
        source: The source's path or kind.
        format: One of `SUFFIXES`.
        out: The file; None if nothing was written.
        model: open_clip model.
        pretrained: Tag or file of its weights.
        framework: Framework, if it is a checkpoint's.
        sparsity: Zeros / weights under the mask; None without a mask.
        tensors: Number of tensors.
        values: Number of values in them.
        nonzero: Number of values that are not zero.
        bytes: Size of the file; 0 if nothing was written.
        missing: What the model has and the source lacked.
        unexpected: What the source had and the model does not know.
        ignored: Entries of the source that are no weights.
        notes: What to know before the file is used.
        rounding: Largest and mean error of each tensor that `values` changed, over the mean magnitude of its weights.
        state: The tensors, if nothing was written. They share no memory with the source.
    """

    source: str
    format: str
    out: Path | None
    model: str
    pretrained: str
    framework: str | None
    sparsity: float | None
    tensors: int
    values: int
    nonzero: int
    bytes: int = 0
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    rounding: dict[str, tuple[float, float]] = field(default_factory=dict)
    state: dict[str, Tensor] | None = None

    def __repr__(self) -> str:
        facts = {
            "of": " ".join(filter(None, (self.framework, self.model, self.pretrained))),
            "mask": "none" if self.sparsity is None else f"{self.sparsity:.2%} zeros",
            "tensors": f"{self.tensors:,}",
            "nonzero": f"{self.nonzero:,} of {self.values:,}",
            "bytes": f"{self.bytes:,}",
            "rounding": self._describe_rounding(),
            "missing": list_keys(self.missing) if self.missing else "",
            "unexpected": list_keys(self.unexpected) if self.unexpected else "",
            "ignored": ", ".join(self.ignored),
        }
        facts = {name: text for name, text in facts.items() if text}
        width = max(map(len, facts))
        head = f"{'not written' if self.out is None else self.out}: {self.format}"
        return "\n".join([head, *(f"  {name:<{width}}  {text}" for name, text in facts.items())])

    def _describe_rounding(self) -> str:
        if not self.rounding:
            return ""
        name, (largest, _) = max(self.rounding.items(), key=lambda item: item[1][0])
        return f"largest error {largest:.2g} of a mean weight, in {name.removesuffix('.weight')}"

    def to_json(self) -> dict[str, Any]:
        """Return plain values, as `ovstrans export --json` writes them."""
        return {
            "schema": SCHEMA,
            "source": self.source,
            "format": self.format,
            "out": None if self.out is None else str(self.out),
            **({} if self.framework is None else {"framework": self.framework}),
            "model": self.model,
            "pretrained": self.pretrained,
            "sparsity": self.sparsity,
            "tensors": self.tensors,
            "values": self.values,
            "nonzero": self.nonzero,
            "bytes": self.bytes,
            "missing": self.missing,
            "unexpected": self.unexpected,
            "ignored": self.ignored,
            **({"rounding": rounding} if (rounding := self._rounding_json()) else {}),
        }

    def _rounding_json(self) -> dict[str, dict[str, float]]:
        return {name: {"largest": largest, "mean": mean} for name, (largest, mean) in self.rounding.items()}


def export(
    source: str | PathLike[str] | Clip | Mask | Checkpoint | Any,
    out: str | PathLike[str] | None = None,
    *,
    format: str = "dense",
    model: str | None = None,
    pretrained: str | None = None,
    framework: str | None = None,
    mask: Mask | str | PathLike[str] | None = None,
    vocabulary: Vocabulary | str | PathLike[str] | None = None,
    like: str | None = None,
    scope: str = "body",
    partial: bool = False,
    values: str | None = None,
    compress: bool = False,
    data: str | Dataset | None = None,
    data_root: str | PathLike[str] | None = None,
    bn_recalibrate: int = 8,
    seed: int = 0,
    force: bool = False,
) -> ExportResult:
    """Write a checkpoint, a mask or a CLIP in another format, or import a file of another program.

    Masked weights are exactly zero in every format. A mask or pruned weights become a whole CLIP, which open_clip
    loads if the format is dense. Code in a file is never run.

    Args:
        source: A `Checkpoint`, a `Mask`, a `Clip` or a finished `Run`; or a path: the folder of a run, a checkpoint,
            a mask, pruned weights, or a file of another program (.pth, .pkl, .safetensors).
        out: The file to write: .safetensors, or .pth for dense and detectron2. None writes nothing and returns the
            tensors of dense and detectron2.
        format: `dense` (all weights, zeros too), `sparse` (a checkpoint of ours), `detectron2` (names of the published
            code) or `mask` (the mask alone).
        model: open_clip model. None takes the one that the source records, or RN50.
        pretrained: Tag or file of its weights. None takes what the source records, or OpenAI's.
        framework: Framework that a file of another program is a checkpoint of (`fcclip`, `gkc`). Without it only the
            CLIP in the file is taken.
        mask: Mask, or mask file, that the weights are under.
        vocabulary: Classes that the file was trained with: a vocabulary, the name of a dataset or published vocabulary,
            or a file of class names.
        like: With detectron2, whose names a CLIP gets: `fcclip` (default) or `gkc`.
        scope: Of `weight_mask` entries, take those of the `body` (layer1 to layer4, as OpenTrans does) or all of the
            `file`.
        partial: Take what fits. The rest starts as in training.
        values: With sparse, the type that weights are stored in: `fp32`, `fp16`, `bf16`, or `int8` with a float32
            scale for each output channel. None keeps theirs.
        compress: With sparse, compress the tensors without loss.
        data: Images to recompute BatchNorm statistics on where a mask is put on weights that were not trained under
            it: `NAME[:SPLIT]`, `folder:PATH[:SPLIT]`, or a dataset. None takes generated scenes for bundled weights,
            and leaves all others with the statistics of the dense weights.
        data_root: Folder of published datasets.
        bn_recalibrate: Batches of 32 images over which they are recomputed; 0 for none.
        seed: Seed of what is drawn at random, and of the images that are chosen.
        force: Replace a file that is there.

    Returns:
        What was written.

    Raises:
        InputError: If a file is broken, could run code, or lacks what is needed, an option does not suit the source,
            or nothing can be written at `out`.
        MismatchError: If the weights do not fit the model.
    """
    place = None if out is None else Path(out)
    _check_options(place, format, like, scope, values, compress)
    if bn_recalibrate < 0:
        raise InputError(f"`bn_recalibrate={bn_recalibrate}`: must be a number of batches, 0 for none")
    if data is not None and (not bn_recalibrate or format not in ("dense", "detectron2")):
        other = "bn_recalibrate=0" if not bn_recalibrate else f"format={format}"
        raise InputError(f"`data`: is for BatchNorm statistics, which `{other}` leaves as they are; leave one out")
    given = _as_source(source)
    if place is not None:
        files.check_output(place, force=force)
        if isinstance(given, Path) and place.resolve() == given.resolve():
            raise InputError(f"`out={place}`: is the source; give another name")
    options = ImportOptions(
        model=model,
        pretrained=pretrained,
        framework=framework,
        mask=mask if mask is None or isinstance(mask, Mask) else load_mask(fspath(mask)),
        vocabulary=_vocabulary(vocabulary),
        body_only=scope == "body",
        partial=partial,
        seed=seed,
    )
    opened = open_source(given, format, options)
    rounding = None
    if values is not None and isinstance(opened.content, Checkpoint):
        converted, rounding = convert_values(opened.content, values)
        opened = replace(opened, content=converted)
    told = ""
    if isinstance(opened.content, MaskedClip) and format != "mask":
        root = None if data_root is None else fspath(data_root)
        told = recalibrate_clip(opened.content, data, data_root=root, batches=bn_recalibrate, seed=seed)
    elif data is not None:
        raise InputError("`data`: is for the BatchNorm statistics of a CLIP under a mask; leave it out")
    result = _write(place, opened, format, like, compress=compress)
    result.source = str(given) if isinstance(given, Path) else type(given).__name__
    for level, note in [*_notes(opened, result), *([(logging.INFO, told)] if told else [])]:
        result.notes.append(note)
        logger.log(level, "%s", note)
    if rounding is not None:
        result.rounding = {key: errors for key, errors in rounding.layers.items() if any(errors)}
        result.notes.append(
            f"weights are stored as {values}; rounding changed them by {rounding.rms:.1e} of their size (RMS)"
        )
        logger.info("%s", result.notes[-1])
    return result


def check_suffix(path: Path | str, format: str) -> None:
    """Raise InputError if a format is unknown, or the name of a file does not end as the format's files do."""
    if format not in SUFFIXES:
        raise InputError(f"`format={format}`: unknown; use {', '.join(SUFFIXES)}")
    if Path(path).suffix not in SUFFIXES[format]:
        raise InputError(f"`out={path}`: a {format} file ends in {' or '.join(SUFFIXES[format])}; give such a name")


def _check_options(
    out: Path | None, format: str, like: str | None, scope: str, values: str | None, compress: bool
) -> None:
    check_suffix("x.safetensors" if out is None else out, format)
    if out is None and format in ("sparse", "mask"):
        raise InputError(f"`format={format}`: is a file; give `out`")
    if scope not in ("body", "file"):
        raise InputError(f"`scope={scope}`: unknown; use body or file")
    if values is not None and format != "sparse":
        raise InputError(f"`values={values}`: goes with `format=sparse`; leave it out")
    if compress and format != "sparse":
        raise InputError("`compress`: goes with `format=sparse`; leave it out")
    if values is not None and values not in VALUES:
        raise InputError(f"`values={values}`: unknown; use {', '.join(VALUES)}")
    if like is not None and format != "detectron2":
        raise InputError(f"`like={like}`: goes with `format=detectron2`; leave it out")


def _as_source(source: Any) -> Path | Clip | Mask | Checkpoint:
    if isinstance(source, (Clip, Mask, Checkpoint)):
        return source
    if not isinstance(source, (str, PathLike)):
        path = getattr(source, "path", None)  # a Run, which is of a room above
        if path is None:
            raise InputError(
                f"`source`: a {type(source).__name__} cannot be exported; give a path or an object of ours"
            )
        source = path
    return find_checkpoint(fspath(source))


def _vocabulary(given: Vocabulary | str | PathLike[str] | None) -> Vocabulary | None:
    if given is None or isinstance(given, Vocabulary):
        return given
    return find_vocabulary(fspath(given))


def _write(
    out: Path | None, source: ExportSource, format: str, like: str | None, *, compress: bool = False
) -> ExportResult:
    """Write what was read, and count it."""
    content = source.content
    result = ExportResult("", format, out, "", "", None, None, 0, 0, 0)
    if isinstance(content, Mask):
        save_mask(cast(Path, out), content)
        result.model, result.pretrained, result.sparsity = content.model, content.pretrained, content.sparsity
        result.tensors, result.values, result.nonzero = len(content.tensors), content.total, content.kept
    else:
        if format == "sparse":
            state = _write_sparse(cast(Path, out), content, compress)
        else:
            state, texts = _dense(content) if format == "dense" else _detectron2(content, like)
            if out is None:
                result.state = {key: value.detach().to("cpu", copy=True) for key, value in state.items()}
            else:
                _write_tensors(out, state, texts, "state_dict" if format == "dense" else "model")
        clip = content.clip.describe() if isinstance(content, MaskedClip) else content.clip
        result.model, result.pretrained = clip["model"], clip["pretrained"]
        result.framework = content.framework if isinstance(content, Checkpoint) else None
        result.sparsity = None if content.mask is None else content.mask.sparsity
        result.tensors = len(state)
        result.values = sum(value.numel() for value in state.values())
        result.nonzero = sum(int(value.count_nonzero()) for value in state.values())
    if out is not None:
        result.bytes = out.stat().st_size
    if source.fit is not None:
        result.missing, result.unexpected = list(source.fit.missing), list(source.fit.unexpected)
    result.ignored = list(source.ignored)
    return result


def _write_sparse(out: Path, content: Checkpoint | MaskedClip, compress: bool) -> dict[str, Tensor]:
    if not isinstance(content, Checkpoint):
        raise InputError(
            "`format=sparse`: a sparse checkpoint is of a framework, this is a CLIP alone; write its mask "
            "(`format=mask`), or the whole of it (`format=dense`)"
        )
    save_checkpoint(out, content, compress=compress)
    return content.state


def _dense(content: Checkpoint | MaskedClip) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the whole state under its own names, and the texts of the file.

    A CLIP's file loads as open_clip's `pretrained`, a framework's into the framework.
    """
    texts = {ORIGIN: describe_origin(content, OURS)}
    if isinstance(content, MaskedClip):
        metadata = {**content.metadata(), "format": WEIGHTS_FORMAT, "created_by": CREATED_BY}
        return content.state, {**metadata, **texts}
    return dict(content.state), texts


def _detectron2(content: Checkpoint | MaskedClip, like: str | None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the state under the names of a framework's published code, and the texts of the file.

    Args:
        content: What is exported. The text encoder goes along if the published model holds it.
        like: Whose names a CLIP gets (default fcclip), or the backbone of a framework without published names.
    """
    if isinstance(content, MaskedClip):
        names = like or "fcclip"
        state = _encoder_like(names, content.encoder)
        if names == "fcclip":
            text = {key: value for key, value in content.state.items() if not key.startswith(VISUAL)}
            state.update(to_published(names)({TEXT_ENCODER + key: value for key, value in text.items()}))
    elif content.framework in published_frameworks():
        names = content.framework
        if like not in (None, names):
            raise InputError(f"`like={like}`: this is a {names}, which has its own names; leave `like` out")
        text = {TEXT_ENCODER + key: value for key, value in (content.text_encoder or {}).items()}
        state = to_published(names)({**content.state, **text})
    else:
        if like is None:
            raise InputError(
                f"`format=detectron2`: {content.framework} has no published names; `like` writes its backbone alone "
                f"under those of {' or '.join(published_frameworks())}"
            )
        names = like
        keys = [key for key in content.state if key.startswith(BACKBONE)]
        state = _encoder_like(names, {key.removeprefix(BACKBONE): content.state[key] for key in keys})
    return state, {ORIGIN: describe_origin(content, names)}


def _encoder_like(names: str, encoder: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if names not in _ENCODER_PREFIX:
        raise InputError(f"`like={names}`: unknown; use {' or '.join(published_frameworks())}")
    return {_ENCODER_PREFIX[names] + key: value for key, value in encoder.items()}


def _write_tensors(path: Path, state: Mapping[str, Tensor], texts: Mapping[str, str], entry: str) -> None:
    """Write tensors and texts: a torch file with the state under `entry`, or safetensors with metadata."""
    state = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    if path.suffix not in TORCH_SUFFIXES:
        files.write_tensors(path, state, texts)
        return
    # Each tensor is copied: torch.save writes the whole storage behind a view.
    ordered = OrderedDict((key, value.clone()) for key, value in state.items())
    if entry == "model":
        ordered._metadata = _VERSIONS  # type: ignore[attr-defined]  # as torch's own state dicts have it
    # An open file, not its name: the name of the temporary file would end up in the bytes.
    with files.atomic_path(path) as temporary, temporary.open("wb") as handle:
        torch.save({entry: ordered, **texts}, handle)


def _notes(source: ExportSource, result: ExportResult) -> list[tuple[int, str]]:
    """Return (log level, text) of what to know before the file is used."""
    if isinstance(source.content, MaskedClip):
        return _clip_notes(source.content, result)
    if not isinstance(source.content, Checkpoint):
        return []
    notes = []
    if result.missing:
        filled = f"what is missing was filled in: backbone from {result.model}, head at random"
        notes.append((logging.WARNING, filled))
    if result.format == "detectron2":
        notes += _detectron2_notes(source.content, result.out)
    return notes


def _clip_notes(content: MaskedClip, result: ExportResult) -> list[tuple[int, str]]:
    notes = []
    if content.transferred:
        notes.append((logging.INFO, "the mask was made from other weights than these: transferred"))
    if result.missing:
        notes.append((logging.INFO, f"what is missing was taken from {result.model} {result.pretrained}"))
    if any(key.startswith(_HEADS) for key in result.unexpected):
        notes.append((logging.WARNING, "only the CLIP in it was taken; `framework` takes the head too"))
    if result.format == "dense" and result.out is not None:
        name = open_clip_name(content.clip.name, content.clip.pretrained)
        if is_builtin(name):
            how = f"load it with: open_clip.create_model({name!r}, pretrained={str(result.out)!r})"
        else:
            how = "open_clip loads it from a folder ('local-dir:...') that has the model's configuration too"
        notes.append((logging.INFO, how))
    return notes


def _detectron2_notes(content: Checkpoint, out: Path | None) -> list[tuple[int, str]]:
    if content.framework not in published_frameworks():
        return []
    mean, std = ([round(255 * value, 3) for value in content.clip[key]] for key in ("mean", "std"))
    notes = [(logging.INFO, f"its images were normalised by MODEL.PIXEL_MEAN {mean}, PIXEL_STD {std}")]
    if content.framework == "fcclip" and content.text_encoder is None:
        notes.append((logging.INFO, "its text encoder is not in it; FC-CLIP's code has its own from open_clip"))
    if out is not None and out.suffix not in TORCH_SUFFIXES:
        trap = ", and from this file Mask2Former's code would misplace the pixel decoder"
        more = trap if content.framework == "gkc" else ""
        notes.append((logging.WARNING, f"detectron2's checkpointer reads .pth{more}"))
    return notes
