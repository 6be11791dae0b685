"""Pairing: which label file belongs to which image, in the ways that datasets do it. No file is decoded.

Each folder is listed once, however many files are looked up in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ovstrans.datasets.images import is_lost_folder, walk_folders
from ovstrans.datasets.published.layouts import DatasetLocation, Pair, SplitIndex
from ovstrans.errors import InputError
from ovstrans.files import existing_file, missing_file_message, read_json
from ovstrans.parsing import LARGEST_ANNOTATIONS, read_text


def pair_by_name(location: DatasetLocation) -> SplitIndex:
    """Pair images and label files that have the same path below their folders, apart from the suffix."""
    layout = location.layout
    images = _Files(location.path(layout.images), layout.image_suffixes)
    labels = _Files(location.path(layout.labels), layout.label_suffixes) if location.labels else None
    panoptic = layout.panoptic if location.labels and location.has_panoptic else None
    segments = None if panoptic is None else _Files(location.path(panoptic.folder), (".png",))
    names = sorted(images.names) if location.listing is None else read_listing(location)
    pairs: list[Pair] = []
    missing = [missing_file_message(path) for path in images.lost_folders] if location.listing is None else []
    for name in names:
        if labels is not None and layout.partial and name not in labels.names:
            continue
        png = None if panoptic is None or segments is None else segments.spell(panoptic.png_name(name))
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
        listing = "" if location.listing is None else f"{location.listing}"
        missing += _list_missing(pair, name, images, labels, listing)
    return _make_index(location, pairs, missing)


def pair_by_video(location: DatasetLocation) -> SplitIndex:
    """Pair frames and label files that are in one folder per video; the listing names the videos."""
    layout = location.layout
    pairs: list[Pair] = []
    missing = []
    for video in read_listing(location):
        folder = location.path(layout.images.replace("{video}", video))
        if not folder.is_dir():
            missing.append(
                f"{folder}: no such folder, though {location.listing} lists the video; add it, or remove it there"
            )
            continue
        images = _Files(folder, layout.image_suffixes)
        labels = None
        if location.labels:
            labels = _Files(location.path(layout.labels.replace("{video}", video)), layout.label_suffixes)
        for frame in sorted(images.names):
            label = None if labels is None else labels.path(frame)
            pair = Pair(f"{video}/{frame}", images.path(frame), label, video=video)
            pairs.append(pair)
            missing += _list_missing(pair, frame, images, labels, "")
    return _make_index(location, pairs, missing)


def pair_by_annotation(location: DatasetLocation) -> SplitIndex:
    """Pair the images that the panoptic JSON annotates with their PNGs.

    Without labels, all images in the split's folder are taken, if it has one.
    """
    layout, panoptic = location.layout, location.layout.panoptic
    assert panoptic is not None
    if not location.labels and layout.has_split_folders():
        return pair_by_name(location)
    images = _Files(location.path(layout.images), layout.image_suffixes)
    labels = _Files(location.path(panoptic.folder), (panoptic.suffix,)) if location.labels else None
    json = str(location.path(panoptic.json))
    pairs, missing = [], []
    for name in sorted(location.annotations):
        video = name.rpartition("/")[0]
        label = None if labels is None else labels.path(name)
        pair = Pair(name, images.path(name), label, label, video)
        pairs.append(pair)
        missing += _list_missing(pair, name, images, labels, json)
    return _make_index(location, pairs, missing)


def pair_in_ade_tree(location: DatasetLocation) -> SplitIndex:
    """Pair `X.jpg` with `X_seg.png` in the same folder, as in ADE20K's full release.

    Folders are scenes. The second field of an image's name, ADE_train_... or ADE_val_..., tells its split. Folders
    named like an image hold masks of its instances, hundreds of thousands in all, and are skipped.
    """
    layout = location.layout
    pairs, missing = [], []
    split = layout.split_names[location.split]
    for folder, files, dangling in walk_folders(location.path(layout.images), "ADE_"):
        existing = set(files) - dangling
        spelling = {_lower_suffix(file, layout.label_suffixes): file for file in files}
        missing += [missing_file_message(f"{folder}/{file}") for file in files if is_lost_folder(file, dangling)]
        for file in files:
            fields, suffix = file.split("_"), _find_suffix(file, layout.image_suffixes)
            if not suffix or fields[0] != "ADE" or len(fields) < 2:
                continue
            if ("val" if fields[1] == "val" else "train") != split:
                continue
            stem = file[: -len(suffix)]
            label = stem + layout.label_suffixes[0]
            label = spelling.get(label, label)
            pair = Pair(stem, f"{folder}/{file}", f"{folder}/{label}" if location.labels else None)
            pairs.append(pair)
            if file in dangling:
                missing.append(missing_file_message(pair.image_file))
            if location.labels and label not in existing:
                missing.append(_unlabelled_message(pair))
    pairs.sort(key=lambda pair: pair.name)
    return _make_index(location, pairs, missing)


def read_listing(location: DatasetLocation) -> list[str]:
    """Return the names in the listing of a location, without suffix.

    A listing is a text file with one name per line, or the JSON of PASCAL-Context's detail API, which holds the images
    of all splits.

    Raises:
        InputError: The file is not a listing, or is empty.
    """
    path = location.listing
    assert path is not None
    if path.suffix == ".json":
        try:
            names = [
                str(image["file_name"])
                for image in read_json(path, limit=LARGEST_ANNOTATIONS)["images"]
                if image["phase"] == location.layout.split_names[location.split]
            ]
        except (KeyError, TypeError) as error:
            raise InputError(f"{path}: not a list of images of the detail API (no {error})") from error
    else:
        try:
            names = [line.split()[0] for line in read_text(existing_file(path)).splitlines() if line.strip()]
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: not a UTF-8 text file; copy it again") from error
    if not names:
        raise InputError(f"{path}: lists nothing for split {location.split!r}; copy it again")
    suffixes = location.layout.image_suffixes
    return list(dict.fromkeys(name[: len(name) - len(_find_suffix(name, suffixes))] for name in names))


class _Files:
    """The files below a folder, by their path without suffix.

    Args:
        folder: The folder.
        suffixes: How names of the files may end; the first is the usual one.
    """

    def __init__(self, folder: Path, suffixes: Sequence[str]) -> None:
        self.folder, self._usual_suffix = folder, suffixes[0]
        self.names: dict[str, str] = {}
        """Maps the path of a file without suffix to its path, both below the folder."""
        self.lost_folders: list[str] = []
        """Dangling symlinks that may have pointed to folders."""
        all_dangling: set[str] = set()
        for parent, files, dangling in walk_folders(folder):
            prefix = Path(parent).relative_to(folder).as_posix() + "/"
            prefix = "" if prefix == "./" else prefix
            all_dangling |= {prefix + file for file in dangling}
            self.lost_folders += [f"{parent}/{file}" for file in sorted(dangling) if is_lost_folder(file, dangling)]
            for file in files:
                stem = file[: len(file) - len(_find_suffix(file, suffixes))]
                if len(stem) < len(file) and not file.startswith("."):
                    self.names.setdefault(prefix + stem, prefix + file)
        self.files = frozenset(self.names.values()) - all_dangling
        """Paths of all files that are not dangling symlinks."""

    def path(self, name: str) -> str:
        """Return the path of a file by its name, or its usual path if it does not exist."""
        return f"{self.folder}/{self.names.get(name, name + self._usual_suffix)}"

    def spell(self, file: str) -> str:
        """Return the path of a file with its suffix as it is written on disk; unchanged if there is no such file."""
        return self.names.get(file[: len(file) - len(self._usual_suffix)], file)

    def has(self, name: str) -> bool:
        """Return whether a file of that name exists."""
        return self.names.get(name) in self.files


def _list_missing(pair: Pair, name: str, images: _Files, labels: _Files | None, listing: str) -> list[str]:
    """Return a message for each file of a pair that does not exist.

    Args:
        pair: The pair.
        name: Name of image and label file in `images` and `labels`.
        images: Images that exist.
        labels: Label files that exist; None if labels are not wanted.
        listing: Path of the file that lists the image.
    """
    missing = []
    if name not in images.names:
        missing.append(f"{pair.image_file}: no such image, though {listing} lists it; add it, or remove it there")
    elif not images.has(name):
        missing.append(missing_file_message(pair.image_file))
    if labels is not None and not labels.has(name):
        missing.append(_unlabelled_message(pair))
    return missing


def _unlabelled_message(pair: Pair) -> str:
    return f"{pair.image_file}: has no label map {pair.label_file}; add it, or remove the image"


def _make_index(location: DatasetLocation, pairs: list[Pair], missing: list[str]) -> SplitIndex:
    """Return the index; a split without any image is reported as missing."""
    if not pairs and not missing:
        kind = "no image" if not location.layout.partial else "no image with a label map"
        folder = location.path(location.layout.images)
        missing = [f"{folder}: {kind} of split {location.split!r} in it; unpack it again"]
    return SplitIndex(pairs, missing)


def _find_suffix(name: str, suffixes: Sequence[str]) -> str:
    """Return the first suffix that a file name ends with, compared without case, as it is written; "" if none."""
    lower = name.lower()
    for suffix in suffixes:
        if lower.endswith(suffix.lower()):
            return name[len(name) - len(suffix) :]
    return ""


def _lower_suffix(name: str, suffixes: Sequence[str]) -> str:
    """Return a file name with its suffix spelt as in `suffixes`."""
    found = _find_suffix(name, suffixes)
    return name[: len(name) - len(found)] + next((each for each in suffixes if each.lower() == found.lower()), "")
