"""Looking for whatever is wrong with a dataset: every file opened, every size compared, every label read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ovstrans.datasets.folder import FolderDataset
from ovstrans.datasets.parallel import Counter, map_in_threads
from ovstrans.datasets.published.dataset import PublishedDataset
from ovstrans.datasets.sample import Dataset
from ovstrans.errors import InputError
from ovstrans.files import existing_file


def find_faults(dataset: Dataset, counter: Counter, *, workers: int = 0) -> list[str]:
    """A message with the path for every fault there is: missing, broken, of another size, with illegal labels.

    dataset: opened with `allow_missing=True`, or generated.  workers: images at once; 0 for one a core.
    """
    missing = list(dataset.missing) if isinstance(dataset, FolderDataset) else []
    missing = list(dataset.found.missing) if isinstance(dataset, PublishedDataset) else missing
    looks = map_in_threads(lambda index: _look_at(dataset, index), range(len(dataset)), counter, workers=workers)
    found = [flaw for several, _ in looks for flaw in several]
    sizes = [size for _, size in looks]
    return list(dict.fromkeys([*missing, *found, *_unequal_frames(dataset, sizes)]))


def _look_at(dataset: Dataset, index: int) -> tuple[list[str], tuple[int, int] | None]:
    """What is wrong with one image and its files, but for those that are not there; height and width if nothing is."""
    files = dataset.files(index) if isinstance(dataset, (FolderDataset, PublishedDataset)) else []
    found: list[str] = []
    if all(path.exists() for path, _ in files):
        try:
            height, width = dataset[index].image.shape[1:]
            return [], (int(height), int(width))
        except InputError as error:
            found.append(str(error))
    # Reading stops at the first fault of an image; each file has its own say.
    for path, read in files:
        if path.exists():
            try:
                existing_file(path)
                read(path)
            except InputError as error:
                found.append(str(error))
    return found, None


def _unequal_frames(dataset: Dataset, sizes: Sequence[tuple[int, int] | None]) -> Iterator[str]:
    """Frames of another size than the first of their video, where consistency cannot be measured."""
    if not isinstance(dataset, PublishedDataset):
        return
    for video in dataset.videos:
        known = [(index, size) for index in video if (size := sizes[index]) is not None]
        for index, (height, width) in known[1:]:
            first, (rows, columns) = known[0]
            if (height, width) != (rows, columns):
                yield (
                    f"{dataset.paths(index)[0]}: is {width}x{height}, {dataset.paths(first)[0]} of the same video "
                    f"{columns}x{rows}; all must be of one size, copy it again"
                )
