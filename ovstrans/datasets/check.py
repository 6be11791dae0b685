"""Checking a dataset: opens every file, compares sizes, and reads every label."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ovstrans.datasets.catalog import list_splits, open_dataset
from ovstrans.datasets.folder import FolderDataset
from ovstrans.datasets.label_counts import LabelCounts, count_values, describe_labels
from ovstrans.datasets.parallel import map_in_threads
from ovstrans.datasets.published.dataset import PublishedDataset
from ovstrans.datasets.sample import Dataset
from ovstrans.errors import InputError, counted
from ovstrans.files import existing_file
from ovstrans.progress import ProgressCallback, ProgressReporter

logger = logging.getLogger(__name__)

_FAULTS_SHOWN = 3


@dataclass(frozen=True, repr=False)
class CheckResult:
    """Result of `check_dataset`.

    Attributes:
        images: Number of images of each split that was checked, such as {"camvid:val": 101}.
        faults: A message for each fault, with the path of the file.
        warnings: What is no fault but makes scores on the dataset say little, such as a class without a pixel.
    """

    images: Mapping[str, int]
    faults: tuple[str, ...]
    warnings: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """Return the splits and the first few faults."""
        splits = ", ".join(f"{split}: {counted(number, 'image')}" for split, number in self.images.items())
        more = len(self.faults) - _FAULTS_SHOWN
        lines = [f"{splits}; {counted(len(self.faults), 'fault')}", *self.faults[:_FAULTS_SHOWN]]
        return "\n  ".join([*lines, f"and {more} more"] if more > 0 else lines)


def check_dataset(
    name: str,
    *,
    data_root: Path | str | None = None,
    workers: int = 0,
    progress: ProgressCallback | None = None,
) -> CheckResult:
    """Check every file of a dataset.

    Args:
        name: Name of the dataset. Without a split, every split that exists is checked.
        data_root: Where to look for published datasets, see `resolve_roots`.
        workers: Images at once; 0 for one per core.
        progress: Called after each image.

    Raises:
        InputError: The dataset is unknown, or none of its splits could be opened.
    """
    images: dict[str, int] = {}
    faults: list[str] = []
    counts = LabelCounts()
    for spec in list_splits(name, data_root=data_root):
        try:
            dataset = open_dataset(spec, split="train", data_root=data_root, allow_missing=True)
        except InputError as error:  # such as a broken listing; the other splits are checked all the same
            faults.append(str(error))
            continue
        title = f"{dataset.name}:{dataset.split}"
        reporter = ProgressReporter(progress, f"check {title}", len(dataset), unit="images")
        split_faults, split_counts = _check_samples(dataset, reporter, workers)
        counts += split_counts
        images[title] = len(dataset)
        faults += split_faults
        if not split_faults:
            logger.info("%s: %s, no fault", title, counted(len(dataset), "image"))
    if not images:
        raise InputError("; ".join(faults))
    messages = tuple(f"{dataset.name}: {message}" for message in describe_labels(dataset, counts))
    for message in messages:
        logger.warning("%s", message)
    return CheckResult(images, tuple(faults), messages)


def find_faults(dataset: Dataset, reporter: ProgressReporter, *, workers: int = 0) -> list[str]:
    """Return a message for each file that is missing, broken, of the wrong size, or has an illegal label value.

    Args:
        dataset: Opened with `allow_missing`.
        reporter: Advanced by one for each image.
        workers: Images at once; 0 for one per core.
    """
    return _check_samples(dataset, reporter, workers)[0]


def _check_samples(dataset: Dataset, reporter: ProgressReporter, workers: int) -> tuple[list[str], LabelCounts]:
    """Return the same as `find_faults`, and the values in the label maps of a described folder."""
    missing = dataset.missing if isinstance(dataset, (FolderDataset, PublishedDataset)) else []
    results = map_in_threads(
        lambda index: _check_sample(dataset, index), range(len(dataset)), reporter, workers=workers
    )
    faults = [fault for sample_faults, _, _ in results for fault in sample_faults]
    sizes = [size for _, size, _ in results]
    counts = sum((counts for _, _, counts in results), LabelCounts())
    return list(dict.fromkeys([*missing, *faults, *_find_unequal_frames(dataset, sizes)])), counts


def _check_sample(dataset: Dataset, index: int) -> tuple[list[str], tuple[int, int] | None, LabelCounts]:
    """Return the faults of a sample, apart from missing files, the size of its image, and the values of its label map.

    With a fault there is neither size nor values.
    """
    files = dataset.files(index) if isinstance(dataset, (FolderDataset, PublishedDataset)) else []
    faults: list[str] = []
    if all(path.exists() for path, _ in files):
        try:
            if isinstance(dataset, FolderDataset):
                sample, raw = dataset.read(index)
            else:
                sample, raw = dataset[index], None
            height, width = sample.image.shape[1:]
            return [], (int(height), int(width)), LabelCounts() if raw is None else count_values(raw)
        except InputError as error:
            faults.append(str(error))
    # Reading a sample stops at its first fault, so read each file on its own, too.
    for path, read in files:
        if path.exists():
            try:
                existing_file(path)
                read(path)
            except InputError as error:
                faults.append(str(error))
    return faults, None, LabelCounts()


def _find_unequal_frames(dataset: Dataset, sizes: Sequence[tuple[int, int] | None]) -> Iterator[str]:
    """Yield a message for each frame whose size differs from its video's first frame.

    Video consistency cannot be measured on such a video.
    """
    if not isinstance(dataset, PublishedDataset):
        return
    for video in dataset.videos:
        known = [(index, size) for index in video if (size := sizes[index]) is not None]
        for index, (height, width) in known[1:]:
            first, (rows, columns) = known[0]
            if (height, width) != (rows, columns):
                yield (
                    f"{dataset.paths(index)[0]}: is {width}x{height}, but {dataset.paths(first)[0]} of the same video "
                    f"is {columns}x{rows}; all frames must have the same size, copy it again"
                )
