"""Which image belongs to which label file, in the ways that datasets do it. Nothing is decoded.

A folder is listed once, however many files are looked up in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ovstrans.datasets.images import walk_folders
from ovstrans.datasets.published.layouts import DatasetLocation, Pair, SplitIndex
from ovstrans.errors import InputError
from ovstrans.files import missing_file_message, read_json


def pair_by_name(found: DatasetLocation) -> SplitIndex:
    """Image and label file share their path below their folders, but for the suffix."""
    layout = found.layout
    images = _Files(found.path(layout.images), layout.image_suffixes)
    labels = _Files(found.path(layout.labels), layout.label_suffixes) if found.labels else None
    panoptic = layout.panoptic if found.labels and found.has_panoptic else None
    segments = None if panoptic is None else _Files(found.path(panoptic.folder), (".png",))
    names = sorted(images.names) if found.listing is None else read_listing(found)
    pairs, missing = [], []
    for name in names:
        if labels is not None and layout.partial and name not in labels.names:
            continue
        png = None if panoptic is None else panoptic.png(name)
        pair = Pair(
            name,
            images.path(name),
            None if labels is None else labels.path(name),
            None if png is None or segments is None else f"{segments.folder}/{png}",
        )
        pairs.append(pair)
        if segments is not None and png not in segments.files:
            missing.append(
                f"{pair.image_file}: has no panoptic PNG {pair.panoptic_file}; add it, or remove {segments.folder}"
            )
        missing += _missing(pair, name, images, labels, "" if found.listing is None else f"{found.listing}")
    return _some(found, pairs, missing)


def pair_by_video(found: DatasetLocation) -> SplitIndex:
    """Frames and their label files in a folder each a video; the listing names videos."""
    layout = found.layout
    pairs: list[Pair] = []
    missing = []
    for video in read_listing(found):
        folder = found.path(layout.images.replace("{video}", video))
        if not folder.is_dir():
            missing.append(f"{folder}: no such folder, though {found.listing} lists the video; add it, or take it out")
            continue
        images = _Files(folder, layout.image_suffixes)
        labels = None
        if found.labels:
            labels = _Files(found.path(layout.labels.replace("{video}", video)), layout.label_suffixes)
        for stem in sorted(images.names):
            label = None if labels is None else labels.path(stem)
            pair = Pair(f"{video}/{stem}", images.path(stem), label, video=video)
            pairs.append(pair)
            missing += _missing(pair, stem, images, labels, "")
    return _some(found, pairs, missing)


def pair_by_annotation(found: DatasetLocation) -> SplitIndex:
    """The images that the panoptic JSON annotates; without labels, all there are in the split's folder."""
    layout, panoptic = found.layout, found.layout.panoptic
    assert panoptic is not None
    if not found.labels and layout.splits_images():
        return pair_by_name(found)
    images = _Files(found.path(layout.images), layout.image_suffixes)
    labels = _Files(found.path(panoptic.folder), (panoptic.suffix,)) if found.labels else None
    json = str(found.path(panoptic.json))
    pairs, missing = [], []
    for name in sorted(found.annotations):
        video = name.rpartition("/")[0]
        label = None if labels is None else labels.path(name)
        pair = Pair(name, images.path(name), label, label, video)
        pairs.append(pair)
        missing += _missing(pair, name, images, labels, json)
    return _some(found, pairs, missing)


