"""How a published dataset may lie on disk, and what was found of it.

A layout names folders and files below a *top*, the folder that the dataset's archive unpacks to, with
`{part}` for "train" or "val", `{split}` for the layout's own word for it and `{video}` for a video's folder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from ovstrans.datasets.images import IMAGE_SUFFIXES
from ovstrans.datasets.published.encodings import Encoding
from ovstrans.datasets.published.panoptic import Annotations, Panoptic, read_annotations

PREPARED = "prepared"
"""The name of layouts that detectron2's users make from the original downloads."""
ORIGINAL = "original"
"""The name of layouts as archives unpack."""


@dataclass(frozen=True)
class Pair:
    """An image and its label file, both perhaps missing. Paths are kept as text: a split may have 118,287.

    name: unique in its split.  label_file: None where labels are not asked for.
    panoptic_file: the PNG of its segments, where the layout has them.  video: the video it is a frame of.
    """

    name: str
    image_file: str
    label_file: str | None = None
    panoptic_file: str | None = None
    video: str = ""

    @property
    def image(self) -> Path:
        """The image."""
        return Path(self.image_file)

    @property
    def label(self) -> Path | None:
        """Its label file, or None where labels are not asked for."""
        return None if self.label_file is None else Path(self.label_file)

    @property
    def panoptic(self) -> Path | None:
        """The PNG of its segments, or None."""
        return None if self.panoptic_file is None else Path(self.panoptic_file)


@dataclass(frozen=True)
class SplitIndex:
    """The pairs of a split, and a message for each file that should be there and is not."""

    pairs: list[Pair]
    missing: list[str]


@dataclass(frozen=True)
class Layout:
    """One way a dataset lies on disk.

    name: what it is called, `PREPARED`, `ORIGINAL` or whose it is.
    tops: folders below a root that it may be in; the first is the usual one.
    images, labels: folders below a top; `labels` is "" where they are painted from the panoptic PNGs.
    encoding: what the label files' numbers mean; None where they are painted.
    pairing: finds the pairs, see `datasets.pairing`.
    words: what `{split}` becomes; the splits it has are its keys.
    image_suffixes, label_suffixes: what names end with; the first label suffix is the usual one.
    listings: files with a name a line; the first that is there counts.  Empty: all images.
    panoptic: where panoptic segments are, if they are there.
    instances: each number of a label file is a segment of its own.
    partial: images without label file are left out, instead of missed.
    captions: a COCO captions file, used where it is there.
    short_side: images and label maps whose short side is longer are reduced to it; 0 for none.
    upright: images are turned by their EXIF orientation, as detectron2 does.
    """

    name: str
    tops: tuple[str, ...]
    images: str
    labels: str
    encoding: Encoding | None
    pairing: Callable[[DatasetLocation], SplitIndex]
    words: Mapping[str, str] = field(default_factory=lambda: {"train": "train", "val": "val"})
    image_suffixes: tuple[str, ...] = IMAGE_SUFFIXES
    label_suffixes: tuple[str, ...] = (".png",)
    listings: tuple[str, ...] = ()
    panoptic: Panoptic | None = None
    instances: bool = False
    partial: bool = False
    captions: str = ""
    short_side: int = 0
    upright: bool = True

    def places(self, root: Path) -> Iterator[Path]:
        """Where its top may be below a root; a root that is named like the top may be the top itself."""
        for top in self.tops:
            if root.absolute().name == top.rpartition("/")[2]:
                yield root
            yield root / top

    def filled(self, place: str, split: str) -> str:
        """A place with the split's words in it."""
        return place.replace("{split}", self.words[split]).replace("{part}", split)

    def splits_images(self) -> bool:
        """Whether the images of a split are in a folder of their own."""
        return "{split}" in self.images or "{part}" in self.images

    def needs(self, split: str, labels: bool = True) -> list[tuple[str, ...]]:
        """The paths below a top that must be there, each with those that would do as well."""
        places: list[tuple[str, ...]] = [(self.images,)]
        if labels and self.labels:
            places.append((self.labels,))
        if not self.labels and self.panoptic is not None:
            places += [(self.panoptic.folder,)] if labels else []
            places += [(self.panoptic.json,)] if labels or not self.splits_images() else []
        if self.listings:
            places.append(self.listings)
        needs = [tuple(self.filled(place.partition("/{video}")[0], split) for place in each) for each in places]
        return list(dict.fromkeys(needs))


@dataclass(frozen=True)
class DatasetInfo:
    """A published dataset.

    name: as commands call it.  title: as people do.  vocabulary: name of its classes.  classes: how many.
    layouts: those it is read from, the preferred first.
    published_size: short and long side at evaluation (FC-CLIP's configurations); None for the images' own.
    source: where its authors have it.
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
        """The splits that some layout has."""
        return tuple(dict.fromkeys(split for layout in self.layouts for split in layout.words))


@dataclass
class DatasetLocation:
    """A split of a dataset in one layout, below one folder; files are listed once, when asked for.

    root: the top it was found in.  labels: whether label files are looked for.
    """

    published: DatasetInfo
    split: str
    layout: Layout
    root: Path
    labels: bool = True

    def path(self, place: str) -> Path:
        """A place of the layout, with the split's words filled in."""
        return self.root / self.layout.filled(place, self.split)

    @cached_property
    def index(self) -> SplitIndex:
        """Its pairs and what is missing; InputError for a broken listing or annotation file."""
        return self.layout.pairing(self)

    @property
    def pairs(self) -> list[Pair]:
        """Its images with their label files, in order."""
        return self.index.pairs

    @property
    def missing(self) -> list[str]:
        """A message, with paths, for each image or label file that should be there."""
        return self.index.missing

    @cached_property
    def has_panoptic(self) -> bool:
        """Whether the layout's panoptic segments are there."""
        panoptic = self.layout.panoptic
        if panoptic is None or not self.path(panoptic.json).is_file():
            return False
        return self.path(panoptic.folder).is_dir() or not self.labels

    @cached_property
    def annotations(self) -> Annotations:
        """The panoptic segments of all images; none where they are not there."""
        panoptic = self.layout.panoptic
        if panoptic is None or not self.has_panoptic:
            return {}
        return read_annotations(self.path(panoptic.json), panoptic.classes)

    @cached_property
    def listing(self) -> Path | None:
        """The listing that is there, or None where the layout has none."""
        there = [self.path(name) for name in self.layout.listings]
        return next((path for path in there if path.is_file()), there[0] if there else None)


def split_words(train: str, val: str) -> Mapping[str, str]:
    """The words of a layout with both splits."""
    return {"train": train, "val": val}


def list_candidates(published: DatasetInfo, split: str, roots: Sequence[Path]) -> Iterator[tuple[Layout, Path]]:
    """The layouts that have the split, with each folder it might be in, the preferred first."""
    for root in roots:
        for layout in published.layouts:
            if split in layout.words:
                for top in layout.places(root):
                    yield layout, top


def list_absent(layout: Layout, top: Path, split: str, labels: bool = True) -> list[Path]:
    """What a layout needs in a folder and does not find there."""
    needs = layout.needs(split, labels)
    return [top / paths[0] for paths in needs if not any((top / path).exists() for path in paths)]
