"""Converting a published dataset from its original download to the layout that detectron2 and FC-CLIP read.

ovstrans reads originals, too. Conversion makes reading faster, as each `.mat` or `_seg.png` is decoded only once, and
other projects can use the result. Label maps become class indices: 8-bit PNG or, above 254 classes, 16-bit TIFF. Files
are written atomically and existing ones are kept, so that an interrupted conversion can go on.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from ovstrans.datasets.parallel import map_in_threads
from ovstrans.datasets.pictures import read_stored_size
from ovstrans.datasets.published.dataset import PublishedDataset
from ovstrans.datasets.published.layouts import PREPARED, DatasetInfo, DatasetLocation, Layout
from ovstrans.datasets.published.registry import (
    PUBLISHED,
    locate_dataset,
    locate_splits,
    not_found_error,
    require_published,
    resolve_roots,
)
from ovstrans.errors import InputError
from ovstrans.files import atomic_path, existing_file
from ovstrans.progress import ProgressCallback, ProgressReporter

logger = logging.getLogger(__name__)

_JPEG_QUALITY = 95
_FAULTS_IN_ERROR = 3


@dataclass(frozen=True)
class PreparedSplit:
    """A split that has been converted.

    Attributes:
        name: The split, such as "coco-stuff:val".
        folder: The dataset folder that was written to.
        images: Number of images in the split.
        converted: How many of them were converted by this call.
    """

    name: str
    folder: Path
    images: int
    converted: int


def prepare_dataset(
    name: str,
    *,
    data_root: Path | str | None = None,
    out: Path | str | None = None,
    workers: int = 0,
    force: bool = False,
    progress: ProgressCallback | None = None,
) -> list[PreparedSplit]:
    """Convert a published dataset to the layout that detectron2 and FC-CLIP read.

    Images that are converted already are skipped, so that the same call goes on after an interrupt.

    Args:
        name: `NAME` for all splits that exist, or `NAME:SPLIT`.
        data_root: Where to look for the dataset, see `resolve_roots`.
        out: Root to write below; by default the root that the original was found in.
        workers: Images at once; 0 for one per core.
        force: Whether to convert images again that are converted already.
        progress: Called after each image.

    Returns:
        The splits that were converted. A split that needs no conversion is left out, with a notice in the log.

    Raises:
        InputError: The dataset is unknown or not found, or images could not be converted; all others have been.
    """
    info, split = require_published(name)
    roots = resolve_roots(data_root)
    prepared: list[PreparedSplit] = []
    errors: list[str] = []
    faults: list[str] = []
    for each in [split] if split else locate_splits(info, roots):
        try:
            plan = plan_preparation(info, each, roots, None if out is None else Path(out))
        except InputError as error:  # the other splits do not depend on this one
            errors.append(str(error))
            continue
        if isinstance(plan, str):
            logger.info("%s:%s %s", info.name, each, plan)
            continue
        converted, new_faults = _convert_split(plan, workers, force, progress)
        if not new_faults:
            prepared.append(converted)
            logger.info("%s: %s (%s)", converted.name, *_describe(converted))
        faults += new_faults
    if faults:
        images = "1 image" if len(faults) == 1 else f"{len(faults)} images"
        errors.append(f"{images} could not be converted: {summarize(faults)}")
    if errors:
        raise InputError("; ".join(errors))
    return prepared


def _describe(split: PreparedSplit) -> tuple[str, str]:
    return f"{split.images} images in {split.folder}", f"{split.converted} converted now"


def _convert_split(
    plan: Preparation, workers: int, force: bool, progress: ProgressCallback | None
) -> tuple[PreparedSplit, list[str]]:
    """Convert a split; returns the result and a message for each image that could not be converted."""
    name, total = f"{plan.source.name}:{plan.split}", len(plan.source)
    remaining = len(plan.list_remaining(force=force))
    reporter = ProgressReporter(progress, f"prepare {name}", total, done=total - remaining, unit="images")
    try:
        faults = convert(plan, reporter, workers=workers, force=force)
    except BaseException:  # an interrupt, too
        done = total - len(plan.list_remaining())
        logger.warning("%s: %d of %d images are converted; run it again to go on", name, done, total)
        raise
    return PreparedSplit(name, plan.folder, total, remaining), faults


@dataclass(frozen=True)
class Preparation:
    """A conversion that can be done.

    Attributes:
        source: The split as it is.
        layout: The layout to convert it to.
        folder: The dataset folder to write to.
    """

    source: PublishedDataset
    layout: Layout
    folder: Path

    @property
    def split(self) -> str:
        """The split that is converted."""
        return self.source.split

    def label_path(self, index: int) -> Path:
        """Return where to write the label map of an image."""
        name = self.source.location.pairs[index].name
        return self._fill(self.layout.labels) / (name + self.layout.label_suffixes[0])

    def image_path(self, index: int) -> Path:
        """Return where to write an image; where it is, if both layouts share the folder of images."""
        pair = self.source.location.pairs[index]
        return self._fill(self.layout.images) / (pair.name + _image_suffix(pair.image, self.layout))

    def list_remaining(self, *, force: bool = False) -> list[int]:
        """Return the indices of the images that are not converted yet; with `force`, of all images."""
        indices = range(len(self.source))
        return [i for i in indices if force or not (self.label_path(i).is_file() and self.image_path(i).is_file())]

    def _fill(self, template: str) -> Path:
        return DatasetLocation(self.source.location.info, self.split, self.layout, self.folder).path(template)


def plan_preparation(
    info: DatasetInfo, split: str, roots: Sequence[Path], out: Path | None = None
) -> Preparation | str:
    """Find out what converting a split takes.

    Args:
        info: The dataset.
        split: One of its splits.
        roots: Where to look for it.
        out: Root to write below; by default the root that the original was found in.

    Returns:
        The conversion, or the reason why there is nothing to do, as the end of a sentence about the split.

    Raises:
        InputError: The split is not found, has missing files, or shares its label maps with another dataset; or `out`
            is a file.
    """
    layout = next((each for each in info.layouts if each.name == PREPARED and split in each.split_names), None)
    if layout is None or not layout.labels:
        return "is read as it is; there is no other layout to convert it to"
    if not _has_all_classes(layout, info):
        other = next(each.name for each in PUBLISHED.values() if _shares_labels(each, layout, split))
        raise InputError(f"dataset {info.name}:{split}: has the label maps of {other}; prepare that")
    location = _locate_original(info, split, roots)
    if location is None:
        existing = locate_dataset(info, split, roots)
        if existing is None:
            raise not_found_error(info, split, roots)
        return f"is prepared already, in {existing.folder}"
    if out is not None and out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file, a folder is needed; give another `out`")
    folder = (_find_root(location) if out is None else out) / layout.folders[0]
    if out is None and not _is_named(location) and set(layout.folders) & set(location.layout.folders):
        folder = location.folder
    return Preparation(PublishedDataset(location), layout, folder)


def convert(plan: Preparation, reporter: ProgressReporter, *, workers: int = 0, force: bool = False) -> list[str]:
    """Convert the remaining images of a split.

    Args:
        plan: From `plan_preparation`.
        reporter: Advanced by one for each image.
        workers: Images at once; 0 for one per core.
        force: Whether to convert all images.

    Returns:
        A message for each image that could not be converted.
    """

    def convert_image(index: int) -> str | None:
        try:
            _convert(plan, index)
        except InputError as error:
            return str(error)
        return None

    results = map_in_threads(convert_image, plan.list_remaining(force=force), reporter, workers=workers)
    return [fault for fault in results if fault]


def summarize(faults: Sequence[str]) -> str:
    """Join the first few messages in a line, and say how many more there are."""
    more = f"; and {len(faults) - _FAULTS_IN_ERROR} more" if len(faults) > _FAULTS_IN_ERROR else ""
    return "; ".join(faults[:_FAULTS_IN_ERROR]) + more


def _convert(plan: Preparation, index: int) -> None:
    sample = plan.source[index]
    source, target = plan.source.location.pairs[index].image, plan.image_path(index)
    if plan.source.location.layout.short_side and _image_size(source) != (sample.image.shape[2], sample.image.shape[1]):
        _save_image(sample.image, target)
    elif not target.exists():
        _link_image(source, target)
    assert sample.label is not None
    write_label(plan.label_path(index), sample.label.numpy())


def write_label(path: Path, classes: np.ndarray) -> None:
    """Write class indices [H, W] as a label map: `.png` with 8 bits, `.tif` with 16."""
    wide = path.suffix in (".tif", ".tiff")
    picture = Image.fromarray(classes.astype(np.uint16 if wide else np.uint8))
    with atomic_path(path) as temporary:
        if wide:
            picture.save(temporary, format="TIFF", compression="tiff_adobe_deflate")
        else:
            picture.save(temporary, format="PNG")


def _save_image(image: Tensor, path: Path) -> None:
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    image_format = "JPEG" if path.suffix.lower() in (".jpg", ".jpeg") else "PNG"
    with atomic_path(path) as temporary:
        picture.save(temporary, format=image_format, quality=_JPEG_QUALITY)


def _link_image(source: Path, target: Path) -> None:
    """Hard-link an image to another folder, or copy it if the file system has no links."""
    source = existing_file(source).resolve()
    with atomic_path(target) as temporary:
        temporary.unlink()
        try:
            os.link(source, temporary)
        except OSError:
            with suppress(FileNotFoundError):
                temporary.unlink()
            shutil.copyfile(source, temporary)


def _image_size(path: Path) -> tuple[int, int]:
    """Return width and height of an image."""
    width, height, _ = read_stored_size(path)
    return width, height


def _image_suffix(image: Path, layout: Layout) -> str:
    """Return how the image's name ends: with a suffix of the layout, or with its own."""
    name = image.name.lower()
    suffix = next((suffix for suffix in layout.image_suffixes if name.endswith(suffix.lower())), "")
    return suffix or image.suffix


