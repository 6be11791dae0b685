"""How label files say which class a pixel has: the number they hold, and what class it stands for.

Shapes: `H W` image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ovstrans.datasets.images import read_colors, read_label
from ovstrans.datasets.sample import IGNORE, get_ignore_label
from ovstrans.errors import InputError
from ovstrans.files import existing_file

ILLEGAL = -1
"""In a table: no class has this number."""


@dataclass(frozen=True, eq=False)
class Encoding:
    """The numbers of a label file, and their classes.

    table: class index, ignore label or ILLEGAL of every number from 0, int64; the last entry stands for all others.
    ignore: label of pixels that count nowhere.
    legal: the numbers there may be, for messages.
    numbers: reads a file's raw numbers, [H, W].
    """

    table: np.ndarray
    ignore: int
    legal: str
    numbers: Callable[[Path], np.ndarray] = read_label

    def read(self, path: Path) -> np.ndarray:
        """A file's class indices [H, W]: uint8 where the ignore label is 255, else int64.

        Raises InputError, with the path, where the file is broken or holds a number that no class has.
        """
        return self.classes(self.numbers(path), path)

    def classes(self, numbers: np.ndarray, path: Path) -> np.ndarray:
        """The class indices of numbers read from `path`; see `read`."""
        last = len(self.table) - 1
        classes = self.table[np.where((numbers < 0) | (numbers > last), last, numbers)]
        if (classes == ILLEGAL).any():
            wrong = np.unique(numbers[classes == ILLEGAL])
            more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
            raise InputError(
                f"{path}: label value {int(wrong[0])}{more} is none there may be ({self.legal}); "
                "correct the file, or copy or prepare it again"
            )
        return classes.astype(np.uint8 if self.ignore == IGNORE else np.int64)


def make_encoding(
    classes: Mapping[int, int],
    count: int,
    *,
    legal: str,
    ignored: Iterable[int] = (),
    others: str = "illegal",
    numbers: Callable[[Path], np.ndarray] = read_label,
) -> Encoding:
    """An encoding from the class index of each number.

    count: number of classes.  ignored: numbers that count nowhere.  others: what all the rest are, "illegal"
    or "ignored".
    """
    ignore = get_ignore_label(count)
    ignored = tuple(ignored)
    rest = ignore if others == "ignored" else ILLEGAL
    table = np.full(max([*classes, *ignored]) + 2, rest, dtype=np.int64)
    table[list(ignored)] = ignore
    table[list(classes)] = list(classes.values())
    return Encoding(table, ignore, legal, numbers)


def make_index_encoding(count: int, *, ignored: Iterable[int] | None = None) -> Encoding:
    """Numbers are class indices, as detectron2 wants them; `ignored` defaults to the ignore label."""
    ignored = (get_ignore_label(count),) if ignored is None else tuple(ignored)
    legal = f"0 to {count - 1}, {_listed(ignored)} ignored"
    return make_encoding({index: index for index in range(count)}, count, legal=legal, ignored=ignored)


def make_one_based_encoding(
    count: int, *, ignored: Iterable[int] = (0,), numbers: Callable[[Path], np.ndarray] = read_label
) -> Encoding:
    """Number n is class n - 1, and 0 unlabelled, as in ADE20K, VSPW and others."""
    ignored = tuple(ignored)
    legal = f"1 to {count}, {_listed(ignored)} ignored"
    return make_encoding(
        {index + 1: index for index in range(count)}, count, legal=legal, ignored=ignored, numbers=numbers
    )


def read_ade_objects(path: Path) -> np.ndarray:
    """The object of each pixel of an ADE20K `_seg.png`, [H, W]: 256 times the tens of red, plus green."""
    colors = read_colors(path).astype(np.int64)
    return colors[..., 0] // 10 * 256 + colors[..., 1]


def read_matlab_map(path: Path) -> np.ndarray:
    """The `LabelMap` of a PASCAL-Context .mat file, [H, W]; InputError where the file has none."""
    from scipy.io import loadmat

    existing_file(path)
    try:
        content: dict[str, Any] = loadmat(path, variable_names=["LabelMap"])
    except Exception as error:  # loadmat lets out whatever its parser stumbles over
        raise InputError(f"{path}: a broken .mat file ({error}); copy it again") from error
    values = content.get("LabelMap")
    if not isinstance(values, np.ndarray) or values.ndim != 2 or values.dtype.kind not in "iu":
        raise InputError(f"{path}: holds no LabelMap of whole numbers; the file of PASCAL-Context is needed")
    return values.astype(np.int64)


def _listed(numbers: Iterable[int]) -> str:
    return " and ".join(str(number) for number in numbers)
