"""Layouts: how a published dataset may lie on disk, and where a split of it was found.

A layout gives paths below the *dataset folder*, which is the folder that the dataset's archive unpacks to. In these
paths `{part}` stands for our name of the split, "train" or "val", `{split}` for the layout's own name of the split,
such as "train2017", and `{video}` for the folder of a video.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from ovstrans.datasets.images import IMAGE_SUFFIXES
from ovstrans.datasets.published.encodings import Encoding
from ovstrans.datasets.published.panoptic import Annotations, Panoptic, read_annotations
from ovstrans.datasets.published.places import find_named, find_part, is_other_edition

PREPARED = "prepared"
"""Name of the layouts that detectron2's preparation scripts make from the original downloads."""
ORIGINAL = "original"
"""Name of the layouts that archives unpack to."""


@dataclass(frozen=True)
class Pair:
    """An image and its label file; either may be missing on disk. Paths are strings, as a split may have 118,287 pairs.

    Attributes:
        name: Name of the image, unique in its split.
        image_file: Path of the image.
        label_file: Path of the label file; None if labels are not wanted.
        panoptic_file: Path of the PNG of panoptic segments, if the layout has them.
        video: Name of the video that the image is a frame of, or "".
    """

    name: str
    image_file: str
    label_file: str | None = None
    panoptic_file: str | None = None
    video: str = ""

    @property
    def image(self) -> Path:
        """Path of the image."""
        return Path(self.image_file)

    @property
    def label(self) -> Path | None:
        """Path of the label file; None if labels are not wanted."""
        return None if self.label_file is None else Path(self.label_file)

    @property
    def panoptic(self) -> Path | None:
        """Path of the PNG of panoptic segments, or None."""
        return None if self.panoptic_file is None else Path(self.panoptic_file)


@dataclass(frozen=True)
class SplitIndex:
    """The files of a split.

    Attributes:
        pairs: Its images with their label files.
        missing: A message for each file that should exist and does not.
    """

    pairs: list[Pair]
    missing: list[str]


@dataclass(frozen=True)
class Layout:
    """One way in which a dataset may lie on disk.

    Attributes:
        name: `PREPARED`, `ORIGINAL`, or the project whose layout it is.
        folders: Possible paths of the dataset folder below a root; the first is the usual one.
        images: Folder of the images.
        labels: Folder of the label files; "" if label maps are made from the panoptic PNGs.
        encoding: Meaning of the numbers in label files; None if label maps are made from the panoptic PNGs.
        pairing: Function that finds the pairs, see `datasets.published.pairing`.
        split_names: The layout's own name of each split that it has.
        image_suffixes: How image names may end.
        label_suffixes: How names of label files may end; the first is the usual one.
        listings: Files that list the images or videos of a split, one name per line; the first that exists is used.
            Empty to use all images.
        panoptic: Where panoptic segments are; they are used if they exist.
        instances: Whether every number in a label file is a segment of its own.
        partial: Whether to leave out images without label file, instead of reporting them.
        captions: A file of captions in COCO's format, used if it exists; "" for none.
        short_side: Reduce images and label maps to this short side if theirs is longer; 0 to keep their size.
        upright: Whether to rotate images by their EXIF orientation, as detectron2 does.
        elsewhere: Other places of the paths above, by path.
        sign: A path by which a dataset folder of any name is known; "" if the required paths suffice, None if a dataset
            folder must have one of the names in `folders`.
    """

    name: str
    folders: tuple[str, ...]
    images: str
    labels: str
    encoding: Encoding | None
    pairing: Callable[[DatasetLocation], SplitIndex]
    split_names: Mapping[str, str] = field(default_factory=lambda: {"train": "train", "val": "val"})
    image_suffixes: tuple[str, ...] = IMAGE_SUFFIXES
    label_suffixes: tuple[str, ...] = (".png",)
    listings: tuple[str, ...] = ()
    panoptic: Panoptic | None = None
    instances: bool = False
    partial: bool = False
    captions: str = ""
    short_side: int = 0
    upright: bool = True
    elsewhere: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    sign: str | None = ""

    def candidate_folders(self, root: Path) -> Iterator[Path]:
        """Yield where the dataset folder may be below a root, or the root itself if it has the folder's name."""
        for folder in self.folders:
            if root.absolute().name == folder.rpartition("/")[2]:
                yield root
            yield root / folder

    def other_folders(self, root: Path) -> Iterator[Path]:
        """Yield where else the dataset folder may be: below a folder of any name, of a similar name, or the root."""
        yield from find_named(root, self.folders)
        if self.sign is None or is_other_edition(root.absolute().name, self.folders):
            return
        if not self.sign or (root / self.sign).exists():
            yield root

    def fill(self, template: str, split: str) -> str:
        """Replace `{split}` and `{part}` in a path."""
        return template.replace("{split}", self.split_names[split]).replace("{part}", split)

    def places(self, template: str, split: str) -> tuple[str, ...]:
        """Return the paths below the dataset folder that a file or folder of a split may have, the usual one first."""
        return tuple(self.fill(each, split) for each in (template, *self.elsewhere.get(template, ())))

    def has_split_folders(self) -> bool:
        """Return whether every split has its own folder of images."""
        return "{split}" in self.images or "{part}" in self.images

    def required_paths(self, split: str, labels: bool = True) -> list[tuple[str, ...]]:
        """Return the paths that must exist below the dataset folder, each as a tuple of alternatives."""
        templates: list[tuple[str, ...]] = [(self.images,)]
        if labels and self.labels:
            templates.append((self.labels,))
        if not self.labels and self.panoptic is not None:
            templates += [(self.panoptic.folder,)] if labels else []
            templates += [(self.panoptic.json,)] if labels or not self.has_split_folders() else []
        if self.listings:
            templates.append(self.listings)
        paths = [
            tuple(place for each in group for place in self.places(each.partition("/{video}")[0], split))
            for group in templates
        ]
        return list(dict.fromkeys(paths))

    def describe(self, split: str, labels: bool = True) -> str:
        """Say in words which paths are required, such as `camvid/ with val, valannot`."""
        paths = ", ".join(" or ".join(alternatives) for alternatives in self.required_paths(split, labels))
        return f"{self.folders[0]}/ with {paths}"


