"""Converting a dataset from its original download to the layout that detectron2 and FC-CLIP read.

Not needed here, where originals are read as they are; it makes reading faster (a `.mat` or `_seg.png` is
decoded once), and the result serves other code too. Label maps become class indices, 8-bit PNG or, above 254
classes, 16-bit TIFF. Every file is written whole or not at all, and what is there already is left, so that
an interrupted conversion goes on where it stopped.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from ovstrans.datasets.parallel import Counter, map_in_threads
from ovstrans.datasets.published.dataset import PublishedDataset
from ovstrans.datasets.published.layouts import PREPARED, DatasetInfo, DatasetLocation, Layout
from ovstrans.datasets.published.registry import PUBLISHED, locate_dataset, not_found_error
from ovstrans.errors import InputError
from ovstrans.files import atomic_path, existing_file

_JPEG_QUALITY = 95
_FLAWS_NAMED = 3


@dataclass(frozen=True)
class Preparation:
    """A conversion that can be done: from what is there, to a layout below the folder `top`."""

    source: PublishedDataset
    layout: Layout
    top: Path

    @property
    def split(self) -> str:
        """The split that is converted."""
        return self.source.split

    def label(self, index: int) -> Path:
        """Where the label map of an image goes."""
        name = self.source.found.pairs[index].name
        return self._folder(self.layout.labels) / (name + self.layout.label_suffixes[0])

    def image(self, index: int) -> Path:
        """Where the image goes, or is, where both layouts have it in one place."""
        pair = self.source.found.pairs[index]
        return self._folder(self.layout.images) / (pair.name + _image_suffix(pair.image, self.layout))

    def todo(self, *, force: bool = False) -> list[int]:
        """The images that are not converted yet; with `force` all."""
        whole = range(len(self.source))
        return [i for i in whole if force or not (self.label(i).is_file() and self.image(i).is_file())]

    def _folder(self, place: str) -> Path:
        return self.top / self.layout.filled(place, self.split)


def plan_preparation(
    published: DatasetInfo, split: str, roots: Sequence[Path], out: Path | None = None
) -> Preparation | str:
    """What converting a split takes, or why there is nothing to do, as a clause.

    out: root to write below; None for the one that the original is in.
    Raises InputError where the split is nowhere, where files of it are missing, or where `out` is a file.
    """
    layout = next((each for each in published.layouts if each.name == PREPARED and split in each.words), None)
    if layout is None or not layout.labels:
        return "is read as it is; no other layout to convert it to"
    if not _holds_all(layout, published):
        other = next(each.name for each in PUBLISHED.values() if _shares(each, layout, split))
        raise InputError(f"data {published.name}:{split}: its label maps are those of {other}; prepare that")
    found = _original(published, split, roots)
    if found is None:
        there = locate_dataset(published, split, roots)
        if there is None:
            raise not_found_error(published, split, roots)
        return f"is prepared already, in {there.root}"
    if out is not None and out.exists() and not out.is_dir():
        raise InputError(f"{out}: a file is in the way of the folder to write; give another --out")
    root = _root_of(found) if out is None else out
    return Preparation(PublishedDataset(found), layout, root / layout.tops[0])


def prepare(work: Preparation, counter: Counter, *, workers: int = 0, force: bool = False) -> list[str]:
    """Convert what is not converted yet; returns a message for each image that could not be.

    workers: images at once; 0 for one a core.  counter: told of every image.
    """

    def convert(index: int) -> str | None:
        try:
            _convert(work, index)
        except InputError as error:  # also MismatchError
            return str(error)
        return None

    return [flaw for flaw in map_in_threads(convert, work.todo(force=force), counter, workers=workers) if flaw]


def summarize(flaws: Sequence[str]) -> str:
    """The first few messages in a line."""
    more = f"; and {len(flaws) - _FLAWS_NAMED} more" if len(flaws) > _FLAWS_NAMED else ""
    return "; ".join(flaws[:_FLAWS_NAMED]) + more


def _convert(work: Preparation, index: int) -> None:
    sample = work.source[index]
    source, target = work.source.found.pairs[index].image, work.image(index)
    reduced = work.source.found.layout.short_side
    if reduced and _size(source) != (sample.image.shape[2], sample.image.shape[1]):
        _save_image(sample.image, target)
    elif not target.exists():
        _place(Path(source), target)
    assert sample.label is not None
    write_label(work.label(index), sample.label.numpy())


def write_label(path: Path, classes: np.ndarray) -> None:
    """Write class indices [H, W]: a `.png` of 8 bits, or a `.tif` of 16."""
    wide = path.suffix in (".tif", ".tiff")
    picture = Image.fromarray(classes.astype(np.uint16 if wide else np.uint8))
    with atomic_path(path) as temporary:
        if wide:
            picture.save(temporary, format="TIFF", compression="tiff_adobe_deflate")
        else:
            picture.save(temporary, format="PNG")


def _save_image(image: Tensor, path: Path) -> None:
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    with atomic_path(path) as temporary:
        picture.save(
            temporary, format="JPEG" if path.suffix.lower() in (".jpg", ".jpeg") else "PNG", quality=_JPEG_QUALITY
        )


def _place(source: Path, target: Path) -> None:
    """The same image in another folder: a link where the disk allows, else a copy."""
    origin = existing_file(source).resolve()
    with atomic_path(target) as temporary:
        temporary.unlink()
        try:
            os.link(origin, temporary)
        except OSError:
            with suppress(FileNotFoundError):
                temporary.unlink()
            shutil.copyfile(source, temporary)


def _size(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        return picture.size


def _image_suffix(image: Path, layout: Layout) -> str:
    """What the image's name ends with: a suffix the layout asks for, or its own."""
    name = Path(image).name.lower()
    asked = next((suffix for suffix in layout.image_suffixes if name.endswith(suffix.lower())), "")
    return asked or Path(image).suffix


def _holds_all(layout: Layout, published: DatasetInfo) -> bool:
    """Whether label maps in the layout tell all classes; those with classes held back do not."""
    every = np.arange(published.classes)
    return layout.encoding is not None and np.array_equal(layout.encoding.table[every], every)


def _shares(published: DatasetInfo, layout: Layout, split: str) -> bool:
    """Whether a dataset keeps its whole label maps in the same place."""
    return any(
        (each.tops, each.labels) == (layout.tops, layout.labels) and split in each.words and _holds_all(each, published)
        for each in published.layouts
    )


def _original(published: DatasetInfo, split: str, roots: Sequence[Path]) -> DatasetLocation | None:
    """The split in a layout other than the prepared one, with nothing missing if there is such."""
    others = tuple(layout for layout in published.layouts if layout.name != PREPARED)
    there = replace(published, layouts=others)
    return locate_dataset(there, split, roots) if any(split in layout.words for layout in others) else None


def _root_of(found: DatasetLocation) -> Path:
    """The root below which a layout's top was found."""
    for name in found.layout.tops:
        depth = len(Path(name).parts)
        if found.root.parts[-depth:] == Path(name).parts:
            return Path(*found.root.parts[:-depth])
    return found.root.parent