def pair_in_ade_tree(found: DatasetLocation) -> SplitIndex:
    """ADE20K's full release: `X.jpg` beside `X_seg.png`, by scene; the name's second field says the split.

    Folders named like an image hold masks of its instances, hundreds of thousands in all, and are passed by.
    """
    layout = found.layout
    pairs, missing = [], []
    word = layout.words[found.split]
    for folder, files, dangling in walk_folders(found.path(layout.images), "ADE_"):
        there = set(files) - dangling
        for file in files:
            fields = file.split("_")
            if not file.endswith(layout.image_suffixes) or fields[0] != "ADE" or len(fields) < 2:
                continue
            if ("val" if fields[1] == "val" else "train") != word:
                continue
            stem = file[: -len(_suffix(file, layout.image_suffixes))]
            label = stem + layout.label_suffixes[0]
            pair = Pair(stem, f"{folder}/{file}", f"{folder}/{label}" if found.labels else None)
            pairs.append(pair)
            if file in dangling:
                missing.append(missing_file_message(pair.image_file))
            if found.labels and label not in there:
                missing.append(_unlabelled(pair))
    pairs.sort(key=lambda pair: pair.name)
    return _some(found, pairs, missing)


def read_listing(found: DatasetLocation) -> list[str]:
    """The names in a listing, one a line, without suffix; a detail-API JSON lists images of all phases.

    Raises InputError where the file is no such list, or is empty.
    """
    path = found.listing
    assert path is not None
    if path.suffix == ".json":
        try:
            names = [
                str(image["file_name"])
                for image in read_json(path)["images"]
                if image["phase"] == found.layout.words[found.split]
            ]
        except (KeyError, TypeError) as error:
            raise InputError(f"{path}: not a list of images of the detail API (no {error})") from error
    else:
        try:
            names = [line.split()[0] for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: not a UTF-8 text file; copy it again") from error
    if not names:
        raise InputError(f"{path}: lists nothing for split {found.split!r}; copy it again")
    return list(dict.fromkeys(name[: len(name) - len(_suffix(name, found.layout.image_suffixes))] for name in names))


class _Files:
    """The files of a folder, at any depth, by their path without suffix."""

    def __init__(self, folder: Path, suffixes: Sequence[str]) -> None:
        self.folder, self.usual = folder, suffixes[0]
        self.names: dict[str, str] = {}
        """The path of each, by the same without suffix."""
        nothing: set[str] = set()
        endings = tuple(suffixes)
        for parent, files, dangling in walk_folders(folder):
            prefix = Path(parent).relative_to(folder).as_posix() + "/"
            prefix = "" if prefix == "./" else prefix
            nothing |= {prefix + file for file in dangling}
            for file in files:
                stem = file[: len(file) - len(_suffix(file, endings))]
                if len(stem) < len(file) and not file.startswith("."):
                    self.names.setdefault(prefix + stem, prefix + file)
        self.files = frozenset(self.names.values()) - nothing
        """All of them but for links to nothing."""

    def path(self, name: str) -> str:
        """The file of that name, or where it would usually be."""
        return f"{self.folder}/{self.names.get(name, name + self.usual)}"

    def has(self, name: str) -> bool:
        """Whether there is a file of that name."""
        return self.names.get(name) in self.files


def _missing(pair: Pair, name: str, images: _Files, labels: _Files | None, listed: str) -> list[str]:
    """A message for each file of a pair that is not there.  name: of both, in their folders."""
    found = []
    if name not in images.names:
        found.append(f"{pair.image_file}: no such image, though {listed} lists it; add it, or take it out")
    elif not images.has(name):
        found.append(missing_file_message(pair.image_file))
    if labels is not None and not labels.has(name):
        found.append(_unlabelled(pair))
    return found


def _unlabelled(pair: Pair) -> str:
    return f"{pair.image_file}: has no label map {pair.label_file}; add it, or take the image out"


def _some(found: DatasetLocation, pairs: list[Pair], missing: list[str]) -> SplitIndex:
    if not pairs and not missing:
        what = "no image" if not found.layout.partial else "no image with a label map"
        missing = [f"{found.path(found.layout.images)}: {what} of split {found.split!r} in it; unpack it again"]
    return SplitIndex(pairs, missing)


def _suffix(name: str, suffixes: Sequence[str]) -> str:
    """The suffix of a file name that fits, compared without case, or ""."""
    lower = name.lower()
    for suffix in suffixes:
        if lower.endswith(suffix.lower()):
            return name[len(name) - len(suffix) :]
    return ""