@dataclass(frozen=True)
class DatasetInfo:
    """A published dataset.

    Attributes:
        name: Its name in commands.
        title: Its name in prose.
        vocabulary: Name of its vocabulary.
        classes: Number of its classes.
        layouts: Layouts that it is read from, the preferred first.
        published_size: Short and long side of images at evaluation, as in FC-CLIP's configurations; None for the
            image's own size.
        source: Web page of the dataset.
    """

    name: str
    title: str
    vocabulary: str
    classes: int
    layouts: tuple[Layout, ...]
    published_size: tuple[int, int] | None = (800, 1333)
    source: str = ""

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that at least one layout has."""
        return tuple(dict.fromkeys(split for layout in self.layouts for split in layout.split_names))


@dataclass
class DatasetLocation:
    """A split of a dataset in a layout, found in a dataset folder. Its files are listed once, on first use.

    Attributes:
        info: The dataset.
        split: Our name of the split.
        layout: The layout.
        folder: The dataset folder.
        labels: Whether to look for label files.
    """

    info: DatasetInfo
    split: str
    layout: Layout
    folder: Path
    labels: bool = True

    def path(self, template: str) -> Path:
        """Return the path of a file or folder of the layout for this split; the usual one if it does not exist."""
        places = self.layout.places(template, self.split)
        return find_part(self.folder, places) or self.folder / places[0]

    @cached_property
    def index(self) -> SplitIndex:
        """Pairs and missing files; InputError if a listing or annotation file is broken."""
        return self.layout.pairing(self)

    @property
    def pairs(self) -> list[Pair]:
        """The images with their label files, in order."""
        return self.index.pairs

    @property
    def missing(self) -> list[str]:
        """A message with the path of each image or label file that should exist and does not."""
        return self.index.missing

    @cached_property
    def has_panoptic(self) -> bool:
        """True if the layout's panoptic segments exist."""
        panoptic = self.layout.panoptic
        if panoptic is None or not self.path(panoptic.json).is_file():
            return False
        return self.path(panoptic.folder).is_dir() or not self.labels

    @cached_property
    def annotations(self) -> Annotations:
        """The panoptic segments of all images; empty if there are none."""
        panoptic = self.layout.panoptic
        if panoptic is None or not self.has_panoptic:
            return {}
        return read_annotations(self.path(panoptic.json), panoptic.classes)

    @cached_property
    def listing(self) -> Path | None:
        """The first listing that exists, or the usual one if none does; None if the layout has no listings."""
        paths = [self.path(template) for template in self.layout.listings]
        return next((path for path in paths if path.is_file()), paths[0] if paths else None)


def list_candidates(
    info: DatasetInfo, split: str, roots: Sequence[Path], *, other: bool = False
) -> Iterator[tuple[Layout, Path]]:
    """Yield the layouts that have the split with each folder that the dataset may be in, the preferred first.

    Args:
        info: The dataset.
        split: One of its splits.
        roots: Where datasets are looked for.
        other: Whether to yield the folders that are not named as the layout has it, instead of those that are.
    """
    for root in roots:
        for layout in info.layouts:
            if split in layout.split_names:
                folders = layout.other_folders(root) if other else layout.candidate_folders(root)
                yield from ((layout, folder) for folder in folders)


def list_absent(layout: Layout, folder: Path, split: str, labels: bool = True) -> list[tuple[str, ...]]:
    """Return the paths that a layout requires in a dataset folder and that do not exist, as `required_paths` does."""
    return [paths for paths in layout.required_paths(split, labels) if find_part(folder, paths) is None]