def _has_all_classes(layout: Layout, info: DatasetInfo) -> bool:
    """Return whether label maps in a layout hold all classes; those of a base/novel split may not."""
    indices = np.arange(info.classes)
    return layout.encoding is not None and np.array_equal(layout.encoding.table[indices], indices)


def _shares_labels(info: DatasetInfo, layout: Layout, split: str) -> bool:
    """Return whether a dataset has label maps with all its classes in the folder of `layout`."""
    return any(
        (each.folders, each.labels) == (layout.folders, layout.labels)
        and split in each.split_names
        and _has_all_classes(each, info)
        for each in info.layouts
    )


def _locate_original(info: DatasetInfo, split: str, roots: Sequence[Path]) -> DatasetLocation | None:
    """Locate a split in a layout other than the prepared one."""
    layouts = tuple(layout for layout in info.layouts if layout.name != PREPARED)
    if not any(split in layout.split_names for layout in layouts):
        return None
    return locate_dataset(replace(info, layouts=layouts), split, roots)


def _is_named(location: DatasetLocation) -> bool:
    """Return whether a dataset was found in a folder that is named as its layout has it."""
    return location.folder.name in {Path(folder).name for folder in location.layout.folders}


def _find_root(location: DatasetLocation) -> Path:
    """Return the root below which a dataset folder was found; the folder itself if it has another name."""
    for folder in location.layout.folders:
        depth = len(Path(folder).parts)
        if location.folder.parts[-depth:] == Path(folder).parts:
            return Path(*location.folder.parts[:-depth])
    return location.folder.parent if _is_named(location) else location.folder
