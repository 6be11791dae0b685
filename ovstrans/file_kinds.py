"""Telling what a file is from its first bytes, for the messages about files that are given in the wrong place."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ovstrans.errors import InputError
from ovstrans.files import LARGEST_HEADER, existing_file, safetensors_header
from ovstrans.parsing import LARGEST_JSON, LARGEST_TOML, parse_json, parse_toml, read_text

_START = 4096
_TEXT_SUFFIXES = (".txt", ".csv", ".md", ".log", ".yaml", ".yml")
_AGAIN = "download the file itself"

_SIGNATURES: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"version https://git-lfs", "a Git LFS pointer, not the file itself", "fetch it with 'git lfs pull'"),
    (0, b"\x89PNG\r\n", "a PNG image", ""),
    (0, b"\xff\xd8\xff", "a JPEG image", ""),
    (0, b"GIF8", "a GIF image", ""),
    (0, b"II*\x00", "a TIFF image", ""),
    (0, b"MM\x00*", "a TIFF image", ""),
    (0, b"%PDF", "a PDF", ""),
    (0, b"\x1f\x8b", "a gzip archive", "unpack it and give what is inside"),
    (0, b"BZh", "a bzip2 archive", "unpack it and give what is inside"),
    (0, b"\xfd7zXZ", "an xz archive", "unpack it and give what is inside"),
    (0, b"\x28\xb5\x2f\xfd", "a zstd archive", "unpack it and give what is inside"),
    (0, b"7z\xbc\xaf", "a 7z archive", "unpack it and give what is inside"),
    (0, b"Rar!", "a RAR archive", "unpack it and give what is inside"),
    (257, b"ustar", "a tar archive", "unpack it and give what is inside"),
    (0, b"\x89HDF\r\n", "an HDF5 file", ""),
    (0, b"GGUF", "a GGUF file of quantized weights", ""),
    (0, b"\x93NUMPY", "an array of numpy", ""),
)
"""Offset, bytes, what the file is, what to do."""

_FORMATS = {
    "ovstrans.mask/": ("a mask of ovstrans", "give it as `mask`"),
    "ovstrans.weights/": ("weights that pruning left", "give them as `pretrained`, or as `weights` of `finetune`"),
    "ovstrans.checkpoint/": (
        "a checkpoint of ovstrans",
        "give it as the target of `ovstrans analyze`, `bench`, `predict` or `export` "
        "(`ovstrans export FILE --format mask` writes its mask)",
    ),
    "ovstrans.alpha/": ("an alpha file with a freeze plan", "give it as `plan` of finetune or bench"),
    "ovstrans.plan/": ("a freeze plan", "give it as `plan` of finetune or bench"),
    "ovstrans.report/": ("a report of `ovstrans bench`", "'ovstrans inspect' shows it"),
    "ovstrans.reports/": ("a file of reports of `ovstrans bench`", "'ovstrans inspect' shows it"),
    "ovstrans.costs/": ("a lock of costs", "give it as `check` or `update` of `ovstrans bench`"),
    "ovstrans.prediction/": ("the classes of a prediction", "give it as `vocabulary`"),
}
"""What our files are, by the beginning of their format or schema, and where they go."""


@dataclass(frozen=True)
class FileKind:
    """The kind of a file and the option that takes it.

    Attributes:
        name: With its article: "a mask of ovstrans", "an HTML page".
        remedy: Where it goes, or how to get the right file; "" if nothing is known.
        format: The `format` or `schema` of a file of ours, "safetensors", "torch", or "" for other files.
    """

    name: str
    remedy: str = ""
    format: str = ""

    def __str__(self) -> str:
        return f"is {self.name}" + (f"; {self.remedy}" if self.remedy else "")


def recognize(path: Path | str) -> FileKind | None:
    """Return what a file is, or None if nothing tells.

    Args:
        path: A file or folder that exists. A folder is recognized as a run by the recipe in it.
    """
    path = Path(path)
    if path.is_dir():
        return _recognize_folder(path)
    size = existing_file(path).stat().st_size
    with path.open("rb") as handle:
        start = handle.read(_START)
    if not size:
        return FileKind("empty", "copy or download it again")
    for offset, signature, name, remedy in _SIGNATURES:
        if start[offset : offset + len(signature)] == signature:
            return FileKind(name, remedy)
    header = safetensors_header(start)
    if header:
        return _recognize_tensors(path, header, size)
    if start[:2] == b"PK":
        return FileKind("a torch file or zip archive", "", "torch")
    if start[:1] == b"\x80":
        return FileKind("a pickle", "", "torch")
    return _recognize_text(path, start)


def refusal(path: Path | str, needed: str) -> str:
    """Return the error message for a file that is none of what is needed: what it is, and where it goes.

    Args:
        path: The file.
        needed: What would be right, with its article: "a mask".
    """
    kind = recognize(path)
    if kind is None or not kind.name:
        return f"{path}: not {needed}"
    return f"{path}: {kind.name}, not {needed}" + (f"; {kind.remedy}" if kind.remedy else "")


def truncation(path: Path | str) -> str:
    """Return how much of a safetensors file is missing, in words, or "" if it is as long as its header says."""
    path = Path(path)
    size = path.stat().st_size
    with path.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        if length > size:
            return f"truncated: {size:,} bytes, its header alone has {length + 8:,}" if length < LARGEST_HEADER else ""
        try:
            header = parse_json(handle.read(length).decode())
            ends = [entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"]
            whole = 8 + length + max(ends, default=0)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError):
            return ""
    return f"truncated: {size:,} of {whole:,} bytes" if size < whole else ""


def _recognize_folder(path: Path) -> FileKind | None:
    if (path / "recipe.toml").is_file():
        return FileKind("the folder of a run", "give it as the target of `ovstrans bench`, `predict` or `export`")
    return None


def _recognize_tensors(path: Path, header: int, size: int) -> FileKind | None:
    """Recognize a safetensors file by its metadata."""
    if header + 8 > size:
        return FileKind("a truncated safetensors file", "copy or download it again", "safetensors")
    with path.open("rb") as handle:
        handle.seek(8)
        try:
            entries: Any = parse_json(handle.read(header).decode())
        except ValueError:
            return None
    metadata = entries.get("__metadata__") if isinstance(entries, dict) else None
    found = metadata.get("format") if isinstance(metadata, dict) else None
    return _ours(found) or FileKind("a file of weights", "give it as `pretrained`", "safetensors")


def _recognize_text(path: Path, start: bytes) -> FileKind | None:
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text[:1] == b"<":
        page = re.match(rb"<(!doctype html|html|head|body|\?xml[^>]*>\s*<(!doctype html|html))", text)
        name = "an HTML page" if page else "an XML document"
        return FileKind(f"{name}, saved in place of the file (a login, an error or a preview)", _AGAIN)
    if text[:1] in (b"{", b"[") and (path.suffix == ".json" or text[1:].lstrip()[:1] in (b'"', b"{", b"[", b"]", b"}")):
        return _recognize_json(path)
    if path.suffix == ".toml":
        return _recognize_toml(path)
    try:
        start.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(start) - 4:
            return None
    printable = all(byte >= 32 or byte in b"\t\r\n\f" for byte in start)
    return (
        FileKind("a text file")
        if printable and path.suffix in (".txt", ".csv", ".md", ".log", ".yaml", ".yml")
        else None
    )


def _recognize_json(path: Path) -> FileKind | None:
    try:
        value = parse_json(read_text(path, LARGEST_JSON))
    except InputError:  # too long to look into
        return FileKind("a JSON file")
    except ValueError:
        return FileKind("a JSON file that is damaged", "copy or make it again")
    if isinstance(value, dict):
        if isinstance(value.get("weight_map"), dict):
            files = sorted(set(map(str, value["weight_map"].values())))
            return FileKind(
                f"the index of weights in {len(files)} files ({', '.join(files[:2])}{', ...' if files[2:] else ''})",
                "join them into one .safetensors file and give that",
            )
        if isinstance(value.get("model_cfg"), dict):
            return FileKind("the configuration of a model of open_clip", "give the weights beside it")
        ours = _ours(value.get("schema"))
        if ours is not None:
            return ours
    return FileKind("a JSON file")


def _recognize_toml(path: Path) -> FileKind | None:
    try:
        table = parse_toml(read_text(path, LARGEST_TOML))
    except ValueError:
        return FileKind("a TOML file that is damaged")
    if path.name == "dataset.toml":
        return FileKind("the description of a dataset", f"give its folder as `data=folder:{path.parent}`")
    if "classes" in table:
        return FileKind("a vocabulary", "give it as `vocabulary`")
    recipe = {"model", "prune", "training", "run"} & set(table)
    return FileKind("a recipe", "give it as `recipe`") if recipe else FileKind("a TOML file")


def _ours(found: Any) -> FileKind | None:
    for prefix, (name, remedy) in _FORMATS.items():
        if isinstance(found, str) and found.startswith(prefix):
            return FileKind(name, remedy, found)
    return None
